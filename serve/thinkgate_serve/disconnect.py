"""Working while watching the other end: what a disconnect cancels, and what a time limit does."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Message, Receive

from thinkgate_serve.failures import ApiError
from thinkgate_serve.logs import EXCHANGE, TIMEOUT

__all__ = ["ClientGone", "until_disconnect"]

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection before the response was complete."""


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; it is cancelled and ClientGone raised when the client disconnects, or
    ApiError 504 when the request's time is over.

    Call it only after the request's body has been read.
    """
    exchange = EXCHANGE.get()
    deadline = exchange.deadline if exchange else None
    left = None if deadline is None else max(0, deadline - asyncio.get_running_loop().time())
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, watch}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if watch.done():
            raise ClientGone
        if exchange is not None:
            exchange.error = TIMEOUT
        message = "the request took longer than this server allows; ask for fewer tokens"
        raise ApiError(504, message, code=TIMEOUT)
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()
