"""The server process: its socket, its signals, its end.

Owns how the process starts listening and how it stops: requests in flight finish, the engine is
stopped, and the exit code says which end it was. It does not know what is served.
"""

import asyncio
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from thinkgate.errors import ServerError
from thinkgate_serve.service import Service

__all__ = [
    "ENGINE_DIED",
    "Server",
    "bind",
    "end_with_stdin",
    "make_server",
    "serve",
    "stop_while_loading",
]

ENGINE_DIED = 70
"""Exit code (EX_SOFTWARE): start the server again."""

WATCH_SECONDS = 0.1

KEEP_ALIVE_SECONDS = 75
"""Longer than load balancers keep an idle connection (60 by habit): who closes first must not be
the server, or a request that is just being sent fails. Uvicorn's 5 do, also when the machine is so
busy that the event loop comes late."""


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


def make_server(
    app: FastAPI, *, announce: Callable[[], None], drain_seconds: int, drain_delay: int = 0
) -> "Server":
    """A server of `app`, not yet running; it calls `announce` once it accepts."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        ws="none",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    return Server(config, app.state.service, announce, drain_seconds, drain_delay)


def serve(server: "Server", sock: socket.socket) -> int:
    """Serve until SIGTERM, SIGINT or the engine's death; the exit code."""
    server.run(sockets=[sock])
    if server.engine_died:
        print(
            "thinkgate: the engine died, its log is above; start the server again", file=sys.stderr
        )
        return ENGINE_DIED
    return 0


class Server(uvicorn.Server):
    """Uvicorn that announces itself when it accepts, drains before it closes its door, and stops
    when the engine is dead."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        announce: Callable[[], None],
        drain_seconds: int,
        drain_delay: int,
    ) -> None:
        super().__init__(config)
        self.engine_died = False
        self._service = service
        self._announce = announce
        self._limiter = service.limiter
        self._drain_seconds = drain_seconds
        self._drain_delay = drain_delay
        self._watching: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self._service.deployment.warm_up()
        await super().startup(sockets)
        if self.started:
            self._watching = asyncio.create_task(self._watch())
            self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._watching is not None:
            self._watching.cancel()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: object) -> None:
        """First signal: finish what runs, take nothing new. A second Ctrl-C does not wait.

        Uvicorn would stop listening at once, and health checks would fail before the work is done;
        and it would raise the signal again at the end, before the engine is stopped.
        """
        if self._limiter.leaving and sig == signal.SIGINT:
            self.force_exit = True
            self.should_exit = True
        self._limiter.leaving = True
        self._limiter.draining |= self._drain_delay == 0

    async def _watch(self) -> None:
        """Until the engine is dead, or draining is done or has taken too long."""
        loop = asyncio.get_running_loop()
        left_at = until = math.inf
        while not self._service.dead:
            if self._limiter.leaving:
                left_at = min(left_at, loop.time())
                until = left_at + self._drain_delay + self._drain_seconds
                self._limiter.draining |= loop.time() >= left_at + self._drain_delay
            if self._limiter.draining and (self._limiter.in_flight == 0 or loop.time() >= until):
                break
            await asyncio.sleep(WATCH_SECONDS)
        self.engine_died = self._service.dead
        self._limiter.leaving = self._limiter.draining = True
        left = 0 if until == math.inf else math.ceil(until - loop.time())
        self.config.timeout_graceful_shutdown = max(1, left)
        self.should_exit = True
