"""A server of one's own: started, waited for, and stopped whatever happens.

Owns the life of a `thinkgate serve` child process. It talks to it only by command line, output
and HTTP, as any other parent would.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from thinkgate.errors import ServerError

__all__ = ["LocalServer", "local_server"]

ANNOUNCED = re.compile(r"^thinkgate: serving (.+) \(digest .*\) on (http://\S+)$", re.MULTILINE)
POLL_SECONDS = 0.05
STOP_SECONDS = 20
LOG_LINES = 15


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A running server."""

    base_url: str
    """Ends in `/v1`, as OpenAI clients want it."""
    model: str
    process: subprocess.Popen[bytes]


@contextmanager
def local_server(
    target: str | Path,
    *,
    allow_ungated: bool = False,
    registry: Path | None = None,
    extra: Sequence[str] = (),
    log: Path | None = None,
    timeout: float = 300,
) -> Iterator[LocalServer]:
    """Serve `target` on a free loopback port for the length of a `with` block.

    ServerError, with the end of its log, when it does not start. It does not outlive this process,
    even one that is killed: it stops when its standard input closes.
    """
    command = [sys.executable, "-m", "thinkgate", "serve", str(target), "--port", "0"]
    command += ["--stop-with-stdin"]
    command += ["--allow-ungated"] if allow_ungated else []
    command += ["--registry", str(registry)] if registry else []
    command += extra
    with tempfile.TemporaryDirectory(prefix="thinkgate-") as scratch:
        file = log or Path(scratch, "server.log")
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Its own session: Ctrl-C reaches only us, and we stop it when we are ready.
                start_new_session=True,
            )
        try:
            yield _wait(process, file, time.monotonic() + timeout, timeout)
        finally:
            _stop(process)


def _wait(
    process: subprocess.Popen[bytes], log: Path, deadline: float, timeout: float
) -> LocalServer:
    server: LocalServer | None = None
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerError(_died(process.returncode, log))
        if server is None:
            found = ANNOUNCED.search(log.read_text(encoding="utf-8", errors="replace"))
            server = LocalServer(found[2], found[1], process) if found else None
        elif _ready(server):
            return server
        time.sleep(POLL_SECONDS)
    raise ServerError(f"the server was not ready after {timeout:.0f} s; its log ends:\n{_end(log)}")


def _ready(server: LocalServer) -> bool:
    try:
        with urllib.request.urlopen(f"{server.base_url.removesuffix('/v1')}/ready", timeout=5):
            return True
    except urllib.error.HTTPError as error:  # it answers, but not yet with 200
        error.close()
        return False
    except OSError:
        return False


def _died(code: int, log: Path) -> str:
    """Its own sentence when it had one, else the end of its log."""
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    own = [line for line in text.splitlines() if line.startswith("thinkgate: ")]
    if code == ServerError.exit_code and own:
        return own[-1].removeprefix("thinkgate: ")
    return f"the server ended with exit code {code} before it was ready; its log ends:\n{_end(log)}"


def _end(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-LOG_LINES:]) or "(empty)"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask, wait, then kill the whole session; a second Ctrl-C goes straight to the kill."""
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):  # then it is killed
                process.wait(STOP_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdin is not None:
            process.stdin.close()
