"""What a schema asks is kept to or refused: against xgrammar itself, whose grammars vLLM uses."""

import json
import time
from enum import Enum
from functools import cache
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from thinkgate_serve.schemas import rule_not_kept

OBJECT = {"type": "object"}
INTEGER = {"type": "integer"}
A = {"type": "object", "properties": {"a": INTEGER}}

# a schema, and a value that does not fit it
CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "not": ({"not": {}}, 1),
    "not, deep": ({"type": "array", "items": {"not": {"const": 5}}}, [5]),
    "if": ({"if": {"type": "string"}, "then": {"minLength": 3}}, "a"),
    "two at once": ({"allOf": [OBJECT, {"type": "object", "maxProperties": 0}]}, {"a": 1}),
    "one of allOf": ({"allOf": [INTEGER]}, "x"),
    "beside allOf": (A | {"required": ["a"], "allOf": [OBJECT]}, {}),
    "beside anyOf": ({"type": "string", "anyOf": [INTEGER]}, 5),
    "beside $ref": (
        {"$ref": "#/$defs/a", "minimum": 5, "$defs": {"a": INTEGER}},
        3,
    ),
    "beside enum": ({"type": "integer", "enum": [1, "a"]}, "a"),
    "enum and const": ({"enum": [1, 2], "const": 3}, 2),
    "beside const": ({"type": "integer", "const": "a"}, "a"),
    "dependent": (
        OBJECT | {"properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}},
        {"a": 1},
    ),
    "required and unknown": (A | {"required": ["z"]}, {"a": 1}),
    "required alone": ({"required": ["z"]}, {}),
    "minimum": ({"type": "integer", "minimum": 5}, 3),
    "minimum of anything": ({"minimum": 5}, 3),
    "length of anything": ({"maxLength": 2}, "abc"),
    "items of anything": ({"minItems": 2}, [1]),
    "pattern": ({"type": "string", "pattern": "^a$"}, "b"),
    "pattern of anything": ({"pattern": "^a$"}, "b"),
    "looking ahead": ({"type": "string", "pattern": "(?=a)b"}, "b"),
    "elsewhere": ({"$ref": "https://example.org/schema"}, 1),
    "a file": ({"$ref": "file:///schema"}, 1),
    "an anchor": ({"$ref": "#a", "$defs": {"b": {"$anchor": "a", "type": "integer"}}}, "x"),
    "dynamic": (
        {"$dynamicRef": "#a", "$defs": {"b": {"$dynamicAnchor": "a", "type": "integer"}}},
        "x",
    ),
    "additional": (OBJECT | {"additionalProperties": INTEGER}, {"a": "x"}),
    "names": (OBJECT | {"propertyNames": {"pattern": "^a$", "type": "string"}}, {"b": 1}),
    "prefix": ({"type": "array", "prefixItems": [INTEGER]}, ["x"]),
    "several types": ({"type": ["integer", "null"], "minimum": 5}, 3),
}


@cache
def compiler() -> Any:
    import xgrammar

    characters = [chr(code) for code in range(32, 127)]
    vocabulary = xgrammar.TokenizerInfo([*characters, "<eos>"], stop_token_ids=[95])
    return xgrammar.GrammarCompiler(vocabulary)


def accepts(schema: dict[str, Any], value: Any) -> bool:
    import xgrammar

    grammar = compiler().compile_json_schema(json.dumps(schema))
    matcher = xgrammar.GrammarMatcher(grammar, terminate_without_stop_token=True)
    return matcher.accept_string(json.dumps(value)) and matcher.is_terminated()


@pytest.mark.parametrize("case", CASES)
def test_a_rule_holds_or_is_refused(case: str) -> None:
    schema, unfit = CASES[case]
    assert rule_not_kept(schema) is not None or not accepts(schema, unfit)


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(9, ge=0, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str | None = Field(None, max_length=20, pattern="^[a-z]+$")


class Everything(BaseModel):
    """What tools of Python programs are described by."""

    color: Color
    pet: Cat | Dog = Field(discriminator="kind")
    size: Literal["s", "m"] = "s"
    weights: dict[str, float] = {}
    pair: tuple[int, str] = (1, "a")
    anything: Any = None
    others: "list[Everything]" = Field([], max_length=3)


@pytest.mark.parametrize("model", [Cat, Dog, Everything])
def test_what_pydantic_writes_is_kept_to(model: type[BaseModel]) -> None:
    schema = model.model_json_schema()
    assert rule_not_kept(schema) is None
    compiler().compile_json_schema(json.dumps(schema))


def test_names_of_properties_are_no_rules() -> None:
    named = {"not": INTEGER, "if": INTEGER, "$ref": INTEGER, "allOf": INTEGER}
    assert rule_not_kept(OBJECT | {"properties": named, "required": ["not"]}) is None


def test_a_long_list_takes_no_long_time() -> None:
    schema = {"type": "string", "enum": [str(number) for number in range(20_000)]}
    began = time.process_time()
    assert rule_not_kept(schema) is None
    assert time.process_time() - began < 2


def test_the_place_is_named() -> None:
    schema = {"type": "array", "items": OBJECT | {"properties": {"a": {"minimum": 5}}}}
    assert rule_not_kept(schema) == "at '/items/properties/a' 'minimum' needs a 'type' beside it"
