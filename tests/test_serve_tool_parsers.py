"""What vLLM's tool parsers read of any text, and what strict functions hold it to."""

import json
from typing import Any

import httpx
import pytest
from calling import CALL, KIMI, SAY, STRICT, Ascii, streamed, whole
from conftest import ADD
from fake_engine import HELLO, FakeEngine, ask, characters
from grammars import END, matcher
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openai.types.responses import Response
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
    read: list[Said] = []
    for at in range(0, len(text), size):
        piece = text[at : at + size]
        read += reader.feed(piece, [ord(char) for char in piece])
    read += reader.close()
    begun = [one.index for one in read if isinstance(one, CallDelta) and one.name is not None]
    assert begun == list(range(len(begun)))
    gather(read)


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


def said(tools: list[Any], engine: FakeEngine | None = None, **body: Any) -> Any:
    """A response to a request with `tools`, as chat has them."""
    flat = [{"type": "function"} | one["function"] for one in tools]
    engine = engine or FakeEngine(characters("hi"))
    settings = body.pop("settings", HERMES)
    return ask(engine, "/v1/responses", input="hi", tools=flat, settings=settings, **body)


def echoed(response: httpx.Response) -> list[bool]:
    assert response.status_code == 200, response.text
    return [one.strict for one in Response.model_validate_json(response.text).tools]


def but(tool: Any, **changed: Any) -> Any:
    function = {
        key: value for key, value in (tool["function"] | changed).items() if value != "unsaid"
    }
    return tool | {"function": function}


UNSAID = but(STRICT, strict="unsaid")
BEYOND = but(ADD, name="beyond", parameters={"refuse": True})
GRANITE = Settings(tool_parser=VLLMToolParser("granite"))


@pytest.mark.parametrize("unsaid", ["unsaid", None])
def test_on_responses_a_function_is_strict_where_that_can_be_kept(unsaid: Any) -> None:
    tool = but(STRICT, strict=unsaid)
    engine = FakeEngine(characters("hi"))
    assert echoed(said([tool, BEYOND, but(SAY, strict=False)], engine)) == [True, False, False]
    (constraint,) = (sampling.constraint for _, sampling in engine.requests)
    assert accepted(constraint, CALL.replace("7", "1").replace(', "b": 8', ""))
    assert accepted(constraint, CALL.replace("add", "beyond"))
    assert accepted(constraint, CALL.replace("add", "say"))
    assert not accepted(constraint, CALL)

    for best_effort in ([BEYOND], [but(tool, strict=False)]):
        engine = FakeEngine(characters("hi"))
        assert echoed(said(best_effort, engine)) == [False]
        assert engine.requests[0][1].constraint is None
    engine = FakeEngine(characters("hi"))
    engine.tokenizer = Ascii()
    assert echoed(said([tool], engine, settings=GRANITE)) == [False]
    # Chat Completions' default is another.
    engine = FakeEngine(characters("hi"))
    whole(engine, tools=[but(tool, strict=None)])
    assert engine.requests[0][1].constraint is None


def test_a_forced_call_is_strict_whatever_was_said() -> None:
    def forced(answer: str, choice: Any) -> httpx.Response:
        engine = FakeEngine(lambda _, sampling: characters(answer if sampling.constraint else "x"))
        tools = [UNSAID, but(SAY, strict=False), but(SAY, name="other")]
        return said(tools, engine, tool_choice=choice, settings=None)

    calls = '[{"name": "say", "parameters": {}}]'
    assert echoed(forced(calls, "required")) == [True, True, True]
    named = {"type": "function", "name": "add"}
    assert echoed(forced('{"a": 1}', named)) == [True, False, False]
    uncalled = said([UNSAID, but(SAY, strict=True)], tool_choice="none")
    assert echoed(uncalled) == [False, True]


def test_on_responses_what_is_said_to_be_strict_must_be() -> None:
    for tools, server in (([STRICT], GRANITE), ([but(BEYOND, strict=True), UNSAID], HERMES)):
        refused = said(tools, settings=server)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "tools"
    no_schema = but(SAY, parameters={"properties": {"a": {"type": "robot"}}})
    refused = said([UNSAID, no_schema])
    assert refused.status_code == 400 and "the schema of 'say' cannot" in refused.text


def test_models_are_not_shown_what_is_strict() -> None:
    for strict in (True, False, None):
        engine = FakeEngine(characters("x"))
        whole(engine, tools=[but(ADD, strict=strict)])
        assert engine.requests[0][0].startswith(f"[tools]{json.dumps([ADD])}[user]")


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
    read = [
        one
        for bit in written
        for token in ([bit] if bit in vocabulary else bit)
        for one in reader.feed(token, [vocabulary[token]])
    ]
    ways = (make.reader(tools, Ascii()).whole("".join(written)), [*read, *reader.close()])
    for calls in (gather(way)[1] for way in ways):
        for call in calls:
            assert call.name != "add" or fits.is_valid(json.loads(call.arguments))
