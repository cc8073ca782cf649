"""The child process behind `answer_pool`: reads a pair of expressions, writes a verdict word.

Owns the worker's side of the pipes and its self-destruction: it exits when its parent goes
away, and the kernel kills it when a comparison overruns, even inside C code that never lets
Python run a signal handler. What two expressions mean is `answer_judge`'s business.
"""

import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import sys
from typing import Any

GRACE = 1.0
"""Seconds past the limit before the kernel ends this process; the parent normally comes first."""

LOAD_LIMIT = 60.0
"""Seconds importing math-verify may take before the kernel ends this process."""

MEMORY = 4 << 30
"""Address space in bytes: an expression that blows up gets a MemoryError, not the machine's RAM."""

RETIRE_AT = 768 << 10
"""Resident KiB at which a worker lets itself be replaced: sympy's caches only grow."""


def main() -> None:
    """Serve comparisons until the parent closes the pipe or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.setrecursionlimit(3000)
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    requests, replies = os.dup(0), os.dup(1)
    fcntl.fcntl(requests, fcntl.F_SETOWN, os.getpid())
    # Libraries print; what they print must not reach the protocol.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    with contextlib.suppress(BrokenPipeError):  # the parent has gone: nobody to answer
        serve(requests, replies)


def serve(requests: int, replies: int) -> None:
    """Answer one request after another; returns when the other side is gone."""
    from thinkgate.answer_judge import Judge

    def send(message: dict[str, Any]) -> None:
        data = json.dumps(message).encode()
        os.write(replies, len(data).to_bytes(4, "big") + data)

    limit = 0.0

    def on_load(state: str) -> None:
        # The first import of sympy takes seconds on a loaded machine: not the expression's fault.
        signal.setitimer(signal.ITIMER_REAL, LOAD_LIMIT if state == "loading" else limit + GRACE)
        send({state: True})

    parent = os.getppid()
    judge = Judge(on_load)
    send({"ready": True})
    while (job := _receive(requests, parent)) is not None:
        limit = job["limit"]
        signal.setitimer(signal.ITIMER_REAL, limit + GRACE)
        _die_with_the_pipe(requests, True)
        reply = _compare(judge, job)
        _die_with_the_pipe(requests, False)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > RETIRE_AT:
            send(reply | {"retiring": True})
            return
        send(reply)


def _die_with_the_pipe(requests: int, wanted: bool) -> None:
    """Have the kernel end this process when the parent goes away while it is computing.

    Nothing is written to the pipe during a job, so the only event there is its closing, and the
    default action of SIGIO is to terminate. (PR_SET_PDEATHSIG would fire when the parent's
    *thread* ends, which is wrong for a pool.)
    """
    flags = fcntl.fcntl(requests, fcntl.F_GETFL)
    flags = flags | os.O_ASYNC if wanted else flags & ~os.O_ASYNC
    fcntl.fcntl(requests, fcntl.F_SETFL, flags)


def _compare(judge: Any, job: dict[str, Any]) -> dict[str, Any]:
    try:
        if job.get("alone"):
            return {"verdict": judge.second_opinion(job["gold"], job["answer"])}
        return {"verdict": judge.compare(job["gold"], job["answer"], job["tolerance"])}
    except ImportError as error:
        return {"missing": f"math-verify cannot be imported ({error}); pip install thinkgate"}
    except (MemoryError, RecursionError, OverflowError):
        return {"verdict": "error"}


def _receive(requests: int, parent: int) -> dict[str, Any] | None:
    header = _read_exactly(requests, 4, parent)
    if header is None:
        return None
    body = _read_exactly(requests, int.from_bytes(header, "big"), parent)
    return None if body is None else json.loads(body)


def _read_exactly(source: int, count: int, parent: int) -> bytes | None:
    poll = select.poll()
    poll.register(source, select.POLLIN)
    data = b""
    while len(data) < count:
        # The pipe's end is the usual signal; the parent's id catches a pipe some fork keeps open.
        if not poll.poll(2000):
            if os.getppid() != parent:
                return None
            continue
        piece = os.read(source, count - len(data))
        if not piece:
            return None
        data += piece
    return data
