"""Working while watching the other end: what a disconnect cancels, and what a time limit does."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.types import Message, Receive

from thinkgate_serve.failures import ApiError
from thinkgate_serve.logs import EXCHANGE, TIMEOUT

__all__ = ["ClientGone", "in_time", "until_disconnect"]


class ClientGone(Exception):
    """The client closed the connection before the response was complete."""


@asynccontextmanager
async def until_disconnect(receive: Receive) -> AsyncGenerator[None]:
    """The block is cancelled and ClientGone raised when the client disconnects, or ApiError 504
    when the request's time is over.

    Enter it only after the request's body has been read.
    """
    task = asyncio.current_task()
    assert task is not None
    cancelling = task.cancelling()
    gone = over = False

    def leave(_: object) -> None:
        nonlocal gone
        if not over:
            gone = True
            task.cancel()

    watch = asyncio.create_task(_disconnected(receive))
    watch.add_done_callback(leave)
    try:
        async with in_time("the request took longer than this server allows; ask for fewer tokens"):
            yield
    except asyncio.CancelledError:
        if gone and task.uncancel() <= cancelling:
            raise ClientGone from None
        raise
    finally:
        over = True
        watch.cancel()


@asynccontextmanager
async def in_time(message: str) -> AsyncGenerator[None]:
    """The block is cancelled and ApiError 504 raised when the current request's time is over."""
    exchange = EXCHANGE.get()
    limit = asyncio.timeout_at(exchange.deadline if exchange else None)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        assert exchange is not None  # who set the deadline
        exchange.error = TIMEOUT
        raise ApiError(504, message, code=TIMEOUT) from error


async def _disconnected(receive: Receive) -> None:
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()
