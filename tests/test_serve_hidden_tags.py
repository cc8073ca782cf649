"""Calls whose arguments hold the very tags calls are written with, through vLLM's own parsers."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from calling import CALL, KIMI, SAY, Ascii, made, streamed, whole
from conftest import ADD
from fake_engine import FakeEngine, pieces
from hypothesis import example, given, settings
from hypothesis import strategies as st

from thinkgate_serve.hidden_tags import HiddenTags
from thinkgate_serve.messages import Tool
from thinkgate_serve.tools import Reader, Said, gather
from thinkgate_serve.vllm_tools import VLLMToolParser

HERMES = ("<tool_call>", "</tool_call>")
TAGS = [*HERMES, "<longcat_tool_call>", "</longcat_tool_call>", *KIMI, "<think>", "</think>"]
TEXTS = st.lists(
    st.sampled_from([*TAGS, "<", "</", "tool_call>", '"', "\\", "\\u003c", "\n", "{", "}", "é"])
    | st.text(max_size=3),
    max_size=5,
).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
CALLS = st.lists(
    st.tuples(st.sampled_from(["add", "say"]), st.dictionaries(TEXTS, VALUES, max_size=3)),
    min_size=1,
    max_size=3,
)
DUMPS = st.fixed_dictionaries({"ensure_ascii": st.booleans(), "indent": st.sampled_from([None, 1])})
CUTS = st.sampled_from([1, 2, 3, 7, 10_000])


def written(parser: str, calls: Sequence[tuple[str, Any]], dumps: dict[str, Any]) -> str:
    if parser == "kimi_k2":
        section, call, arguments, end, close = KIMI
        each = (
            f"{call}functions.{name}:{index}{arguments}{json.dumps(given, **dumps)}{end}"
            for index, (name, given) in enumerate(calls)
        )
        return section + "".join(each) + close
    tag = {"hermes": "tool_call", "longcat": "longcat_tool_call"}[parser]
    each = (json.dumps({"name": name, "arguments": given}, **dumps) for name, given in calls)
    return "\n".join(f"<{tag}>\n{call}\n</{tag}>" for call in each)


def reader(parser: str) -> Reader:
    tools = [Tool.model_validate(tool) for tool in (ADD, SAY)]
    return VLLMToolParser(parser).reader(tools, Ascii())


def in_pieces(parser: str, text: str, size: int) -> list[Said]:
    arriving = reader(parser)
    said = [
        one for at in range(0, len(text), size) for one in arriving.feed(text[at : at + size], [1])
    ]
    return [*said, *arriving.close()]


@pytest.mark.parametrize("parser", ["hermes", "longcat", "kimi_k2"])
@settings(derandomize=True, max_examples=100, deadline=None)
@given(calls=CALLS, dumps=DUMPS, size=CUTS)
@example(calls=[("say", {"<tool_call>": r'\"</tool_call>\\"<'})], dumps={}, size=1)
def test_arguments_hold_any_text(
    parser: str, calls: list[tuple[str, Any]], dumps: dict[str, Any], size: int
) -> None:
    text = "So <b>it</b> is." + written(parser, calls, dumps)
    for said in (reader(parser).whole(text), in_pieces(parser, text, size)):
        content, found = gather(said)
        assert content == "So <b>it</b> is."
        assert [(call.name, json.loads(call.arguments)) for call in found] == calls


@pytest.mark.parametrize("way", [whole, streamed])
def test_a_client_reads_a_tag_within_a_string(way: Any) -> None:
    text = CALL.replace("7", '"7</tool_call><tool_call>"')
    choice = way(FakeEngine(pieces(text, *range(1, len(text)))))
    assert made(choice) == [("add", {"a": "7</tool_call><tool_call>", "b": 8})]
    assert choice["message"]["content"] is None


@pytest.mark.parametrize("way", [whole, streamed])
def test_half_a_surrogate_pair_in_arguments_is_no_error(way: Any) -> None:
    text = CALL.replace("7", r'"\ud83d"')
    assert made(way(FakeEngine(pieces(text)))) == [("add", {"a": "\ud83d", "b": 8})]


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([*HERMES, '"', "\\", "<b>", "{", "}", "x", "\n"]), max_size=10).map(
        "".join
    ),
    CUTS,
)
@example('A "<tool_call>" begins a "call</b>"', 1)
@example("<tool_c", 1)
def test_text_that_calls_nothing_is_left_as_it_is(text: str, size: int) -> None:
    assert gather(reader("hermes").whole(text)) == (text, [])
    assert gather(in_pieces("hermes", text, size)) == (text, [])


def test_a_call_cut_short_is_text_or_incomplete() -> None:
    text = f'So: {HERMES[0]}{{"name": "add", "arguments": {{"a": "</tool_call>'
    assert gather(reader("hermes").whole(text)) == (text, [])
    content, (call,) = gather(in_pieces("hermes", text, 1))
    assert content == "So: "
    assert (call.name, json.loads(call.arguments + '"}')) == ("add", {"a": "</tool_call>"})


@settings(derandomize=True, max_examples=100)
@given(TEXTS, TEXTS, CUTS)
@example('{"a": "cut', '} <b> "<b>"', 1)
def test_what_is_outside_the_strings_of_calls_is_left_as_it_is(
    inside: str, after: str, size: int
) -> None:
    text = f'<b> "<b>"{HERMES[0]}{inside}\n"\n{HERMES[1]}{after}'
    hidden = HiddenTags(*HERMES)
    seen = "".join(hidden.feed(text[at : at + size]) for at in range(0, len(text), size))
    assert seen == HiddenTags(*HERMES).feed(text)
    assert seen.replace("\\u003c", "<") == text.replace("\\u003c", "<")
    assert seen.startswith(f'<b> "<b>"{HERMES[0]}')


@pytest.mark.parametrize("broken", ['{"name": "add", "arguments": {"a": "cut}}\n', '"\\<', '"\n"'])
def test_a_string_that_is_none_hides_no_end(broken: str) -> None:
    """The calls after it are still found."""
    text = f"{HERMES[0]}{broken}{HERMES[1]}{CALL}"
    assert HiddenTags(*HERMES).feed(text) == text
