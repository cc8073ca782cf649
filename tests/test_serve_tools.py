"""Tool calls, with vLLM's own hermes parser, on a scripted engine; and on real vLLM."""

import json
import random
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal

import httpx
import openai
import pytest
from conftest import ADD
from fake_engine import HELLO, CharTokenizer, FakeEngine, ask, characters, pieces
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from thinkgate_clients.local import LocalServer
from thinkgate_serve.engine import BoundCalls, Delta, Finish, Sampling
from thinkgate_serve.messages import Tool
from thinkgate_serve.service import Settings
from thinkgate_serve.tools import CallArray, CallDelta, Said, gather
from thinkgate_serve.vllm_tools import VLLMToolParser

HERMES = Settings(tool_parser=VLLMToolParser("hermes"))
SAY = {"type": "function", "function": {"name": "say"}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 7, "b": 8}}\n</tool_call>'
OTHER = CALL.replace("7", "1")


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


BITS = [
    "<tool_call>", "</tool_call>", '{"name": "add"', ', "arguments": ', '{"a": 1}', "{", "}", "[",
    '"', "null", '{"name": 5, "arguments": {}}', '{"arguments": {}, "name": "say"}', '{"name":{}}',
    "x", "<parameter=a>", "<function=add>",
]  # fmt: skip


KIMI = [
    "<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>",
    "<|tool_call_end|>", "<|tool_calls_section_end|>",
]  # fmt: skip


class Ascii(CharTokenizer):
    """Kimi's markers are one token, as in its models."""

    def get_vocab(self) -> dict[str, int]:
        markers = {marker: 128 + at for at, marker in enumerate(KIMI)}
        return {chr(token): token for token in range(128)} | markers


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


class Add(BaseModel):
    a: Literal[1, 2]


STRICT: Any = openai.pydantic_function_tool(Add, name="add")


def grammar(format: Mapping[str, Any]) -> Any:
    """A matcher of xgrammar's, which vLLM holds answers to."""
    import xgrammar

    tag = json.dumps({"type": "structural_tag", "format": format})
    return xgrammar.GrammarMatcher(compiler().compile_structural_tag(tag))


@cache
def compiler() -> Any:
    import xgrammar

    characters = [*map(chr, range(32, 127)), "\n"]
    vocabulary = xgrammar.TokenizerInfo([*characters, "<eos>"], stop_token_ids=[96])
    return xgrammar.GrammarCompiler(vocabulary)


def accepted(constraint: Any, text: str) -> bool:
    assert isinstance(constraint, BoundCalls)
    matcher = grammar(constraint.format)
    return matcher.accept_string(text) and matcher.accept_token(96)


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
    matcher = grammar(make.bound(tools) or {})
    bits = data.draw(st.lists(st.sampled_from([*SPELLINGS, *markers * 4]), max_size=60))
    written = [bit for bit in bits if matcher.accept_string(bit)]
    for _ in range(20):  # to an end
        if matcher.accept_token(96):
            break
        rest = matcher.find_jump_forward_string()
        ways = [rest] if rest else [*markers, *SPELLINGS]
        written.append(next(bit for bit in ways if matcher.accept_string(bit)))
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


def test_definitions_move_to_the_top_of_the_shape() -> None:
    def tool(name: str, point: dict[str, Any]) -> dict[str, Any]:
        parameters = {"type": "object", "properties": {"p": {"$ref": "#/$defs/Point"}},
                      "$defs": {"Point": point}}  # fmt: skip
        return {"type": "function", "function": {"name": name, "parameters": parameters}}

    one, other = {"type": "integer"}, {"type": "string"}
    engine = scripted("[]")
    whole(engine, settings=None, tools=[tool("f", one), tool("g", one)], tool_choice="required")
    constraint = engine.requests[1][1].constraint
    assert constraint is not None and constraint.schema is not None
    assert constraint.schema["$defs"] == {"Point": one}
    tools = [tool("f", one), tool("g", other)]
    refused = ask(scripted(""), messages=HELLO, tools=tools, tool_choice="required")
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "tools"


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


# On real vLLM


def client(server: LocalServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)


@pytest.mark.slow
def test_a_model_that_calls_gets_the_result(served: LocalServer) -> None:
    asked: Any = {
        "model": served.model,
        "messages": [{"role": "user", "content": "add"}],
        "tools": [ADD],
        "temperature": 0,
    }
    reply = client(served).chat.completions.create(**asked)
    choice = reply.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function" and call.function.name == "add"
    assert json.loads(call.function.arguments) == {"a": 7, "b": 8}
    message: Any = choice.message
    assert message.reasoning_content == "calling"

    with client(served).chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert final.message.tool_calls is not None
    assert final.message.tool_calls[0].function.arguments == call.function.arguments

    # What came back goes back as it is, with the result.
    asked["messages"] += [
        choice.message,
        {"role": "tool", "tool_call_id": call.id, "content": "15"},
    ]
    reply = client(served).chat.completions.create(**asked)
    assert reply.choices[0].message.content == "It is 15."


def without_spaces(served: LocalServer) -> dict[str, int]:
    """JSON allows any number of them, and a tiny model knows no end."""
    url = f"{served.base_url.removesuffix('/v1')}/tokenize"
    tokens = httpx.post(url, json={"prompt": " \n\t\r"}).json()["tokens"]
    return {str(token): -100 for token in tokens}


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call_fits_its_schema(served: LocalServer, stream: bool) -> None:
    one_or_two = {"enum": [1, 2]}
    parameters = {"type": "object", "properties": {"a": one_or_two}, "required": ["a"],
                  "additionalProperties": False}  # fmt: skip
    add: Any = {"type": "function", "function": {"name": "add", "parameters": parameters}}
    for choice in ("required", {"type": "function", "function": {"name": "add"}}):
        asked: Any = {
            "model": served.model, "messages": [{"role": "user", "content": "add"}],
            "tools": [add], "tool_choice": choice, "temperature": 0, "max_tokens": 300,
            "parallel_tool_calls": False,
            "logit_bias": without_spaces(served),
        }  # fmt: skip
        if stream:
            with client(served).chat.completions.stream(**asked) as events:
                message: Any = events.get_final_completion().choices[0].message
        else:
            message = client(served).chat.completions.create(**asked).choices[0].message
        (call,) = message.tool_calls
        assert call.function.name == "add"
        assert json.loads(call.function.arguments)["a"] in (1, 2)
        assert message.reasoning_content == "calling" and message.content is None


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_strict_call_of_its_own_accord_fits_its_schema(served: LocalServer, stream: bool) -> None:
    """The model knows one call by heart, whose arguments do not fit."""
    function = STRICT["function"]
    for strict, fits in ((True, [1, 2]), (False, [7])):
        asked: Any = {
            "model": served.model, "messages": [{"role": "user", "content": "add"}],
            "tools": [STRICT | {"function": function | {"strict": strict}}],
            "temperature": 0, "max_tokens": 300,
            "logit_bias": without_spaces(served) if strict else None,
        }  # fmt: skip
        if stream:
            with client(served).chat.completions.stream(**asked) as events:
                choice: Any = events.get_final_completion().choices[0]
        else:
            choice = client(served).chat.completions.create(**asked).choices[0]
        assert choice.finish_reason == "tool_calls", choice
        assert choice.message.reasoning_content == "calling" and choice.message.content is None
        (call,) = choice.message.tool_calls
        arguments = json.loads(call.function.arguments)
        assert arguments["a"] in fits
        assert strict == Draft202012Validator(function["parameters"]).is_valid(arguments)
