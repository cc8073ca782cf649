"""Around every request: its id and key, what it may use, the headers of every response, its record.

Plain ASGI: anything that wraps requests deeper hides client disconnects from the handlers. It
knows nothing of what is asked.
"""

import asyncio
import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thinkgate_serve.auth import ApiKey
from thinkgate_serve.failures import error_body
from thinkgate_serve.limits import Reason, Refusal
from thinkgate_serve.logs import EXCHANGE, TIMEOUT, Exchange
from thinkgate_serve.page import is_page
from thinkgate_serve.service import Service
from thinkgate_serve.traces import trace_of

__all__ = ["OPEN_PATHS", "Envelope"]

CLIENT_GONE = 499
TIMED_OUT = 504

OPEN_PATHS = frozenset({"/health", "/ready", "/metrics", "/version"})
"""They need no key: supervisors, load balancers and Prometheus ask for them."""

DOCS = frozenset({"/docs", "/redoc", "/openapi.json"})
"""Nor do these: a browser has no key to send, and they say no more than our own repository."""

BODY_SECONDS = 60.0
"""How long a body may take to arrive: a request holds its place in the queue meanwhile."""

UNAUTHORIZED = "unauthorized"
FORBIDDEN = "forbidden"


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
        headers = Headers(scope=scope)
        exchange = Exchange(
            _request_id(headers.get("x-request-id")), scope["method"], scope["path"]
        )
        exchange.status = CLIENT_GONE
        scope.setdefault("state", {})["request_id"] = exchange.request_id
        token = EXCHANGE.set(exchange)
        exchange.send = send
        send = self._with_headers(exchange, send)
        if scope["method"] == "HEAD":  # what GET says, whose body the HTTP server leaves out
            scope = {**scope, "method": "GET"}
        try:
            refused = self._refuse(exchange, headers)
            if refused is not None:
                await refused(scope, receive, send)
            else:
                await self._app(scope, self._limited(exchange, headers, receive), send)
        except Exception as error:
            exchange.status = 500
            exchange.error = type(error).__name__
            raise
        finally:
            EXCHANGE.reset(token)
            self._finish(exchange, headers, scope)

    def _refuse(self, exchange: Exchange, headers: Headers) -> Response | None:
        """A response instead of an answer, or None when the request may go on."""
        keyring = self._service.keyring
        key = None
        if keyring and not _is_open(exchange.path):
            key = keyring.find(headers.get("authorization"))
            if key is None:
                return self._unauthorized(exchange, headers)
            exchange.key = key.name
        if exchange.path.startswith("/admin/") and not (key is not None and key.admin):
            return self._forbidden(exchange)
        if self._is_generation(exchange):
            return self._admit(exchange, key)
        return None

    def _is_generation(self, exchange: Exchange) -> bool:
        path = exchange.path
        return exchange.method == "POST" and path.startswith("/v1/") and path in self._paths

    def _admit(self, exchange: Exchange, key: ApiKey | None) -> Response | None:
        admitted = self._service.limiter.admit(key)
        if isinstance(admitted, Refusal):
            self._service.metrics.refused.labels(admitted.reason.value).inc()
            return _come_back(admitted)
        exchange.admission = admitted
        seconds = self._service.settings.request_timeout
        if seconds is not None:
            exchange.deadline = asyncio.get_running_loop().time() + seconds
        settings = self._service.settings
        if settings.log_prompts or settings.traces is not None:
            exchange.body = bytearray()
        if settings.traces is not None:
            exchange.completions = {}
        if key is not None:
            self._service.metrics.key_requests.labels(key.name).inc()
        return None

    def _unauthorized(self, exchange: Exchange, headers: Headers) -> Response:
        self._service.metrics.refused.labels(UNAUTHORIZED).inc()
        given = "authorization" in headers
        exchange.error = "wrong API key" if given else "no API key"
        message = (
            "the API key is not one of this server's"
            if given
            else "no API key; send it in the header 'Authorization: Bearer KEY'"
        )
        body = error_body(401, message, None, "invalid_api_key")
        return JSONResponse(body, 401, headers={"www-authenticate": "Bearer"})

    def _forbidden(self, exchange: Exchange) -> Response:
        self._service.metrics.refused.labels(FORBIDDEN).inc()
        exchange.error = "no admin key"
        message = (
            f"{exchange.path} needs an admin key; make one with 'thinkgate api-keys add NAME "
            "--admin --file FILE' and start the server with --keys FILE"
        )
        return JSONResponse(error_body(403, message, None, "admin_key_required"), 403)

    def _with_headers(self, exchange: Exchange, send: Send) -> Send:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                found = MutableHeaders(scope=message)
                model = exchange.model or self._service.deployment.default
                found.update(model.headers() | {"x-request-id": exchange.request_id})
                if exchange.admission is not None:
                    found.update(self._service.limiter.headers(exchange.admission))
                if exchange.status == TIMED_OUT:
                    # What took too long will again; OpenAI's clients would try two more times.
                    found["x-should-retry"] = "false"
            await send(message)

        return send_with_headers

    def _finish(self, exchange: Exchange, headers: Headers, scope: Scope) -> None:
        service = self._service
        if exchange.model is not None:
            exchange.release()
            service.metrics.model_requests.labels(**exchange.model.card.labels()).inc()
        if exchange.admission is not None:
            service.limiter.release(exchange.admission)
            service.limiter.used(exchange.admission, exchange.tokens)
            if exchange.key is not None:
                service.metrics.key_tokens.labels(exchange.key).inc(exchange.tokens)
        path = exchange.path if exchange.path in self._paths else "other"
        service.metrics.requests.labels(path, str(exchange.status)).inc()
        service.metrics.timeouts.inc(exchange.error == TIMEOUT)
        self._trace(exchange, scope["state"].get("error"))
        if not _is_open(exchange.path) or exchange.status >= 500:
            self._log(exchange)
        if service.settings.tracing is not None and self._is_generation(exchange):
            service.settings.tracing.record(exchange, headers)

    def _log(self, exchange: Exchange) -> None:
        try:
            self._service.log.write(exchange)
        except OSError:  # a full disk, a closed pipe: no reason to fail requests
            self._service.metrics.log_lines_lost.inc()

    def _trace(self, exchange: Exchange, error: str | None) -> None:
        """Hand the request to the trace store; what was kept for that alone is not logged."""
        settings = self._service.settings
        if settings.traces is not None and (trace := trace_of(exchange, error)) is not None:
            settings.traces.record(trace)
        if not settings.log_prompts:
            exchange.body = None

    def _limited(self, exchange: Exchange, headers: Headers, receive: Receive) -> Receive:
        """`receive` with limits on the body's size and on how long it may take to come."""
        limit = self._service.settings.max_body_bytes
        declared = headers.get("content-length", "")
        refused = HTTPException(413, f"the body is larger than {limit} bytes")
        received, complete = 0, False
        until = asyncio.get_running_loop().time() + BODY_SECONDS
        if exchange.deadline is not None:
            until = min(until, exchange.deadline)

        async def limited() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            if declared.isdigit() and int(declared) > limit:
                raise refused
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(408, "the body did not arrive in time") from error
            part = message.get("body", b"")
            received += len(part)
            complete = not message.get("more_body", False)
            if received > limit:
                raise refused
            if exchange.body is not None:
                exchange.body += part
            return message

        return limited


def _is_open(path: str) -> bool:
    """Whether it needs no key; and while it succeeds it is nothing to log."""
    return path in OPEN_PATHS or path in DOCS or is_page(path)


def _come_back(refusal: Refusal) -> Response:
    """429 or 503, as OpenAI words them."""
    code = refusal.reason.value
    kind = "server_error"
    if refusal.status == 429:
        code = "rate_limit_exceeded"
        kind = "tokens" if refusal.reason is Reason.TOKEN_RATE else "requests"
    body = error_body(refusal.status, refusal.message, None, code)
    body["error"]["type"] = kind
    return JSONResponse(body, refusal.status, headers={"retry-after": str(refusal.retry_after)})


def _request_id(given: str | None) -> str:
    """The client's own id when it is a plain token, else a fresh one."""
    if given is not None and re.fullmatch(r"[A-Za-z0-9._-]{1,128}", given):
        return given
    return uuid.uuid4().hex
