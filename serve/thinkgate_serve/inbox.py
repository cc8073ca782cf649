"""From the engine process to vLLM's output processor, at less cost than vLLM's own way.

libzmq receives in a thread of its own and wakes the event loop through a second descriptor, pyzmq
asks it again and again whether something has come, and vLLM hands that on through a queue to
another task: together half of what a lone stream's token costs the server. Here the event loop
reads what the engine sends. Owns that protocol, ZMTP 3.0 (rfc.zeromq.org/spec/23); knows nothing of
what is in the messages.
"""

import asyncio
import logging
import socket as sockets
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Inbox", "process_on_arrival", "receiving_directly"]

log = logging.getLogger(__name__)

IPC = "ipc://"
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
"""ZMTP 3.0, no authentication."""
READY = b"\x04\x1a\x05READY\x0bSocket-Type\0\0\0\x04PULL"
MORE, LONG, COMMAND = 1, 2, 4
"""Of a frame's first byte: the message goes on in the next frame; the length has 8 bytes, not 1;
it is part of no message."""


@contextmanager
def receiving_directly() -> Iterator[None]:
    """In the block vLLM makes clients that receive from engines of this machine by an `Inbox`.

    Those that receive over a network are left as they are.
    """
    import zmq
    import zmq.asyncio
    from vllm.v1.engine import core_client

    make = core_client.make_zmq_socket

    def make_socket(context: Any, path: str, kind: Any, *args: Any, **kwargs: Any) -> Any:
        direct = path.startswith(IPC) and isinstance(context, zmq.asyncio.Context)
        if not direct or kind != zmq.PULL:
            return make(context, path, kind, *args, **kwargs)
        # vLLM looks for its class; it is never bound.
        socket: Any = context.socket(kind)
        Inbox(path.removeprefix(IPC)).stand_in_for(socket)
        socket.getsockopt = {zmq.LAST_ENDPOINT: path.encode()}.__getitem__
        return socket

    core_client.make_zmq_socket = make_socket
    try:
        yield
    finally:
        core_client.make_zmq_socket = make


class Inbox:
    """A ZeroMQ PULL socket at a path; one task receives from it."""

    def __init__(self, path: str) -> None:
        self._listener = sockets.socket(sockets.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(128)
        self._server: asyncio.Server | None = None
        self._peers: set[_Peer] = set()
        self._messages: deque[list[_Frame]] = deque()
        self._arrived: asyncio.Future[None] | None = None

    async def recv_multipart(self, *, copy: bool = False) -> list["_Frame"]:
        """The next message, like pyzmq's method; nothing is copied in either case."""
        loop = asyncio.get_running_loop()
        if self._server is None:
            self._server = await loop.create_unix_server(
                lambda: _Peer(self._peers, self._deliver), sock=self._listener
            )
        while not self._messages:
            self._arrived = loop.create_future()
            await self._arrived
        return self._messages.popleft()

    def stand_in_for(self, socket: Any) -> None:
        """Be what receives for a `zmq.asyncio.Socket`, and close with it."""
        close = socket.close

        def close_both(linger: int | None = None) -> None:
            self.close()
            close(linger)

        socket.recv_multipart, socket.close = self.recv_multipart, close_both

    def close(self) -> None:
        """In the event loop, or before anything was received."""
        if self._server is not None:
            self._server.close()
        self._listener.close()
        for peer in list(self._peers):
            peer.transport.abort()

    def _deliver(self, message: list["_Frame"]) -> None:
        self._messages.append(message)
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)


class _Frame(bytes):
    """As pyzmq has them."""

    @property
    def buffer(self) -> bytes:
        return self


class _Peer(asyncio.Protocol):
    """A PUSH socket that has connected."""

    transport: Any
    """uvloop's are no `asyncio.Transport`."""

    def __init__(self, peers: "set[_Peer]", deliver: Callable[[list[_Frame]], None]) -> None:
        self._peers, self._deliver = peers, deliver
        self._greeted = False
        self._came = bytearray()
        self._message: list[_Frame] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._peers.add(self)
        self.transport.write(GREETING)

    def connection_lost(self, exc: Exception | None) -> None:
        self._peers.discard(self)

    def data_received(self, data: bytes) -> None:
        at_start = self._greeted and not self._came and not self._message
        if at_start and data[0] == 0 and len(data) == 2 + data[1]:  # one short message: the rule
            self._deliver([_Frame(data[2:])])
            return
        self._came += data
        while self._take():
            pass

    def _take(self) -> bool:
        """Take one thing off what came; False when none has come whole."""
        came = self._came
        if not self._greeted:
            if len(came) < len(GREETING):
                return False
            del came[: len(GREETING)]
            self._greeted = True
            self.transport.write(READY)
            return True
        flags = came[0] if came else 0
        start = 9 if flags & LONG else 2
        end = start + int.from_bytes(came[1:start], "big")
        if len(came) < max(start, end):
            return False
        if not flags & COMMAND:
            self._message.append(_Frame(came[start:end]))
            if not flags & MORE:
                message, self._message = self._message, []
                self._deliver(message)
        del came[:end]
        return True


def process_on_arrival(llm: Any) -> None:
    """Let the task that receives the engine's messages process them, without a queue and a second
    task in between; an `AsyncLLM` that counts or caches on the way, or has begun, is left as it is.
    """
    if llm.log_stats or llm.renderer.mm_processor_cache is not None or llm.output_handler:
        return
    arrivals = _Arrivals(llm)
    llm.engine_core.outputs_queue = arrivals
    llm._run_output_handler = arrivals.begin


class _Arrivals:
    """In place of vLLM's queue of outputs, and of the task that reads it."""

    def __init__(self, llm: Any) -> None:
        self._llm = llm

    def begin(self) -> None:
        if self._llm.output_handler is None:
            # vLLM holds the engine for dead when this is done.
            self._llm.output_handler = asyncio.get_running_loop().create_future()
            self._llm.engine_core._ensure_output_queue_task()

    def put_nowait(self, outputs: Any) -> None:
        llm = self._llm
        try:
            if isinstance(outputs, Exception):
                raise llm.engine_core._format_exception(outputs)
            # What it says must be aborted is nothing: vLLM is given no stop strings.
            llm.output_processor.process_outputs(outputs.outputs, outputs.timestamp, None)
            llm.output_processor.update_scheduler_stats(outputs.scheduler_stats)
        except Exception as error:
            if not isinstance(outputs, Exception):
                log.exception("what the engine sent could not be processed")
            if not llm.output_handler.done():
                llm.output_handler.set_result(None)
            llm.output_processor.propagate_error(error)
