"""Sending while watching the other end: server-sent events, and work that a disconnect cancels.

Owns the transport of a response. It does not know what is in the events.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from thinkgate_serve.failures import ApiError, error_body
from thinkgate_serve.logs import EXCHANGE, TIMEOUT

__all__ = ["ClientGone", "EventStream", "until_disconnect"]

T = TypeVar("T")

LAST_WORD_SECONDS = 1
"""How long a reader that has stopped reading is given to hear why its stream ends."""


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


class EventStream(Response):
    """A `text/event-stream` of ready-made events; closes its source whatever happens."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str] | None = None
    ) -> None:
        # Proxies that buffer would turn the stream into one late lump.
        super().__init__(
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})}
        )
        del self.headers["content-length"]
        self.events = events
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(receive, self._send(send))
        except ClientGone:
            return
        except ApiError as error:
            if not self._begun:
                raise
            body = json.dumps(error_body(error.status, error.message, error.param, error.code))
            last = {"type": "http.response.body", "body": f"data: {body}\n\n".encode()}
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORD_SECONDS):
                    await send(last)

    async def _send(self, send: Send) -> None:
        async with aclosing(self.events) as events:
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            self._begun = True
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
