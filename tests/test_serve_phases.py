"""Thinking budgets, answers of a given shape and logprobs, against a scripted engine."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from fake_engine import HELLO, FakeEngine, ask, characters, pieces
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from thinkgate_serve.engine import Delta, Finish, Sampling, TokenLogprob
from thinkgate_serve.phases import bounded

PROMPT = "[user]hi[assistant]"
THOUGHT = "a long thought about it"
JSON = {"type": "json_object"}


def scripted(text: str, answer: str = "42", size: int = 1) -> FakeEngine:
    """Says `text`; asked to go on from anywhere after the prompt, says `answer`."""

    def script(prompt: str, sampling: Sampling) -> Iterable[Delta]:
        shaped = sampling.constraint is not None
        said = answer if shaped or "</think>" in prompt else text
        return pieces(said, *range(size, len(said), size))

    return FakeEngine(script)


def whole(engine: FakeEngine, **body: Any) -> dict[str, Any]:
    response = ask(engine, messages=HELLO, **body)
    assert response.status_code == 200, response.text
    ChatCompletion.model_validate(response.json())
    assert engine.running == 0
    return response.json()


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("budget", [0, 8, 12])
def test_at_the_budget_the_thought_is_closed_and_answered(size: int, budget: int) -> None:
    engine = scripted(f"<think>{THOUGHT}</think>no", size=size)
    body = whole(engine, thinking_budget=budget)
    spent = max(budget, len("<think>"))
    (choice,) = body["choices"]
    kept = f"<think>{THOUGHT}"[:spent]
    assert choice["message"]["reasoning_content"] == kept.removeprefix("<think>").rstrip()
    assert choice["message"]["content"] == "42"
    assert (choice["finish_reason"], choice["reasoning_truncated"]) == ("stop", True)
    assert engine.requests[1][0] == PROMPT + kept + "</think>"
    thought = spent + len("</think>")
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == thought
    assert body["usage"]["completion_tokens"] == thought + len("42")


def test_a_prefilled_thought_of_no_tokens_is_never_begun() -> None:
    engine = scripted("never")
    engine.tokenizer.prefill = True
    (choice,) = whole(engine, thinking_budget=0)["choices"]
    assert choice["message"]["reasoning_content"] == ""
    assert choice["message"]["content"] == "42"
    (request,) = engine.requests
    assert request[0] == PROMPT + "<think>\n\n</think>\n\n"


@pytest.mark.parametrize("text", ["<think>a</think>b", "plain", "<think></think>b"])
def test_within_the_budget_nothing_changes(text: str) -> None:
    engine = scripted(text)
    free = whole(scripted(text))
    bound = whole(engine, thinking_budget=100)
    assert bound["choices"] == free["choices"] and bound["usage"] == free["usage"]
    assert len(engine.requests) == 1


def test_a_budget_streams_what_it_says_whole() -> None:
    engine = scripted(f"<think>{THOUGHT}")
    text = ask(engine, messages=HELLO, stream=True, thinking_budget=9).text
    chunks = [json.loads(line[6:]) for line in text.split("\n\n") if line[6:7] == "{"]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(d.get("reasoning_content", "") for d in deltas) == "a"
    assert "".join(d.get("content", "") for d in deltas) == "42"
    assert chunks[-1]["choices"][0]["reasoning_truncated"] is True


def test_effort_is_a_share_and_none_closes_at_once() -> None:
    engine = scripted(f"<think>{THOUGHT * 9}")
    body = whole(engine, reasoning_effort="low", max_tokens=100)
    thought = body["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert thought == 25 + len("</think>")
    assert engine.requests[1][1].max_tokens == 100 - thought
    engine = scripted("42")
    engine.tokenizer.prefill = True
    assert whole(engine, reasoning_effort="none")["choices"][0]["message"]["content"] == "42"
    assert engine.requests[0][0] == PROMPT


@given(st.integers(0, 5000), st.integers(1, 5000), st.integers(1, 12))
def test_a_budget_always_leaves_the_answer_its_share(budget: int, room: int, closing: int) -> None:
    kept = bounded(budget, room, closing)
    assert 0 <= kept <= budget
    assert kept == 0 or room - kept - closing >= max(1, room // 4)


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_a_shape_binds_the_answer_only(size: int) -> None:
    engine = scripted("<think>free text</think>no json", answer='{"a":1}', size=size)
    body = whole(engine, response_format=JSON)
    message = body["choices"][0]["message"]
    assert message["reasoning_content"] == "free text"
    assert json.loads(message["content"]) == {"a": 1}
    assert [request[1].constraint is None for request in engine.requests] == [True, False]
    assert engine.requests[1][0] == PROMPT + "<think>free text</think>"
    spent = len("<think>free text</think>")
    assert body["usage"]["completion_tokens"] == spent + len('{"a":1}')


def test_an_answer_without_a_thought_is_made_anew_in_shape() -> None:
    engine = scripted("no json", answer="{}")
    body = whole(engine, response_format=JSON, stop=["json"])
    assert body["choices"][0]["message"]["content"] == "{}"
    assert body["usage"]["completion_tokens"] == 2
    assert engine.requests[1][0] == PROMPT


def likely(text: str) -> list[Delta]:
    """`text` with logprobs, and an end-of-text token with one too."""
    deltas = [
        delta._replace(
            finish=None,
            logprobs=[TokenLogprob(ord(delta.text), delta.text, -0.5,
                                   (TokenLogprob(ord(delta.text), delta.text, -0.5),))],
        )
        for delta in characters(text)
    ]  # fmt: skip
    return [*deltas, Delta("", [0], Finish.STOP, [TokenLogprob(0, "<end>", -0.1)])]


@pytest.mark.parametrize("text", ["<think>why</think>42", "42"])
def test_logprobs_are_those_of_the_answer(text: str) -> None:
    engine = FakeEngine(likely(text))
    choice = whole(engine, logprobs=True, top_logprobs=1)["choices"][0]
    content = choice["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["4", "2"]
    assert content[0]["bytes"] == [52] and content[0]["top_logprobs"][0]["logprob"] == -0.5
    assert engine.requests[0][1].logprobs == 1
    streamed = ask(engine, messages=HELLO, logprobs=True, stream=True).text
    chunks = [json.loads(line[6:]) for line in streamed.split("\n\n") if line[6:7] == "{"]
    found = [c["choices"][0]["logprobs"] for c in chunks if c["choices"][0]["logprobs"]]
    assert [entry["token"] for one in found for entry in one["content"]] == ["4", "2"]


def in_pieces(text: str, size: int) -> list[Delta]:
    """`text` with logprobs, so many tokens a delta; the last does not finish it."""
    return [
        Delta(part, [*map(ord, part)], None, [TokenLogprob(ord(c), c, -0.5) for c in part])
        for part in (text[at : at + size] for at in range(0, len(text), size))
    ]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_logprobs_end_where_a_stop_string_cuts(size: int) -> None:
    text = "<think>why</think>4 STOx STOP more"
    deltas = in_pieces(text, size)
    engine = FakeEngine([*deltas[:-1], deltas[-1]._replace(finish=Finish.LENGTH)])
    choice = whole(engine, logprobs=True, stop=["STOP"])["choices"][0]
    shown = choice["message"]["content"]
    assert shown == "4 STOx "
    assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == shown
    streamed = ask(engine, messages=HELLO, logprobs=True, stop=["STOP"], stream=True).text
    chunks = [json.loads(line[6:]) for line in streamed.split("\n\n") if line[6:7] == "{"]
    said = ""
    for chunk in chunks:
        (one,) = chunk["choices"]
        listed = "".join(e["token"] for e in (one["logprobs"] or {"content": []})["content"])
        assert listed == one["delta"].get("content", "")
        said += listed
    assert said == shown
    raw = ask(engine, "/v1/completions", prompt="q", logprobs=1, stop=["STOP"]).json()
    assert "".join(raw["choices"][0]["logprobs"]["tokens"]) == raw["choices"][0]["text"]


def test_a_token_that_a_stop_string_begins_in_stays() -> None:
    tokens = [TokenLogprob(1, part, -0.5) for part in ("a", "b S", "TOP", " c")]
    delta = Delta("ab STOP c", [1] * 5, Finish.STOP, [*tokens, TokenLogprob(0, "", -0.1)])
    choice = whole(FakeEngine([delta]), logprobs=True, stop=["STOP"])["choices"][0]
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["a", "b S"]


@pytest.mark.parametrize("size", [1, 4, 100])
def test_logprobs_of_the_thought_on_request(size: int) -> None:
    text = "<think>why</think>42"
    deltas = in_pieces(text, size)
    asked: dict[str, Any] = {"logprobs": True, "logprobs_in_reasoning": True}

    def engine() -> FakeEngine:
        return FakeEngine([*deltas[:-1], deltas[-1]._replace(finish=Finish.LENGTH)])

    found = whole(engine(), **asked)["choices"][0]["logprobs"]
    assert "".join(entry["token"] for entry in found["reasoning"]) == "<think>why</think>"
    assert "".join(entry["token"] for entry in found["content"]) == "42"
    streamed = ask(engine(), messages=HELLO, stream=True, **asked).text
    chunks = [json.loads(line[6:]) for line in streamed.split("\n\n") if line[6:7] == "{"]
    for key in ("reasoning", "content"):
        pieces_of = [c["choices"][0]["logprobs"] for c in chunks if c["choices"][0]["logprobs"]]
        assert [e for one in pieces_of for e in one[key]] == found[key]


def test_completions_list_logprobs_with_offsets() -> None:
    body = ask(FakeEngine(likely("ab")), "/v1/completions", prompt="q", logprobs=1).json()
    Completion.model_validate(body)
    logprobs = body["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "b"]
    assert logprobs["text_offset"] == [0, 1]
    assert logprobs["top_logprobs"] == [{"a": -0.5}, {"b": -0.5}]
