"""Parameters that refer to themselves, under every tool choice that holds calls to them."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from calling import CALL, made, streamed, whole
from fake_engine import HELLO, FakeEngine, ask, characters
from grammars import END, accepts, matcher
from jsonschema import Draft202012Validator
from pydantic import BaseModel
from serving import HERMES

from thinkgate_serve.engine import BoundCalls, Constraint
from thinkgate_serve.schemas import placed, rule_not_kept


class Node(BaseModel):
    """Pydantic gives it a `$ref` at the top."""

    v: int
    next: "Node | None" = None


INTEGER, TEXT = {"type": "integer"}, {"type": "string"}


def closed(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties],
            "additionalProperties": False, **more}  # fmt: skip


def chain(own: str) -> dict[str, Any]:
    return closed({"v": INTEGER, "next": {"anyOf": [{"$ref": own}, {"type": "null"}]}})


# parameters, arguments that fit, arguments that do not
CASES: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "$defs": (
        closed({"p": {"$ref": "#/$defs/P"}}, **{"$defs": {"P": INTEGER}}), {"p": 1}, {"p": "x"},
    ),
    "definitions": (
        closed({"p": {"$ref": "#/definitions/P"}}, definitions={"P": TEXT}), {"p": "x"}, {"p": 1},
    ),
    "a definition of the same name": (
        closed({"p": {"$ref": "#/$defs/P"}}, **{"$defs": {"P": TEXT}}), {"p": "x"}, {"p": 1},
    ),
    "a property": (
        closed({"p": INTEGER, "q": {"$ref": "#/properties/p"}}),
        {"p": 1, "q": 2}, {"p": 1, "q": "x"},
    ),
    "an unusual place": (
        closed(
            {"p": {"$ref": "#/components/schemas/P"}},
            components={"schemas": {"P": {"type": "array", "items": {"$ref": "#/$defs/T"}}}},
            **{"$defs": {"T": TEXT}},
        ),
        {"p": ["x"]}, {"p": [1]},
    ),
    "the whole": (
        chain("#"), {"v": 1, "next": {"v": 2, "next": None}}, {"v": 1, "next": {"v": "x"}},
    ),
    "its own id": (
        chain("#") | {"$id": "https://example.org/chain"},
        {"v": 1, "next": {"v": 2, "next": None}}, {"v": 1, "next": {"v": "x"}},
    ),
    "pydantic": (
        Node.model_json_schema(), {"v": 1, "next": {"v": 2}}, {"v": 1, "next": {"v": "x"}},
    ),
    "a definition of a definition": (
        closed(
            {"p": {"$ref": "#/$defs/P"}},
            **{"$defs": {"P": {"type": "array", "items": {"$ref": "#/$defs/Q"}}, "Q": TEXT}},
        ),
        {"p": ["x"]}, {"p": [1]},
    ),
    "a property called $ref": (closed({"$ref": INTEGER}), {"$ref": 1}, {"$ref": "#"}),
}  # fmt: skip


def tools(strict: bool | None = None) -> list[dict[str, Any]]:
    """One for each case, all at once."""
    return [
        {"type": "function",
         "function": {"name": f"f{at}.x", "strict": strict, "parameters": parameters}}
        for at, (parameters, _, _) in enumerate(CASES.values())
    ]  # fmt: skip


def required(tools: list[dict[str, Any]]) -> Mapping[str, Any]:
    engine = FakeEngine(characters("<think>hm</think>free"))
    whole(engine, settings=None, tools=tools, tool_choice="required")
    constraint = engine.requests[-1][1].constraint
    assert isinstance(constraint, Constraint) and constraint.schema is not None
    return constraint.schema


@pytest.mark.parametrize("case", CASES)
def test_a_required_call_is_held_to_parameters_that_refer_to_themselves(case: str) -> None:
    schema, at = required(tools()), [*CASES].index(case)
    assert rule_not_kept(schema) is None
    _, fit, unfit = CASES[case]
    valid = Draft202012Validator(schema).is_valid
    for arguments, fits in ((fit, True), (unfit, False)):
        calls = [{"name": f"f{at}.x", "parameters": arguments}]
        assert accepts(schema, calls) == valid(calls) == fits
    swapped = [{"parameters": fit, "name": f"f{at}.x"}]  # readers need the name first
    assert valid(swapped) and not accepts(schema, swapped)


def test_values_are_no_schemas() -> None:
    value = {"$ref": "#", "$id": "x"}
    given = {"const": value, "enum": [value], "default": value, "examples": [value]}
    schema = closed({"p": given, "const": {"$ref": "#"}})
    moved = placed(schema, "#/$defs/f")
    assert moved["properties"] == {"p": given, "const": {"$ref": "#/$defs/f"}}


def test_a_refusal_names_the_function_and_the_place() -> None:
    parameters = closed({"p": {"type": "array", "items": {"minimum": 5}}})
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    said = rule_not_kept(required([tool]))
    assert said == "at '/$defs/f/properties/p/items' 'minimum' needs a 'type' beside it"
    parameters["$defs"] = 5
    refused = ask(FakeEngine(()), messages=HELLO, tools=[tool], tool_choice="required")
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "tools"


@pytest.mark.parametrize("case", CASES)
def test_a_strict_call_is_held_to_parameters_that_refer_to_themselves(case: str) -> None:
    """In a structural tag each schema is a whole of its own to xgrammar."""
    engine = FakeEngine(characters("no"))
    whole(engine, settings=HERMES, tools=tools(strict=True))
    constraint, at = engine.requests[0][1].constraint, [*CASES].index(case)
    assert isinstance(constraint, BoundCalls)
    _, fit, unfit = CASES[case]
    for arguments, fits in ((fit, True), (unfit, False)):
        call = json.dumps({"name": f"f{at}.x", "arguments": arguments})
        answer = matcher(constraint.format)
        text = f"<tool_call>\n{call}\n</tool_call>"
        assert (answer.accept_string(text) and answer.accept_token(END)) == fits


@pytest.mark.parametrize("way", [whole, streamed])
def test_such_calls_reach_the_client(way: Any) -> None:
    deep = {"v": 1, "next": {"v": 2, "next": None}}
    text = CALL.replace('{"a": 7, "b": 8}', json.dumps(deep)).replace("add", "f5.x")
    assert made(way(FakeEngine(characters(text)), tools=tools())) == [("f5.x", deep)]
