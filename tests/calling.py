"""Chat requests with tools, asked of a scripted engine, whole and streamed."""

import json
from collections.abc import Sequence
from typing import Any, Literal

import openai
from conftest import ADD
from fake_engine import HELLO, CharTokenizer, FakeEngine, ask
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel
from serving import HERMES

from thinkgate_serve.service import Settings

SAY = {"type": "function", "function": {"name": "say"}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 7, "b": 8}}\n</tool_call>'
OTHER = CALL.replace("7", "1")

KIMI = [
    "<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>",
    "<|tool_call_end|>", "<|tool_calls_section_end|>",
]  # fmt: skip


class Ascii(CharTokenizer):
    """Kimi's markers are one token, as in its models."""

    def get_vocab(self) -> dict[str, int]:
        markers = {marker: 128 + at for at, marker in enumerate(KIMI)}
        return {chr(token): token for token in range(128)} | markers

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return "".join([*map(chr, range(128)), *KIMI][token] for token in token_ids)


class Add(BaseModel):
    """Arguments that the call above does not fit."""

    a: Literal[1, 2]


STRICT: Any = openai.pydantic_function_tool(Add, name="add")


def whole(engine: FakeEngine, settings: Settings | None = HERMES, **body: Any) -> dict[str, Any]:
    """The first choice."""
    asked: dict[str, Any] = {"tools": [ADD, SAY]} | body
    response = ask(engine, messages=HELLO, settings=settings, **asked)
    assert response.status_code == 200, response.text
    ChatCompletion.model_validate(response.json())
    return response.json()["choices"][0]


def streamed(engine: FakeEngine, settings: Settings | None = HERMES, **body: Any) -> dict[str, Any]:
    """The first choice put together from its chunks, as clients do."""
    asked: dict[str, Any] = {"tools": [ADD, SAY]} | body
    text = ask(engine, messages=HELLO, settings=settings, stream=True, **asked).text
    message: dict[str, Any] = {"content": None, "reasoning_content": None, "tool_calls": []}
    choice: dict[str, Any] = {"message": message}
    for line in text.split("\n\n"):
        if line[6:7] != "{":
            continue
        chunk = json.loads(line[6:])
        ChatCompletionChunk.model_validate(chunk)
        delta = chunk["choices"][0]["delta"]
        for key in ("content", "reasoning_content"):
            if key in delta:
                message[key] = (message[key] or "") + delta[key]
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(message["tool_calls"])
                message["tool_calls"].append(
                    {"id": call["id"], "type": call["type"], "function": call["function"]}
                )
            else:
                function = message["tool_calls"][call["index"]]["function"]
                function["arguments"] += call["function"]["arguments"]
        choice["finish_reason"] = chunk["choices"][0]["finish_reason"]
    return choice


def made(choice: dict[str, Any]) -> list[tuple[str, Any]]:
    return [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in choice["message"].get("tool_calls") or []
    ]
