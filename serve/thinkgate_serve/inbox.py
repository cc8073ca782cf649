"""Receiving what the engine process sends, at less cost than pyzmq's asyncio sockets.

Those keep futures, timers and options for any number of readers and writers, which is a quarter of
what a lone stream's token costs the server. Knows nothing of what is in the messages.
"""

import asyncio
from typing import Any

__all__ = ["receive_directly"]


def receive_directly(socket: Any) -> None:
    """Let a `zmq.asyncio.Socket` receive without pyzmq's event handling.

    For a socket that only receives, in one task, which has not begun yet.
    """
    inbox = _Inbox(socket)
    socket.recv_multipart = inbox.recv_multipart
    socket.close = inbox.close


class _Inbox:
    def __init__(self, socket: Any) -> None:
        import zmq

        self._events, self._any = zmq.EVENTS, zmq.POLLIN
        self._plain: Any = zmq.Socket.shadow(socket.underlying)
        self._descriptor: int = self._plain.FD
        self._close = socket.close
        self._arrived = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def recv_multipart(self, *, copy: bool = True) -> list[Any]:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._descriptor, self._arrived.set)
        while True:
            # The descriptor tells only that something came after the socket was found empty, so
            # it is waited for only then (zmq_getsockopt(3), ZMQ_FD).
            self._arrived.clear()
            if self._plain.get(self._events) & self._any:
                return self._plain.recv_multipart(copy=copy)
            await self._arrived.wait()

    def close(self, linger: int | None = None) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._descriptor)
        self._close(linger)
