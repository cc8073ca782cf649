"""Tool calls, with vLLM's own hermes parser, on a scripted engine."""

import json
import random
from collections.abc import Iterable
from typing import Any

import pytest
from calling import CALL, OTHER, SAY, made, streamed, whole
from conftest import ADD
from fake_engine import HELLO, FakeEngine, ask, characters, pieces
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import HERMES

from thinkgate_serve.engine import Delta, Finish, Sampling
from thinkgate_serve.tools import CallArray, gather


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("way", [whole, streamed])
def test_calls_are_found_in_the_answer_alone(way: Any, size: int) -> None:
    text = f"<think>shall I {CALL}?</think>Let me see.{CALL}{OTHER}"
    engine = FakeEngine(pieces(text, *range(size, len(text), size)))
    choice = way(engine)
    message = choice["message"]
    assert message["reasoning_content"] == f"shall I {CALL}?"
    assert message["content"] == "Let me see."
    assert made(choice) == [("add", {"a": 7, "b": 8}), ("add", {"a": 1, "b": 8})]
    assert len({call["id"] for call in message["tool_calls"]}) == 2
    assert choice["finish_reason"] == "tool_calls"
    prompt, sampling = engine.requests[0]
    assert json.dumps([ADD, SAY]) in prompt
    assert sampling.keep_special and sampling.constraint is None


@pytest.mark.parametrize("way", [whole, streamed])
def test_a_call_in_the_thought_is_a_thought(way: Any) -> None:
    choice = way(FakeEngine(characters(f"<think>{CALL}</think>no")))
    assert made(choice) == [] and choice["message"]["content"] == "no"
    assert choice["finish_reason"] == "stop"
    choice = way(FakeEngine(characters(f"<think>{CALL}", Finish.LENGTH)))
    assert made(choice) == [] and choice["finish_reason"] == "length"


@pytest.mark.parametrize("way", [whole, streamed])
def test_one_call_at_a_time(way: Any) -> None:
    choice = way(FakeEngine(characters(CALL + OTHER)), parallel_tool_calls=False)
    assert made(choice) == [("add", {"a": 7, "b": 8})]
    assert choice["message"]["content"] is None


def test_a_thought_cut_short_calls_nothing() -> None:
    named = {"type": "function", "function": {"name": "add"}}
    for choice in (named, "required", "auto"):
        engine = FakeEngine(characters("<think>on", Finish.LENGTH))
        cut = whole(engine, tool_choice=choice)
        assert "tool_calls" not in cut["message"] and cut["finish_reason"] == "length"


def test_choice_none_shows_no_tools_and_needs_no_parser() -> None:
    engine = FakeEngine(characters(CALL))
    choice = whole(engine, settings=None, tool_choice="none")
    assert choice["message"]["content"] == CALL and "tool_calls" not in choice["message"]
    assert "[tools]" not in engine.requests[0][0]


def scripted(answer: str, size: int = 2) -> FakeEngine:
    """Thinks, and once it is held to a shape says `answer`."""

    def script(prompt: str, sampling: Sampling) -> Iterable[Delta]:
        text = answer if sampling.constraint is not None else "<think>hm</think>free"
        return pieces(text, *range(size, len(text), size))

    return FakeEngine(script)


@pytest.mark.parametrize("way", [whole, streamed])
@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_required_call_has_the_shape_of_one(way: Any, size: int) -> None:
    calls = [
        {"name": "say", "parameters": {"text": 'a "}]" \\ b', "list": [[1], {}]}},
        {"name": "add", "parameters": {"a": 1, "b": 2}},
    ]
    engine = scripted(json.dumps(calls, indent=1), size)
    choice = way(engine, settings=None, tool_choice="required")
    assert made(choice) == [(call["name"], call["parameters"]) for call in calls]
    assert choice["message"]["content"] is None
    assert choice["message"]["reasoning_content"] == "hm"
    assert choice["finish_reason"] == "tool_calls"
    constraint = engine.requests[1][1].constraint
    assert constraint is not None and constraint.schema is not None
    assert constraint.schema["minItems"] == 1 and "maxItems" not in constraint.schema
    names = [one["properties"]["name"]["const"] for one in constraint.schema["items"]["anyOf"]]
    assert names == ["add", "say"]


@pytest.mark.parametrize("way", [whole, streamed])
def test_a_named_function_must_be_called(way: Any) -> None:
    engine = scripted('{"a": 1, "b": 2}')
    named = {"type": "function", "function": {"name": "add"}}
    choice = way(engine, settings=None, tool_choice=named)
    assert made(choice) == [("add", {"a": 1, "b": 2})]
    assert choice["finish_reason"] == "tool_calls"
    constraint = engine.requests[1][1].constraint
    assert constraint is not None
    assert constraint.schema == ADD["function"]["parameters"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["f", "g"]),
            st.dictionaries(st.text(max_size=4), st.text(max_size=4) | st.just([{}, ["]"]])),
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 2**32),
    st.sampled_from([None, 1]),
)
@settings(max_examples=40)
def test_an_array_of_calls_is_read_the_same_however_it_is_cut(
    calls: list[tuple[str, Any]], seed: int, indent: int | None
) -> None:
    text = json.dumps([{"name": n, "parameters": p} for n, p in calls], indent=indent)
    cuts = sorted(random.Random(seed).sample(range(len(text)), min(len(text), 7)))
    reader, said = CallArray(), []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        said += reader.feed(text[start:end], ())
    content, found = gather([*said, *reader.close()])
    assert content == ""
    assert [(call.name, json.loads(call.arguments)) for call in found] == calls


def test_earlier_calls_and_results_reach_the_template() -> None:
    engine = FakeEngine(characters("15"))
    turns = [
        {"role": "user", "content": "7+8"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c1", "type": "function",
             "function": {"name": "add", "arguments": '{"a": 7, "b": 8}'}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "15"},
    ]  # fmt: skip
    assert ask(engine, messages=turns, tools=[ADD], settings=HERMES).status_code == 200
    shown = '[call]{"name": "add", "arguments": {"a": 7, "b": 8}}'
    assert f"[user]7+8[assistant]{shown}[tool]15[assistant]" in engine.requests[0][0]


def test_a_template_without_tools_is_said_so() -> None:
    engine = FakeEngine(characters("x"))
    engine.tokenizer.knows_tools = False
    response = ask(engine, messages=HELLO, tools=[ADD], settings=HERMES)
    assert response.status_code == 400 and response.json()["error"]["param"] == "tools"
    assert "shows the model no tools" in response.json()["error"]["message"]


def test_each_choice_calls_for_itself() -> None:
    body = ask(
        FakeEngine(characters(f"a{CALL}")), messages=HELLO, tools=[ADD], n=2, settings=HERMES
    ).json()
    ids = {choice["message"]["tool_calls"][0]["id"] for choice in body["choices"]}
    assert len(ids) == 2
