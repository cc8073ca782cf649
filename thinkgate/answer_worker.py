"""The child process behind `answer_pool`: reads a pair of expressions, writes a verdict word.

Owns the worker's side of the pipes and its self-destruction: the kernel kills it when its parent
goes away and when a comparison overruns its time, even inside C code that never lets Python run a
signal handler. What two expressions mean is `answer_judge`'s business.
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
"""Seconds past the wall-clock limit before the kernel ends this process; the parent comes first."""

LOAD_LIMIT = 60.0
"""Seconds importing math-verify may take before the kernel ends this process."""

MEMORY = 4 << 30
"""Address space in bytes: an expression that blows up gets a MemoryError, not the machine's RAM."""

RETIRE_AT = 768 << 10
"""Resident KiB at which a worker lets itself be replaced: sympy's caches only grow."""


def main(lifeline: int) -> None:
    """Serve comparisons until the parent closes a pipe or dies.

    `lifeline` is the reading end of a pipe on which nothing is ever written: the only event there
    is its closing, and the default action of SIGIO is to terminate, at work in C code too.
    (PR_SET_PDEATHSIG would fire when the parent's *thread* ends, which is wrong for a pool. The
    pipe of the jobs will not do: the kernel signals a write after the reader may have read it.)
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.setrecursionlimit(3000)
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    requests, replies = os.dup(0), os.dup(1)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
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

    def start_clocks(cpu: float, wall: float) -> None:
        # Zero would switch a timer off.
        signal.setitimer(signal.ITIMER_PROF, max(cpu, 1e-6))
        signal.setitimer(signal.ITIMER_REAL, wall + GRACE)

    job: dict[str, Any] | None = None

    def on_load(state: str) -> None:
        # The first import of sympy takes seconds on a loaded machine: not the expression's fault.
        assert job is not None
        if state == "loading":
            start_clocks(LOAD_LIMIT, LOAD_LIMIT)
        else:
            start_clocks(job["cpu_limit"], job["wall_limit"])
        send({state: True})

    parent = os.getppid()
    judge = Judge(on_load)
    send({"ready": True})
    while (job := _receive(requests, parent)) is not None:
        start_clocks(job["cpu_limit"], job["wall_limit"])
        reply = _compare(judge, job)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if _resident() > RETIRE_AT:
            send(reply | {"retiring": True})
            return
        send(reply)


def _resident() -> int:
    """Resident KiB of this process now.

    Not `ru_maxrss`: across fork and exec the kernel keeps the peak of the process that started
    this one, so that under a training process every worker would retire after its first job.
    """
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() >> 10


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
