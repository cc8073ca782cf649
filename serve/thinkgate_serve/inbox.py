"""From the engine process to vLLM's output processor, at less cost than vLLM's own way.

pyzmq's asyncio sockets keep futures, timers and options for any number of readers and writers, and
vLLM hands on what they receive through a queue to another task: together a third of what a lone
stream's token costs the server. Knows nothing of what is in the messages.
"""

import asyncio
import logging
from typing import Any

__all__ = ["process_on_arrival", "receive_directly"]

log = logging.getLogger(__name__)


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
        self._arrived: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def recv_multipart(self, *, copy: bool = True) -> list[Any]:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._descriptor, self._wake)
        while True:
            # The descriptor tells only that something came after the socket was found empty, so
            # it is waited for only then (zmq_getsockopt(3), ZMQ_FD).
            if self._plain.get(self._events) & self._any:
                return self._plain.recv_multipart(copy=copy)
            self._arrived = self._loop.create_future()
            await self._arrived

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def close(self, linger: int | None = None) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._descriptor)
        self._close(linger)


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
