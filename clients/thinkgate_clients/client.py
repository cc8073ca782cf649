"""Asking an OpenAI-compatible server: thin clients, blocking and async, over the `openai` package.

Owns where and how to ask, and what kind of failure a failed request is. How a completion is read
is `reply.py`'s.

    with Client("http://127.0.0.1:8000/v1") as client:
        reply = client.ask("7+8-6+3", max_tokens=96)
        print(reply.reasoning, reply.answer, reply.status)
"""

import inspect
import json
import os
import ssl
import time
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, cached_property
from types import SimpleNamespace
from typing import Any, Self
from urllib.parse import urlsplit

import httpx2
import openai

from thinkgate.console import printable
from thinkgate.errors import ConfigError, EndpointError
from thinkgate.format import THINK, Tags, ThinkSplitter
from thinkgate_clients.reply import (
    AnswerText,
    Consensus,
    Event,
    Finished,
    Reading,
    ReasoningText,
    Reply,
    Usage,
)

__all__ = [
    "AnswerText",
    "AsyncClient",
    "Client",
    "Consensus",
    "Event",
    "Failure",
    "Finished",
    "Messages",
    "ModelInfo",
    "ReasoningText",
    "Reply",
    "RequestFailed",
    "Usage",
    "key_from",
]

STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}

OPTIONS = {"timeout": "timeout", "extra_headers": "headers", "extra_query": "params"}
"""The SDK's parameters that do not go into the body, and what its `post` calls them."""

Messages = str | Sequence[Mapping[str, Any]]
"""A question, or a conversation in OpenAI's form."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model the server offers; the digest only where a thinkgate server tells it."""

    id: str
    digest: str | None


class Failure(StrEnum):
    """What a failed request says about the next one."""

    UNREACHABLE = "unreachable"
    """No connection, or it broke: the server is down."""

    REFUSED = "refused"
    """Wrong key, no permission, unknown model or address: no request will succeed."""

    REJECTED = "rejected"
    """This request is at fault, for example a prompt longer than the context."""

    FAILING = "failing"
    """The server is overloaded, failed inside or did not answer in time, retries included."""


class RequestFailed(EndpointError):
    """A request that failed for good; `failure` says what to expect of others.

    `code` and `param` are the server's own, as OpenAI's API names them.
    """

    def __init__(
        self,
        message: str,
        failure: Failure,
        *,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.failure = failure
        self.code = code
        self.param = param


def key_from(variable: str | None) -> str | None:
    """The API key in an environment variable; no key goes anywhere unless its variable is named."""
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(f"--api-key-env {variable}: the environment has no such variable")
    return key


class _Base:
    """What both clients share. `model` may be left out where the server offers one model.

    Requests are repeated `max_retries` times with growing pauses on 429, 5xx, time-outs and broken
    connections. `prefilled` and `tags` matter for servers that leave the thought in the text.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        max_retries: int = 2,
        prefilled: bool = False,
        tags: Tags = THINK,
    ) -> None:
        self.base_url = _normal_url(base_url)
        self._model = model
        self._prefilled = prefilled
        self._tags = tags
        self._settings: dict[str, Any] = {
            "base_url": self.base_url,
            "api_key": api_key
            or "none",  # the SDK wants some key; a server without keys ignores it
            "timeout": timeout,
            "max_retries": max_retries,
        }

    def _posted(self, prompt: Messages, model: str, sampling: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the SDK's `post`, for an answer in one piece.

        Its `create` would walk the body and build models of the response, which takes longer than
        all else a client does.
        """
        given = {key: value for key, value in sampling.items() if value is not None}
        options = {of: given.pop(name) for name, of in OPTIONS.items() if name in given}
        more = given.pop("extra_body", {})
        body = {"messages": _messages(prompt), "model": model, **given, **more}
        return {
            "path": "/chat/completions",
            "body": body,
            "options": options,
            "cast_to": httpx2.Response,
        }

    def _read(self, response: httpx2.Response, started: float) -> Reply:
        try:
            completion = json.loads(response.content, object_hook=lambda d: SimpleNamespace(**d))
        except (ValueError, RecursionError) as error:
            raise ValueError("the response is not a chat completion") from error
        return self._reading(response.headers, started).whole(completion)

    def _request(self, prompt: Messages, model: str, sampling: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the SDK's `create`; what it does not know goes into the body as it is."""
        known = {k: v for k, v in sampling.items() if k in _sdk_parameters() and v is not None}
        body = {k: v for k, v in sampling.items() if k not in _sdk_parameters() and v is not None}
        return {
            **known,
            "messages": _messages(prompt),
            "model": model,
            "extra_body": {**known.get("extra_body", {}), **body} or None,
        }

    def _reading(self, headers: Mapping[str, str], started: float) -> Reading:
        return Reading(ThinkSplitter(self._prefilled, self._tags), headers, started)

    def _only(self, models: list[ModelInfo]) -> str:
        if len(models) != 1:
            names = ", ".join(model.id for model in models) or "no model"
            raise EndpointError(f"{self.base_url} offers {names}; choose one with --model")
        return models[0].id

    def _failed(self, error: Exception) -> RequestFailed:
        code, param = getattr(error, "code", None), getattr(error, "param", None)
        return RequestFailed(*_explain(error, self.base_url), code=code, param=param)


class Client(_Base):
    """Blocking client; see `ask` and `stream`."""

    @cached_property
    def _sdk(self) -> openai.OpenAI:
        return openai.OpenAI(**self._settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sdk.close()

    def model(self) -> str:
        """The model asked; looked up once where none was named."""
        if self._model is None:
            self._model = self._only(self.models())
        return self._model

    def models(self) -> list[ModelInfo]:
        """What the server offers."""
        try:
            return [_model_info(model) for model in self._sdk.models.list()]
        except ERRORS as error:
            raise self._failed(error) from error

    def ask(self, prompt: Messages, **sampling: Any) -> Reply:
        """Ask and wait; RequestFailed after the retries. Unknown parameters go to the server."""
        request = self._posted(prompt, self.model(), sampling)
        started = time.perf_counter()
        try:
            return self._read(self._sdk.post(**request), started)
        except ERRORS as error:
            raise self._failed(error) from error

    def stream(self, prompt: Messages, **sampling: Any) -> Generator[Event, None, None]:
        """Ask and yield text as it comes, `Finished` last; closing the iterator cancels."""
        request = self._request(prompt, self.model(), sampling) | STREAMED
        started = time.perf_counter()
        try:
            raw = self._sdk.chat.completions.with_raw_response.create(**request)
            reading = self._reading(raw.headers, started)
            with raw.parse() as chunks:
                for chunk in chunks:
                    yield from reading.feed(chunk)
            yield from reading.finish()
        except ERRORS as error:
            raise self._failed(error) from error


class AsyncClient(_Base):
    """The same for asyncio; cancelling the task cancels the generation."""

    @cached_property
    def _sdk(self) -> openai.AsyncOpenAI:
        # One context for all clients: to read the certificates takes longer than many requests.
        return openai.AsyncOpenAI(
            **self._settings,
            http_client=openai.DefaultAsyncHttpxClient(
                base_url=self.base_url, verify=_certificates()
            ),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if "_sdk" in vars(self):  # one that was never asked has nothing open
            await self._sdk.close()

    async def model(self) -> str:
        """The model asked; looked up once where none was named."""
        if self._model is None:
            self._model = self._only(await self.models())
        return self._model

    async def models(self) -> list[ModelInfo]:
        """What the server offers."""
        try:
            return [_model_info(model) async for model in self._sdk.models.list()]
        except ERRORS as error:
            raise self._failed(error) from error

    async def ask(self, prompt: Messages, **sampling: Any) -> Reply:
        """Ask and wait; RequestFailed after the retries. Unknown parameters go to the server."""
        request = self._posted(prompt, await self.model(), sampling)
        started = time.perf_counter()
        try:
            return self._read(await self._sdk.post(**request), started)
        except ERRORS as error:
            raise self._failed(error) from error

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The server's response to a chat request, as it is; RequestFailed after the retries."""
        request = {"path": "/chat/completions", "body": body, "cast_to": httpx2.Response}
        try:
            response = json.loads((await self._sdk.post(**request)).content)
        except ERRORS as error:
            raise self._failed(error) from error
        if not isinstance(response, dict):
            raise self._failed(ValueError("the response is not a chat completion"))
        return response

    async def stream(self, prompt: Messages, **sampling: Any) -> AsyncGenerator[Event, None]:
        """Ask and yield text as it comes, `Finished` last; closing the iterator cancels."""
        request = self._request(prompt, await self.model(), sampling) | STREAMED
        started = time.perf_counter()
        try:
            raw = await self._sdk.chat.completions.with_raw_response.create(**request)
            reading = self._reading(raw.headers, started)
            async with raw.parse() as chunks:
                async for chunk in chunks:
                    for event in reading.feed(chunk):
                        yield event
            for event in reading.finish():
                yield event
        except ERRORS as error:
            raise self._failed(error) from error


# ValueError: what came back is not JSON, or not a chat completion.
ERRORS = (openai.OpenAIError, ValueError)


def _messages(prompt: Messages) -> Sequence[Mapping[str, Any]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


@cache
def _certificates() -> ssl.SSLContext:
    return httpx2.create_ssl_context()


@cache
def _sdk_parameters() -> frozenset[str]:
    from openai.resources.chat import Completions

    return frozenset(inspect.signature(Completions.create).parameters) - {"self"}


def _model_info(model: Any) -> ModelInfo:
    extra: dict[str, Any] = model.model_extra or {}
    return ModelInfo(model.id, extra.get("model_digest") or extra.get("digest"))


def _normal_url(url: str) -> str:
    """`url` with its scheme checked and `/v1` added where it has no path."""
    path = ""
    try:
        parts = urlsplit(url)
        path = parts.path.strip("/")
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        good = good and not any(c.isspace() for c in url)
    except ValueError:  # half an IPv6 address, a port that is none
        good = False
    if not good:
        raise EndpointError(f"'{url}' is not a web address; write it as http://127.0.0.1:8000/v1")
    return url.rstrip("/") if path else url.rstrip("/") + "/v1"


def _explain(error: Exception, url: str) -> tuple[str, Failure]:
    """One sentence about a failed request, and what to expect of the next one."""
    match error:
        case openai.APITimeoutError():
            return f"{url} did not answer in time", Failure.FAILING
        case openai.APIConnectionError():
            reason = str(error.__cause__ or error)
            return f"cannot reach {url}: {reason}; is the server running?", Failure.UNREACHABLE
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return f"{url} refuses the API key: {_said(error)}", Failure.REFUSED
        case openai.NotFoundError():
            return f"{url} does not know the model or address: {_said(error)}", Failure.REFUSED
        case openai.RateLimitError():
            return f"{url} turns requests away (429): {_said(error)}", Failure.FAILING
        case openai.APIStatusError() if error.status_code < 500:
            said = f"{url} rejects the request ({error.status_code}): {_said(error)}"
            return said, Failure.REJECTED
        case openai.APIStatusError():
            return f"{url} failed ({error.status_code}): {_said(error)}", Failure.FAILING
        case _:
            return f"{url}: {_said(error)}", Failure.FAILING


def _said(error: Exception) -> str:
    """The server's own words, one line."""
    body = getattr(error, "body", None)
    said = body.get("message") if isinstance(body, dict) else None
    return " ".join(printable(str(said or error)).split())[:300]
