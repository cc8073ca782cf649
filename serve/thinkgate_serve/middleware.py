"""Around every request: its id, the headers of every response, a limit on bodies, counting.

Plain ASGI: anything that wraps requests deeper hides client disconnects from the handlers. It
knows nothing of what is asked.
"""

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thinkgate_serve.service import Service

__all__ = ["Envelope"]

CLIENT_GONE = 499


class Envelope:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, service: Service, paths: frozenset[str]) -> None:
        self._app = app
        self._service = service
        self._paths = paths
        """Metric labels: a path that is none of ours counts as one, however many there are."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        extra = self._service.headers() | {"x-request-id": request_id}
        status = CLIENT_GONE

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(extra)
            await send(message)

        try:
            await self._app(scope, self._limited(scope, receive), send_with_headers)
        except Exception:
            status = 500
            raise
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._service.metrics.requests.labels(path, str(status)).inc()

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        limit = self._service.settings.max_body_bytes
        declared = Headers(scope=scope).get("content-length", "")
        refused = HTTPException(413, f"the body is larger than {limit} bytes")
        received = 0

        async def limited() -> Message:
            nonlocal received
            if declared.isdigit() and int(declared) > limit:
                raise refused
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise refused
            return message

        return limited


def _request_id(given: str | None) -> str:
    """The client's own id when it is a plain token, else a fresh one."""
    if given is not None and re.fullmatch(r"[A-Za-z0-9._-]{1,128}", given):
        return given
    return uuid.uuid4().hex
