"""What vLLM's tool parsers read of any text, and what strict functions hold it to."""

import json
from typing import Any

import pytest
from calling import CALL, KIMI, SAY, STRICT, Ascii, streamed, whole
from conftest import ADD
from fake_engine import HELLO, FakeEngine, ask, characters
from grammars import END, matcher
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from serving import HERMES

from thinkgate_serve.engine import BoundCalls
from thinkgate_serve.messages import Tool
from thinkgate_serve.service import Settings
from thinkgate_serve.tools import CallDelta, Said, gather
from thinkgate_serve.vllm_tools import VLLMToolParser

BITS = [
    "<tool_call>", "</tool_call>", '{"name": "add"', ', "arguments": ', '{"a": 1}', "{", "}", "[",
    '"', "null", '{"name": 5, "arguments": {}}', '{"arguments": {}, "name": "say"}', '{"name":{}}',
    "x", "<parameter=a>", "<function=add>",
]  # fmt: skip


@pytest.mark.parametrize("parser", ["hermes", "granite"])
@settings(derandomize=True, max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(BITS), min_size=1, max_size=10).map("".join),
    st.sampled_from([1, 3, 20]),
)
@example('<tool_call>x{"name": "say", "arguments": {"a": 1}}"</tool_call>"<tool_call>\nx]', 1)
@example('<tool_call>[{"name": 5, "arguments": {}}]', 20)
def test_no_parser_stumbles_over_what_a_model_writes(parser: str, text: str, size: int) -> None:
    """Calls begin with a name, and are counted without gaps."""
    tools = [Tool.model_validate(tool) for tool in (ADD, SAY)]
    make = VLLMToolParser(parser)
    gather(make.reader(tools, Ascii()).whole(text))
    reader = make.reader(tools, Ascii())
    said: list[Said] = []
    for at in range(0, len(text), size):
        piece = text[at : at + size]
        said += reader.feed(piece, [ord(char) for char in piece])
    said += reader.close()
    begun = [one.index for one in said if isinstance(one, CallDelta) and one.name is not None]
    assert begun == list(range(len(begun)))
    gather(said)


def accepted(constraint: Any, text: str) -> bool:
    assert isinstance(constraint, BoundCalls)
    answer = matcher(constraint.format)
    return answer.accept_string(text) and answer.accept_token(END)


@pytest.mark.parametrize("way", [whole, streamed])
def test_calls_of_a_strict_function_are_bound_and_nothing_else_is(way: Any) -> None:
    text = f"<think>{CALL}</think>So: {CALL}"
    engine = FakeEngine(lambda _, sampling: characters(CALL if len(engine.requests) > 1 else text))
    way(engine, tools=[STRICT, SAY])
    thought, answer = (sampling.constraint for _, sampling in engine.requests)
    fits, other = CALL.replace("7", "1").replace(', "b": 8', ""), CALL.replace("add", "say")
    for constraint in (thought, answer):
        assert accepted(constraint, f"So: {fits} and {other}{fits}")
        assert accepted(constraint, "<tool_c")
        assert not accepted(constraint, f"So: {CALL}")
        assert not accepted(constraint, f"{fits}{CALL}")
    assert accepted(thought, f" \n<think>{CALL}</think>") and accepted(thought, "<think>")
    assert not accepted(answer, f"<think>{CALL}")


def test_an_answer_without_a_thought_is_bound_from_its_first_token() -> None:
    """Begun anew it could as well begin with a thought, which nothing would then watch."""
    engine = FakeEngine(characters("no thought"))
    choice = whole(engine, tools=[STRICT], thinking_budget=5)
    assert choice["message"]["content"] == "no thought"
    assert len(engine.requests) == 1


def test_a_prefilled_thought_is_not_bound() -> None:
    engine = FakeEngine(characters("hm</think>no"))
    engine.tokenizer.prefill = True
    whole(engine, tools=[STRICT])
    assert engine.requests[0][1].constraint is None
    assert not accepted(engine.requests[1][1].constraint, CALL)


def test_strict_is_refused_where_it_cannot_be_kept_to() -> None:
    other = Settings(tool_parser=VLLMToolParser("granite"))
    refused = ask(FakeEngine(()), messages=HELLO, tools=[STRICT], settings=other)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "tools"
    assert "'add' is strict" in refused.json()["error"]["message"]
    engine = FakeEngine(characters("x"))
    engine.tokenizer = Ascii()
    assert ask(engine, messages=HELLO, tools=[ADD], settings=other).status_code == 200

    bad = STRICT | {"function": STRICT["function"] | {"parameters": {"refuse": True}}}
    beyond = ask(FakeEngine(()), messages=HELLO, tools=[bad], settings=HERMES)
    assert beyond.status_code == 400 and beyond.json()["error"]["param"] == "tools"
    assert "the schema of 'add' cannot be used" in beyond.json()["error"]["message"]


SPELLINGS = [
    "<tool_call>", "</tool_call>", "\n", " ", "{", "}", '"', ":", ",", "x", "add", "say",
    '{"name": "add"', ', "arguments": ', '{"a": 1}', '{"a": 7}', '{"a"', "7", "1",
    '{"arguments": {"a": 7}, "name": "add"}', '{"name":"add","arguments":{"a":7}}',
    "functions.add:0", "functions.say:1", "add:0", "<function=add>",
]  # fmt: skip


@pytest.mark.parametrize(
    ("parser", "markers"), [("hermes", ["<tool_call>", "</tool_call>"]), ("kimi_k2", KIMI)]
)
@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.data())
def test_what_a_parser_reads_of_a_bound_text_fits(
    parser: str, markers: list[str], data: st.DataObject
) -> None:
    """Whatever spelling it takes for a call, also where the grammar sees free text."""
    tools = [Tool.model_validate(tool) for tool in (STRICT, SAY)]
    make = VLLMToolParser(parser)
    answer = matcher(make.bound(tools) or {})
    bits = data.draw(st.lists(st.sampled_from([*SPELLINGS, *markers * 4]), max_size=60))
    written = [bit for bit in bits if answer.accept_string(bit)]
    for _ in range(20):  # to an end
        if answer.accept_token(END):
            break
        rest = answer.find_jump_forward_string()
        ways = [rest] if rest else [*markers, *SPELLINGS]
        written.append(next(bit for bit in ways if answer.accept_string(bit)))
    else:
        return
    fits = Draft202012Validator(STRICT["function"]["parameters"])
    vocabulary = Ascii().get_vocab()
    reader = make.reader(tools, Ascii())
    said = [
        one
        for bit in written
        for token in ([bit] if bit in vocabulary else bit)
        for one in reader.feed(token, [vocabulary[token]])
    ]
    ways = (make.reader(tools, Ascii()).whole("".join(written)), [*said, *reader.close()])
    for calls in (gather(way)[1] for way in ways):
        for call in calls:
            assert call.name != "add" or fits.is_valid(json.loads(call.arguments))
