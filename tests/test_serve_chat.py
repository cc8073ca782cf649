"""Chat completions against a scripted engine: the same split however the engine cuts its text."""

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest
from fake_engine import CONTEXT, HELLO, FakeEngine, ask, characters, pieces
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from thinkgate_serve.card import Card
from thinkgate_serve.engine import (
    Delta,
    EngineDead,
    Finish,
    RequestFailed,
    RequestRefused,
    Sampling,
)
from thinkgate_serve.generation import Plan, Thinking, run_choices
from thinkgate_serve.service import ReasoningField, Settings


def chat(text: str | Iterable[Delta], **body: Any) -> dict[str, Any]:
    """The body of a successful chat completion of `text`, checked against OpenAI's own type."""
    deltas = characters(text) if isinstance(text, str) else text
    response = ask(FakeEngine(deltas), messages=HELLO, **body)
    assert response.status_code == 200, response.text
    ChatCompletion.model_validate(response.json())
    return response.json()


def stream(text: str | Iterable[Delta], **body: Any) -> list[dict[str, Any]]:
    """The events of a streamed chat completion, checked against OpenAI's own type."""
    deltas = characters(text) if isinstance(text, str) else text
    response = ask(FakeEngine(deltas), messages=HELLO, stream=True, **body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, last = response.text.removesuffix("\n\n").split("\n\n")
    assert last == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    return chunks


def joined(chunks: list[dict[str, Any]], key: str, index: int = 0) -> str | None:
    """A delta field, pieces joined; None when no chunk had it."""
    found = [
        choice["delta"][key]
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["index"] == index and key in choice["delta"]
    ]
    return "".join(found) if found else None


CASES = {
    # text, finish → reasoning, content, finish_reason, reasoning_truncated
    "closed": ("<think>why</think>42", Finish.STOP, "why", "42", "stop", False),
    "spaced": ("<think>\nwhy\n</think>\n\n42\n", Finish.STOP, "why", "42\n", "stop", False),
    "empty thought": ("<think></think>42", Finish.STOP, "", "42", "stop", False),
    "untagged": ("just 42", Finish.STOP, None, "just 42", "stop", False),
    "second tag is answer": ("<think>a</think>b</think>c", Finish.STOP, "a", "b</think>c", "stop",
                             False),
    "answer cut": ("<think>a</think>b", Finish.LENGTH, "a", "b", "length", False),
    "no answer yet": ("<think>a</think>", Finish.LENGTH, "a", "", "length", False),
    "thought cut": ("<think>why not", Finish.LENGTH, "why not", None, "length", True),
    "model ends in thought": ("<think>why", Finish.STOP, "why", None, "length", True),
    "half a closing tag": ("<think>why</thi", Finish.LENGTH, "why</thi", None, "length", True),
    "half an opening tag": ("<thi", Finish.LENGTH, None, "<thi", "length", False),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_whole_response(case: str) -> None:
    text, finish, reasoning, content, finish_reason, truncated = CASES[case]
    choice = chat(characters(text, finish))["choices"][0]
    message = choice["message"]
    assert (message["reasoning_content"], message["content"]) == (reasoning, content)
    assert message["reasoning"] == reasoning
    assert (choice["finish_reason"], choice["reasoning_truncated"]) == (finish_reason, truncated)


@pytest.mark.parametrize("case", CASES)
def test_stream_says_the_same_for_every_cut(case: str) -> None:
    text, finish, reasoning, content, finish_reason, truncated = CASES[case]
    for cut in range(1, len(text)):
        chunks = stream(pieces(text, cut, finish=finish))
        assert joined(chunks, "reasoning_content") == reasoning
        assert joined(chunks, "reasoning") == reasoning
        assert (joined(chunks, "content") or "") == (content or "")
        last = chunks[-1]["choices"][0]
        assert (last["finish_reason"], last["reasoning_truncated"]) == (finish_reason, truncated)
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant"}


@pytest.mark.parametrize("case", CASES)
def test_usage_is_exact(case: str) -> None:
    text, finish, _, _, _, _ = CASES[case]
    thought = len(text) if finish is not None and "<think>" in text else 0
    if "</think>" in text:
        thought = text.index("</think>") + len("</think>")
    usage = chat(characters(text, finish))["usage"]
    assert usage["prompt_tokens"] == len("[user]hi[assistant]")
    assert usage["completion_tokens"] == len(text)
    assert usage["total_tokens"] == usage["prompt_tokens"] + len(text)
    assert usage["completion_tokens_details"]["reasoning_tokens"] == thought
    chunks = stream(characters(text, finish), stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == usage
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_one_delta_never_carries_reasoning_and_answer() -> None:
    for chunk in stream([Delta("<think>a</think>b", [1, 2, 3], Finish.STOP)]):
        delta = chunk["choices"][0]["delta"]
        assert not ("content" in delta and "reasoning" in delta)


def test_prefilled_thought_is_known_from_the_template() -> None:
    engine = FakeEngine(characters("why</think>42"))
    engine.tokenizer.prefill = True
    body = ask(engine, messages=HELLO).json()
    assert body["choices"][0]["message"]["reasoning_content"] == "why"
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == len("why</think>")
    engine.script = lambda *_: characters("42")
    body = ask(engine, messages=HELLO, chat_template_kwargs={"enable_thinking": False}).json()
    assert body["choices"][0]["message"]["reasoning_content"] is None
    assert body["choices"][0]["message"]["content"] == "42"


def test_a_user_who_writes_the_tag_opens_no_thought() -> None:
    response = ask(
        FakeEngine(characters("42")), messages=[{"role": "user", "content": "what is <think>"}]
    )
    assert response.json()["choices"][0]["message"]["content"] == "42"


def test_reasoning_field_names_one_key() -> None:
    settings = Settings(reasoning_field=ReasoningField.REASONING)
    engine = FakeEngine(characters("<think>why</think>42"))
    message = ask(engine, settings=settings, messages=HELLO).json()["choices"][0]["message"]
    assert message["reasoning"] == "why"
    assert "reasoning_content" not in message


def test_reasoning_can_be_left_out_and_is_still_counted() -> None:
    text = "<think>why</think>42"
    body = chat(text, include_reasoning=False)
    assert body["choices"][0]["message"]["reasoning_content"] is None
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == len(text) - 2
    chunks = stream(text, include_reasoning=False)
    assert joined(chunks, "reasoning_content") is None
    assert joined(chunks, "content") == "42"


@pytest.mark.parametrize("size", [1, 3, 100])
def test_stop_strings_bind_to_the_answer(size: int) -> None:
    text = "<think>a\n\nb</think>one\n\ntwo"
    deltas = pieces(text, *range(size, len(text), size))
    choice = chat(deltas, stop=["\n\n"])["choices"][0]
    assert choice["message"]["reasoning_content"] == "a\n\nb"
    assert choice["message"]["content"] == "one"
    assert choice["finish_reason"] == "stop"
    chunks = stream(deltas, stop="\n\n")
    assert joined(chunks, "reasoning_content") == "a\n\nb"
    assert joined(chunks, "content") == "one"


def test_a_stop_aborts_the_engine() -> None:
    engine = FakeEngine(characters("one STOP" + "x" * 1000))
    response = ask(engine, messages=HELLO, stop=["STOP"])
    assert response.json()["choices"][0]["message"]["content"] == "one "
    assert engine.produced == response.json()["usage"]["completion_tokens"] == len("one STOP")
    assert engine.running == 0


def test_what_only_looked_like_a_stop_is_shown() -> None:
    assert chat("one ST", stop=["STOP"])["choices"][0]["message"]["content"] == "one ST"
    assert joined(stream("one STO", stop=["STOP"]), "content") == "one STO"


def test_stop_in_reasoning_opts_in() -> None:
    text = "<think>a STOP b</think>c"
    choice = chat(text, stop=["STOP"], stop_in_reasoning=True)["choices"][0]
    assert choice["message"]["reasoning_content"] == "a "
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "stop"
    assert choice["reasoning_truncated"] is True
    whole = chat([Delta(text, [1], Finish.STOP)], stop=["STOP"], stop_in_reasoning=True)
    assert whole["choices"] == [choice]


def test_n_choices_with_a_seed_each() -> None:
    def script(_: str, sampling: Any) -> list[Delta]:
        return characters(f"<think>{sampling.seed}</think>{sampling.seed}")

    engine = FakeEngine(script)
    body = ask(engine, messages=HELLO, n=3, seed=7).json()
    assert [choice["message"]["content"] for choice in body["choices"]] == ["7", "8", "9"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert body["usage"]["completion_tokens"] == 3 * len("<think>7</think>7")
    assert body["usage"]["prompt_tokens"] == len("[user]hi[assistant]")

    response = ask(FakeEngine(script), messages=HELLO, n=3, seed=7, stream=True)
    chunks = [json.loads(line[6:]) for line in response.text.split("\n\n") if line[6:7] == "{"]
    for index in range(3):
        assert joined(chunks, "content", index) == str(7 + index)
    assert sum(c["choices"][0]["finish_reason"] == "stop" for c in chunks) == 3


def test_sampling_defaults_come_from_request_then_card_then_model() -> None:
    card = Card(name="m", source="m", digest=None, decision=None, sampling={"top_p": 0.9})
    engine = FakeEngine(characters("x"))
    ask(engine, card=card, messages=HELLO, temperature=0.5)
    sampling = engine.requests[0][1]
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 20)
    assert sampling.max_tokens == CONTEXT - len("[user]hi[assistant]")
    ask(engine, card=card, messages=HELLO, top_p=1.0, top_k=-1, max_completion_tokens=9)
    sampling = engine.requests[1][1]
    assert (sampling.top_p, sampling.top_k, sampling.max_tokens) == (1.0, 0, 9)


def test_earlier_turns_reach_the_template() -> None:
    engine = FakeEngine(characters("x"))
    turns = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        # What the openai client returns, sent back as it came.
        {"role": "assistant", "content": "c", "reasoning_content": "r", "refusal": None,
         "tool_calls": None, "annotations": [], "audio": None, "function_call": None},
        {"role": "user", "content": "d"},
    ]  # fmt: skip
    assert ask(engine, messages=turns).status_code == 200
    assert engine.requests[0][0] == "[system]be brief[user]ab[assistant]c[user]d[assistant]"


def test_every_response_says_what_answered() -> None:
    response = ask(FakeEngine(characters("x")), messages=HELLO, headers={"x-request-id": "abc-1"})
    assert response.headers["x-request-id"] == "abc-1"
    assert response.headers["x-thinkgate-model-digest"] == "ab" * 32
    assert response.headers["x-thinkgate-gate"] == "ungated"
    assert response.json()["id"] == "chatcmpl-abc-1"
    refused = ask(FakeEngine(characters("x")), messages=[], headers={"x-request-id": "no spaces!"})
    assert refused.status_code == 400
    assert refused.headers["x-thinkgate-gate"] == "ungated"
    assert len(refused.headers["x-request-id"]) == 32


def test_engine_failures() -> None:
    engine = FakeEngine(characters("x"))
    engine.failure = EngineDead()
    response = ask(engine, messages=HELLO)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_dead")
    # Before the first token a stream can still answer with a status.
    assert ask(engine, messages=HELLO, stream=True).status_code == 503
    engine.failure = RequestRefused("logit_bias: no such token")
    response = ask(engine, messages=HELLO, n=2)
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "logit_bias: no such token"
    engine.failure = RequestFailed("error")
    response = ask(engine, messages=HELLO)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "engine_error")
    engine.failure = KeyError("a bug")
    response = ask(engine, messages=HELLO, headers={"x-request-id": "r1"})
    assert response.status_code == 500
    assert "r1" in response.json()["error"]["message"]
    assert "a bug" not in response.text
    assert response.headers["x-thinkgate-gate"] == "ungated"
    assert engine.running == 0


def test_an_engine_that_dies_in_a_stream_ends_it_with_an_error_event() -> None:
    engine = FakeEngine(characters("<think>half"))
    engine.die = True
    response = ask(engine, messages=HELLO, stream=True)
    *_, last = response.text.removesuffix("\n\n").split("\n\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_dead"


def test_a_reader_slower_than_the_engine_hears_of_the_end_last() -> None:
    """Several choices wait in one queue: what is read first must not say how it all ended."""
    engine = FakeEngine(characters("<think>why</think>forty-two"))
    plan = Plan(prompt_ids=[1], sampling=Sampling(max_tokens=99))
    choices = [Thinking(index, plan, engine.tokenizer.decode) for index in range(3)]

    async def read() -> dict[int, list[Finish | None]]:
        seen: dict[int, list[Finish | None]] = {}
        async for choice, _ in run_choices(engine, plan, choices, "x"):
            seen.setdefault(choice.index, []).append(choice.finish)
            await asyncio.sleep(0.002)
        return seen

    for finishes in asyncio.run(read()).values():
        assert finishes == [None] * (len(finishes) - 1) + [Finish.STOP]
