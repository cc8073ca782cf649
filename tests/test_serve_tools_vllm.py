"""Tool calls of a real model on real vLLM."""

import json
from typing import Any

import pytest
from calling import STRICT
from conftest import ADD
from jsonschema import Draft202012Validator
from serving import client, without_spaces

from thinkgate_clients.local import LocalServer

pytestmark = pytest.mark.slow


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

    parsed = client(served).chat.completions.parse(
        **asked | {"tools": [STRICT], "logit_bias": without_spaces(served)}
    )

    # What came back goes back as it is, with the result.
    turns = asked.pop("messages")
    for message in (choice.message, final.message, parsed.choices[0].message):
        for said in (message, message.to_dict(), message.model_dump()):
            result = {"role": "tool", "tool_call_id": call.id, "content": "15"}
            messages: Any = [*turns, said, result]
            reply = client(served).chat.completions.create(messages=messages, **asked)
            assert reply.choices[0].message.content == "It is 15."


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


def test_on_responses_a_function_is_strict_unless_it_says_otherwise(served: LocalServer) -> None:
    function = STRICT["function"] | {"type": "function"}
    del function["strict"]
    beyond = {"not": {}}  # a rule vLLM would read over
    for changed, strict in (
        ({}, True),
        ({"strict": False}, False),
        ({"parameters": function["parameters"] | beyond}, False),
    ):
        asked: Any = {
            "model": served.model, "input": "add", "tools": [function | changed],
            "temperature": 0, "max_output_tokens": 300,
            "extra_body": {"logit_bias": without_spaces(served)} if strict else {},
        }  # fmt: skip
        response = client(served).responses.create(**asked)
        called = [item for item in response.output if item.type == "function_call"]
        assert [tool.strict for tool in response.tools] == [strict]
        assert json.loads(called[0].arguments)["a"] in ([1, 2] if strict else [7])
