"""An OpenAI-compatible endpoint that says what a test tells it to, over a real socket.

Not a test: a hand-written fake that client and evaluation tests share.
"""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


@dataclass(frozen=True)
class Says:
    """One completion as the server words it: fields of the message, and what surrounds them."""

    content: str | None
    thought: str | None = None
    """Sent under every name in `names`; None sends nothing."""

    names: Sequence[str] = ("reasoning_content", "reasoning")
    finish: str = "stop"
    usage: dict[str, Any] | None = field(
        default_factory=lambda: {
            "prompt_tokens": 3,
            "completion_tokens": 10,
            "total_tokens": 13,
            "completion_tokens_details": {"reasoning_tokens": 7},
        }
    )
    choice: dict[str, Any] = field(default_factory=dict)
    """More fields of the choice."""

    breaks_off: bool = False
    """A stream that ends before it is finished."""

    pause: float = 0.0
    """Seconds between the pieces of a stream."""


@dataclass(frozen=True)
class Fails:
    """An error response, or none at all for `hang` seconds."""

    status: int = 500
    error: dict[str, Any] = field(default_factory=lambda: {"message": "out of paper"})
    hang: float = 0.0
    body: str | None = None


Script = Callable[[dict[str, Any]], Says | Fails]


class ScriptedEndpoint:
    """Serves `script(request body)` on a free loopback port for the length of a `with` block."""

    def __init__(
        self,
        script: Script,
        *,
        models: Sequence[dict[str, Any]] = ({"id": "scripted"},),
        headers: dict[str, str] | None = None,
    ) -> None:
        self.script = script
        self.models = [{"object": "model", "created": 0, "owned_by": "test", **m} for m in models]
        self.headers = headers or {}
        self.requests: list[dict[str, Any]] = []
        app = Starlette(
            routes=[
                Route("/v1/models", self._list_models),
                Route("/v1/chat/completions", self._complete, methods=["POST"]),
            ]
        )
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._server = uvicorn.Server(
            uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
        )
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"

    def __enter__(self) -> Self:
        self._url = self.base_url
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the endpoint did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def die(self) -> None:
        """Stop at once: open connections break, new ones are refused."""
        self._server.should_exit = True
        self._server.force_exit = True

    def _run(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))

    async def _list_models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": self.models}, headers=self.headers)

    async def _complete(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.requests.append(body | {"_headers": dict(request.headers)})
        said = self.script(body)
        if isinstance(said, Fails):
            await asyncio.sleep(said.hang)
            if said.body is not None:
                return Response(said.body, said.status, media_type="text/html")
            return JSONResponse({"error": said.error}, said.status)
        if body.get("stream"):
            return StreamingResponse(
                _stream(said), media_type="text/event-stream", headers=self.headers
            )
        # Not JSONResponse: it cannot send the lone surrogates that JSON allows.
        text = json.dumps(_whole(said))
        return Response(text, media_type="application/json", headers=self.headers)


def prompt_of(body: dict[str, Any]) -> str:
    """The user's message of a request."""
    return body["messages"][-1]["content"]


def _whole(said: Says) -> dict[str, Any]:
    message = {"role": "assistant", "content": said.content}
    message |= _thought(said, said.thought)
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "scripted",
        "choices": [{"index": 0, "message": message, "finish_reason": said.finish, **said.choice}],
        "usage": said.usage,
    }


async def _stream(said: Says) -> AsyncIterator[str]:
    deltas: list[dict[str, Any]] = [{"role": "assistant"}]
    if said.thought is not None:
        deltas += [_thought(said, piece) for piece in _pieces(said.thought)]
    deltas += [{"content": piece} for piece in _pieces(said.content or "")]
    for delta in deltas:
        yield _event(choices=[{"index": 0, "delta": delta, "finish_reason": None}])
        await asyncio.sleep(said.pause)
    if said.breaks_off:
        return
    yield _event(choices=[{"index": 0, "delta": {}, "finish_reason": said.finish, **said.choice}])
    yield _event(choices=[], usage=said.usage)
    yield "data: [DONE]\n\n"


def _thought(said: Says, text: str | None) -> dict[str, Any]:
    """`text` under each of the names, in the form that goes with it."""
    openrouter = [{"type": "reasoning.text", "text": text, "index": 0}]
    return {name: openrouter if name == "reasoning_details" else text for name in said.names}


def _pieces(text: str) -> list[str]:
    return [text[i : i + 3] for i in range(0, len(text), 3)] or [""]


def _event(**fields: Any) -> str:
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "scripted",
        **fields,
    }
    return f"data: {json.dumps(chunk)}\n\n"
