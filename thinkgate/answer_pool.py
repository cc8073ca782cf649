"""The killable processes that compare answers which plain arithmetic cannot settle.

Owns the worker processes: starting them, hard limits per comparison (of the worker's CPU time,
kept by the kernel, and of wall-clock time, measured in this process), killing what overruns,
replacing what died, and leaving nothing behind. Knows nothing about answers: it ships two strings
and brings one verdict word back.

A worker is a fresh interpreter talking over pipes, never a fork of the caller, so it
holds none of the caller's sockets, GPU handles or locks. The pool has no threads of its own:
the calling thread waits on its worker's pipe, which makes it safe in threads, behind
`asyncio.to_thread`, and in forked DataLoader or TRL processes (a fork starts its own pool).
"""

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from thinkgate.errors import MissingDependencyError

START_LIMIT = 60.0
"""Seconds a new interpreter, or the first import of math-verify, may take on a loaded machine."""

PATIENCE = 4.0
"""Wall-clock seconds allowed for each second of CPU time: a verdict must not depend on how busy
the machine is, and yet nothing may hang."""

_BOOT = (
    "import sys; sys.path.append({root!r}); "
    "from thinkgate.answer_worker import main; main({lifeline})"
)


class _WorkerGone(Exception):
    """The worker had ended before it was given the job: the job is innocent."""


class _WorkerDied(Exception):
    """The worker ended at work: out of CPU time or memory, killed, or crashed in C code."""


class _WorkerTooSlow(Exception):
    """The worker did not answer within the wall-clock limit."""


class _Worker:
    """One child interpreter and the framing of its two pipes. Not thread-safe: one user at a time.

    A third pipe, on which nothing is ever written, tells the child when this process goes away.

    After any exception from `compare` the worker must be killed, because a late reply would be
    taken for the next one's.
    """

    retired = False
    """It has grown large and will take no more jobs."""

    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parent.parent)
        theirs, self._lifeline = os.pipe()
        # -P keeps the caller's working folder off sys.path: a user's own sympy.py must not load.
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT.format(root=root, lifeline=theirs)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                pass_fds=[theirs],
            )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(theirs)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests = self._process.stdin.fileno()
        self._replies = self._process.stdout.fileno()
        self._poll = select.poll()
        self._poll.register(self._replies, select.POLLIN)
        try:
            self._read(time.monotonic() + START_LIMIT)
        except BaseException:
            self.kill()
            raise

    def compare(self, job: dict[str, Any], timeout: float) -> str:
        """Return the worker's verdict word; imports it must make first do not count as its time.

        `timeout` is in seconds of the worker's CPU time.
        """
        left = PATIENCE * timeout
        job = job | {"cpu_limit": timeout, "wall_limit": left}
        data = json.dumps(job, ensure_ascii=False).encode("utf-8", "surrogatepass")
        deadline = time.monotonic() + left
        try:
            # Jobs are far smaller than a pipe's buffer and the worker is idle: this cannot block.
            os.write(self._requests, len(data).to_bytes(4, "big") + data)
        except BrokenPipeError as error:
            raise _WorkerGone from error
        while True:
            reply = self._read(deadline)
            match reply:
                case {"loading": _}:
                    left = deadline - time.monotonic()
                    deadline = time.monotonic() + START_LIMIT
                case {"loaded": _}:
                    deadline = time.monotonic() + left
                case {"missing": message}:
                    raise MissingDependencyError(message)
                case _:
                    self.retired = "retiring" in reply
                    return str(reply["verdict"])

    def _read(self, deadline: float) -> dict[str, Any]:
        length = int.from_bytes(self._read_exactly(4, deadline), "big")
        return json.loads(self._read_exactly(length, deadline))

    def _read_exactly(self, count: int, deadline: float) -> bytes:
        data = b""
        while len(data) < count:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not self._poll.poll(max(1, int(remaining * 1000))):
                raise _WorkerTooSlow
            piece = os.read(self._replies, count - len(data))
            if not piece:
                raise _WorkerDied
            data += piece
        return data

    def stop(self) -> None:
        """End the process and nothing more: for a worker that another thread is waiting on."""
        self._process.kill()

    def kill(self) -> None:
        """End the process and reap it; safe to call twice."""
        self.stop()
        self._close_pipes()
        self._process.wait()

    def forget(self) -> None:
        """In a forked child: let go of a worker that is the parent's, which goes on using it."""
        self._close_pipes()
        self._process.returncode = 0  # not ours to wait for, so nothing to warn about either

    def _close_pipes(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


class AnswerPool:
    """At most `size` workers, started when first needed and kept warm."""

    def __init__(self, size: int) -> None:
        self._free = threading.Condition(threading.Lock())
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._starting = 0
        self.size = size

    def compare(self, job: dict[str, Any], timeout: float) -> str | None:
        """Return the verdict word, or None when the worker overran `timeout` or died at it.

        Waiting for a free worker does not count; it is bounded because every job is.
        """
        while True:
            worker = self._acquire()
            keep = False
            try:
                verdict = worker.compare(job, timeout)
                keep = not worker.retired
                return verdict
            except (_WorkerTooSlow, _WorkerDied):
                return None
            except _WorkerGone:
                continue
            finally:
                self._release(worker, keep)

    def grow(self, size: int) -> None:
        """Allow at least `size` workers; never shrinks, so that callers do not fight."""
        with self._free:
            self.size = max(self.size, size)
            self._free.notify_all()

    def close(self) -> None:
        """Kill every worker, busy ones too."""
        with self._free:
            idle, busy = self._idle.copy(), self._busy.copy()
            self._idle.clear()
        for worker in idle:
            worker.kill()
        for worker in busy:
            worker.stop()  # its own thread finds the pipe closed and cleans up

    def forget(self) -> None:
        """Drop workers of the process this one was forked from; the lock may be held forever."""
        for worker in [*self._idle, *self._busy]:
            worker.forget()
        self._idle.clear()
        self._busy.clear()

    def _acquire(self) -> _Worker:
        with self._free:
            while not self._idle and len(self._busy) + self._starting >= self.size:
                self._free.wait()
            if self._idle:
                worker = self._idle.pop()
                self._busy.add(worker)
                return worker
            self._starting += 1
        started: list[_Worker] = []
        try:
            started.append(_Worker())
        except (_WorkerDied, _WorkerTooSlow) as error:
            raise RuntimeError(
                f"the answer worker could not start with {sys.executable}; "
                "its own error is on stderr"
            ) from error
        finally:
            with self._free:
                self._starting -= 1
                self._busy.update(started)
                if not started:
                    self._free.notify()
        return started[0]

    def _release(self, worker: _Worker, keep: bool) -> None:
        if not keep:
            worker.kill()
        with self._free:
            self._busy.discard(worker)
            if keep:
                self._idle.append(worker)
            self._free.notify()


_pool: AnswerPool | None = None
_pool_lock = threading.Lock()


def shared_pool() -> AnswerPool:
    """This process's pool, made on first use; a forked child gets its own, never its parent's."""
    global _pool
    pool = _pool
    if pool is not None:
        return pool
    with _pool_lock:
        if _pool is None:
            _pool = AnswerPool(size=max(1, min(4, os.cpu_count() or 1)))
            atexit.register(_pool.close)
        return _pool


def _after_fork() -> None:
    global _pool, _pool_lock
    _pool_lock = threading.Lock()
    if _pool is not None:
        atexit.unregister(_pool.close)
        _pool.forget()
        _pool = None


os.register_at_fork(after_in_child=_after_fork)
