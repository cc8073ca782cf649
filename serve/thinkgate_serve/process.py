"""The server process: its socket, its signals, its end.

Owns how the process starts listening and how it stops: requests in flight finish, the engine is
stopped, and the exit code says which end it was. It does not know what is served.
"""

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from thinkgate.errors import ServerError
from thinkgate_serve.engine import Engine

__all__ = ["ENGINE_DIED", "bind", "end_with_stdin", "serve", "stop_while_loading"]

ENGINE_DIED = 70
"""Exit code (EX_SOFTWARE): start the server again."""

WATCH_SECONDS = 0.25


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; ServerError when the address cannot be had.

    It listens at once: two sockets may be bound to one port, but only one may listen.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ServerError(f"--host {host}: {error.strerror}") from error
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        sock.listen(2048)
    except OSError as error:
        sock.close()
        reason = os.strerror(error.errno or 0).lower()
        raise ServerError(
            f"cannot listen on {host}:{port} ({reason}); "
            "choose another with --port, or --port 0 for any free one"
        ) from error
    # A forked engine process must not keep the port open after this one is gone.
    os.register_at_fork(after_in_child=sock.close)
    return sock


def stop_while_loading() -> Callable[[], int | None]:
    """Before there are requests to finish, SIGTERM and Ctrl-C end the process tidily.

    What is returned gives the exit code once one came. Ask it after loading, also after loading
    failed: the exception that a signal raises may be swallowed, or wrapped in another, by the
    imports of thousands of modules.
    """
    asked: list[int] = []

    def stop(number: int, _frame: object) -> None:
        asked.append(128 + number)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return lambda: asked[0] if asked else None


def end_with_stdin() -> None:
    """Stop this process when its standard input closes: its parent, however it died, is gone."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="stdin", daemon=True).start()


def serve(
    app: FastAPI,
    sock: socket.socket,
    engine: Engine,
    *,
    announce: Callable[[], None],
    drain_seconds: int,
) -> int:
    """Serve until SIGTERM, SIGINT or the engine's death; the exit code."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=drain_seconds,
    )
    server = _Server(config, engine, announce)
    server.run(sockets=[sock])
    if server.engine_died:
        print(
            "thinkgate: the engine died, its log is above; start the server again", file=sys.stderr
        )
        return ENGINE_DIED
    return 0


class _Server(uvicorn.Server):
    """Uvicorn that announces itself when it accepts, and stops when the engine is dead."""

    def __init__(
        self, config: uvicorn.Config, engine: Engine, announce: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self.engine_died = False
        self._engine = engine
        self._announce = announce
        self._watch: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._watch = asyncio.create_task(self._watch_engine())
            self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: object) -> None:
        """First signal: finish what runs. Second Ctrl-C: do not wait for it.

        Uvicorn would raise the signal again at the end, before the engine is stopped.
        """
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def _watch_engine(self) -> None:
        while not self._engine.dead:
            await asyncio.sleep(WATCH_SECONDS)
        self.engine_died = True
        self.should_exit = True
