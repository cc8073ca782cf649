"""LangChain's stock chat models against the real server: reasoning arrives as reasoning."""

import asyncio
from typing import Any

import pytest
from conftest import LESSONS
from langchain_deepseek import ChatDeepSeek
from langchain_openai import ChatOpenAI

from thinkgate.format import split
from thinkgate_clients.local import LocalServer

pytestmark = pytest.mark.slow

LESSON = "closed"
SAID = split(LESSONS[LESSON])


def deepseek(served: LocalServer) -> ChatDeepSeek:
    return ChatDeepSeek(
        model=served.model, api_base=served.base_url, api_key="none", temperature=0, max_retries=0
    )  # type: ignore[arg-type]


def openai(served: LocalServer) -> ChatOpenAI:
    return ChatOpenAI(
        model=served.model, base_url=served.base_url, api_key="none", temperature=0, max_retries=0
    )  # type: ignore[arg-type]


def test_deepseek_whole(served: LocalServer) -> None:
    reply = deepseek(served).invoke(LESSON)
    assert reply.content == SAID.answer
    assert reply.additional_kwargs["reasoning_content"] == SAID.reasoning
    assert reply.usage_metadata is not None
    assert reply.usage_metadata["output_token_details"]["reasoning"] == len(SAID.reasoning) + 2  # type: ignore[typeddict-item]


def test_deepseek_streamed(served: LocalServer) -> None:
    whole: Any = None
    for chunk in deepseek(served).stream(LESSON):
        whole = chunk if whole is None else whole + chunk
    assert whole.content == SAID.answer
    assert whole.additional_kwargs["reasoning_content"] == SAID.reasoning
    kinds = [block["type"] for block in whole.content_blocks]
    assert kinds == ["reasoning", "text"]


def test_deepseek_async(served: LocalServer) -> None:
    reply = asyncio.run(deepseek(served).ainvoke(LESSON))
    assert (reply.content, reply.additional_kwargs["reasoning_content"]) == (
        SAID.answer,
        SAID.reasoning,
    )


def test_openai_keeps_the_thought_out_of_the_content(served: LocalServer) -> None:
    """ChatOpenAI documents that it drops fields which are not OpenAI's; the answer is clean."""
    model = openai(served)
    assert model.invoke(LESSON).content == SAID.answer
    whole = "".join(str(chunk.content) for chunk in model.stream(LESSON))
    assert whole == SAID.answer
    reply = model.invoke(LESSON)
    assert reply.usage_metadata is not None
    assert reply.usage_metadata["output_token_details"]["reasoning"] == len(SAID.reasoning) + 2  # type: ignore[typeddict-item]


def test_openai_asks_with_our_parameters(served: LocalServer) -> None:
    model = openai(served).bind(extra_body={"thinking_budget": 2})
    reply = model.invoke(LESSON)
    assert (
        reply.response_metadata["token_usage"]["completion_tokens_details"]["reasoning_tokens"]
        == 2 + 1
    )
