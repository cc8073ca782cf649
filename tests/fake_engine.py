"""A scripted engine for protocol tests, and one way to ask it something through the application.

It says what it is told, in the pieces it is told.

Each character is one token, so tags are spelled in many tokens and every count is a length.
"""

import asyncio
import copy
import json
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import httpx
from jinja2.exceptions import TemplateError

from thinkgate_serve.app import create_app
from thinkgate_serve.card import Card
from thinkgate_serve.engine import (
    BoundCalls,
    Constraint,
    Delta,
    EngineDead,
    Finish,
    NoSchema,
    RequestRefused,
    Sampling,
)
from thinkgate_serve.model import Deployment
from thinkgate_serve.schemas import no_schema
from thinkgate_serve.service import Settings

CONTEXT = 4000
CARD = Card(name="m", source="m", digest="ab" * 32, decision=None)
HELLO = [{"role": "user", "content": "hi"}]


class CharTokenizer:
    """Token ids are code points."""

    all_special_tokens: Sequence[str] = ()
    chat_template = "{{ messages ~ tools ~ add_generation_prompt ~ enable_thinking }}"
    """What is read below."""
    prefill = False
    knows_tools = True

    def __len__(self) -> int:
        return 0x110000

    def apply_chat_template(self, conversation: Any, /, **kwargs: Any) -> str:
        if any(turn["role"] == "developer" for turn in conversation):
            raise TemplateError("no developers here")
        text = "".join(map(_shown, conversation))
        if kwargs.get("tools") and self.knows_tools:
            text = f"[tools]{json.dumps(kwargs['tools'])}{text}"
        if not kwargs.get("add_generation_prompt"):
            return text
        opened = self.prefill and kwargs.get("enable_thinking", True)
        return text + "[assistant]" + ("<think>\n" if opened else "")

    def get_chat_template(self, chat_template: str | None = None, tools: Any = None) -> str:
        return self.chat_template

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        text.encode()
        return [ord(char) for char in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return "".join(map(chr, token_ids))

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [chr(token) for token in ids]


def _shown(turn: Mapping[str, Any]) -> str:
    """As reasoning models' templates do, without the thought."""
    content = turn["content"].split("</think>")[-1]
    calls = "".join(
        f"[call]{json.dumps(call['function'], ensure_ascii=False)}"
        for call in turn.get("tool_calls", ())
    )
    return f"[{turn['role']}]{content}{calls}"


def pieces(text: str, *cuts: int, finish: Finish = Finish.STOP) -> list[Delta]:
    """`text` in deltas cut at the given places; the last one finishes."""
    edges = [0, *cuts, len(text)]
    parts = [text[a:b] for a, b in pairwise(edges)]
    deltas = [Delta(part, [ord(char) for char in part]) for part in parts]
    return [*deltas[:-1], deltas[-1]._replace(finish=finish)]


def characters(text: str, finish: Finish = Finish.STOP) -> list[Delta]:
    """`text`, one character a delta."""
    return pieces(text, *range(1, len(text)), finish=finish)


Script = Callable[[str, Sampling], Iterable[Delta]]


class FakeEngine:
    """Answers by a script of (prompt, sampling); `hang` never finishes, `die` dies after it."""

    def __init__(self, script: Script | Iterable[Delta]) -> None:
        self.script: Script = script if callable(script) else lambda *_: script  # type: ignore[assignment]
        self.tokenizer = CharTokenizer()
        self.context_length = CONTEXT
        self.sampling_defaults: Mapping[str, Any] = {"top_k": 20, "max_tokens": 5}
        self.dead = False
        self.hang = False
        self.die = False
        self.failure: Exception | None = None
        self.running = 0
        self.produced = 0
        self.requests: list[tuple[str, Sampling]] = []

    async def check_constraint(self, constraint: Constraint | BoundCalls) -> None:
        if isinstance(constraint, BoundCalls) or constraint.schema is None:
            return
        if (fault := no_schema(constraint.schema)) is not None:
            raise NoSchema(fault)
        if "refuse" in constraint.schema:
            raise RequestRefused("this schema is beyond the engine")

    def adapted(self, name: str, folder: str) -> "FakeEngine":
        adapted = copy.copy(self)
        adapted.script = lambda *_: characters(f"<think>as {name}</think>{folder}")
        return adapted

    async def warm_up(self) -> None:
        pass

    async def ready(self) -> bool:
        return not self.dead

    async def generate(
        self, prompt_ids: list[int], sampling: Sampling, request_id: str
    ) -> AsyncGenerator[Delta, None]:
        prompt = self.tokenizer.decode(prompt_ids)
        self.requests.append((prompt, sampling))
        self.running += 1
        try:
            if self.failure is not None:
                raise self.failure
            for delta in self.script(prompt, sampling):
                await asyncio.sleep(0)
                self.produced += len(delta.token_ids)
                yield delta._replace(finish=None) if self.hang or self.die else delta
            if self.die:
                raise EngineDead
            while self.hang:
                await asyncio.sleep(0.01)
        finally:
            self.running -= 1

    def shutdown(self) -> None:
        self.dead = True


def ask(
    engine: FakeEngine | Deployment,
    path: str = "/v1/chat/completions",
    *,
    settings: Settings | None = None,
    card: Card = CARD,
    content: bytes | None = None,
    headers: dict[str, str] | None = None,
    method: str = "POST",
    **body: Any,
) -> httpx.Response:
    """One request through the whole application, without a socket."""

    async def send() -> httpx.Response:
        served = engine if isinstance(engine, Deployment) else Deployment(engine, card)
        app = create_app(served, settings)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            raw = json.dumps(body).encode() if content is None else content
            send_headers = {"content-type": "application/json"} | (headers or {})
            return await client.request(
                method, path, content=raw if method == "POST" else None, headers=send_headers
            )

    return asyncio.run(send())
