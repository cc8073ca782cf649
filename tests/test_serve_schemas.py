"""What a schema asks is kept to or refused: against xgrammar itself, whose grammars vLLM uses."""

import http.server
import json
import threading
import time
from enum import Enum
from itertools import product
from typing import Any, Literal

import pytest
from grammars import accepts, compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
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
    "in no known place": (
        {"$ref": "#/components/a", "components": {"a": {"type": "integer", "not": {"const": 3}}}},
        3,
    ),
    "an anchor": ({"$ref": "#a", "$defs": {"b": {"$anchor": "a", "type": "integer"}}}, "x"),
    "dynamic": (
        {"$dynamicRef": "#a", "$defs": {"b": {"$dynamicAnchor": "a", "type": "integer"}}},
        "x",
    ),
    "additional": (OBJECT | {"additionalProperties": INTEGER}, {"a": "x"}),
    "names": (OBJECT | {"propertyNames": {"pattern": "^a$", "type": "string"}}, {"b": 1}),
    "prefix": ({"type": "array", "prefixItems": [INTEGER]}, ["x"]),
    "several types": ({"type": ["integer", "null"], "minimum": 5}, 3),
    "fits both": ({"oneOf": [INTEGER, {"type": "number"}]}, 1),
    "fits both, deep": ({"type": "array", "items": {"oneOf": [A, OBJECT]}}, [{"a": 1}]),
}


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


COUNTING = (
    "a{128} a{129} a{128,} a{129,} (ab){0,128} (ab){0,129} [0-9]{1,200} a{2}b{200} x(a{0,1000})y "
    r"\{200\} [{200}]{3} [\]{200}]a{3}"
)


@pytest.mark.parametrize("pattern", COUNTING.split())
def test_patterns_count_as_far_as_vllm_does(pattern: str) -> None:
    for schema in (
        {"type": "string", "pattern": f"^{pattern}$"},
        OBJECT | {"patternProperties": {f"^{pattern}$": INTEGER}},
    ):
        if rule_not_kept(schema) is None:
            compiler().compile_json_schema(json.dumps(schema))
        else:
            with pytest.raises(RuntimeError):
                compiler().compile_json_schema(json.dumps(schema))


@pytest.mark.parametrize("model", [Cat, Dog, Everything])
def test_what_pydantic_writes_is_kept_to(model: type[BaseModel]) -> None:
    schema = model.model_json_schema()
    assert rule_not_kept(schema) is None
    compiler().compile_json_schema(json.dumps(schema))


@pytest.mark.parametrize(
    "part", [{"required": 5}, {"allOf": 5}, {"$ref": 5}, {"enum": 5}, {"a": 1}]
)
def test_what_only_a_reference_knows_of_is_looked_at(part: dict[str, Any]) -> None:
    """Nobody checked before that it is a schema."""
    refers = {"$ref": "#/components/a"}
    schema = {"oneOf": [INTEGER, refers], "components": {"a": OBJECT | part}}
    if part == {"a": 1}:
        assert rule_not_kept(schema) is None
    else:
        with pytest.raises(SchemaError):
            rule_not_kept(schema)
    assert rule_not_kept(schema | {"components": {}}) is not None  # leads nowhere


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


def kind(kind: str, **more: Any) -> dict[str, Any]:
    properties = {"kind": {"const": kind}, **more}
    return {"type": "object", "properties": properties, "required": ["kind"]}


def closed(name: str) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {}}, "required": [name],
            "additionalProperties": False}  # fmt: skip


EXCLUSIVE: dict[str, list[Any]] = {
    "types": [INTEGER, {"type": ["string", "null"]}, A],
    "values": [{"enum": [1, 2]}, {"const": 3}, {"type": "string"}, {"enum": [True]}],
    "kinds": [kind("cat"), kind("dog", name={"type": "string"}), {"type": "null"}],
    "kind that one requires": [
        kind("cat"),
        {k: v for k, v in kind("dog").items() if k != "required"},
    ],
    "references": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b~1c"}],
    "choices": [{"anyOf": [kind("cat"), kind("dog")]}, {"oneOf": [kind("cow"), INTEGER]}],
    "closed": [closed("a"), closed("b")],
    "many": [kind(str(number)) for number in range(300)],
    "long lists": [{"enum": [f"{name}{n}" for n in range(500)]} for name in "ab"],
}
OVERLAPPING: dict[str, list[Any]] = {
    "same": [INTEGER, INTEGER],
    "numbers": [{"type": "number"}, {"const": 1}],
    "no kind needed": [{k: v for k, v in kind(n).items() if k != "required"} for n in "ab"],
    "any of them": [kind("cat"), {}],
    "always": [True, INTEGER],
    "no type": [{"properties": {"k": {"const": n}}, "required": ["k"]} for n in "ab"],
    "pattern": [
        closed("a"),
        OBJECT | {"patternProperties": {"^a": {}}, "additionalProperties": False},
    ],
    "ranges": [INTEGER | {"minimum": 5}, INTEGER | {"maximum": 4}],  # they do not, in fact
    "circles": [{"$ref": "#/$defs/circle"}, {"$ref": "#/$defs/round"}],
    "nowhere": [INTEGER, {"$ref": "#/$defs/nowhere"}],
}
CIRCLE = {"type": "object", "required": ["n"], "properties": {"n": {"$ref": "#/$defs/circle"}}}
DEFS = {"a": kind("a"), "b/c": {"$ref": "#/$defs/b"}, "b": kind("b"), "circle": CIRCLE,
        "round": CIRCLE}  # fmt: skip


@pytest.mark.parametrize("case", EXCLUSIVE)
def test_schemas_that_exclude_each_other_may_stand_in_one_of(case: str) -> None:
    schema = {"oneOf": EXCLUSIVE[case], "$defs": DEFS}
    assert rule_not_kept(schema) is None
    assert (
        rule_not_kept({"type": "array", "items": {"oneOf": EXCLUSIVE[case]}, "$defs": DEFS}) is None
    )


@pytest.mark.parametrize("case", OVERLAPPING)
def test_others_may_not_and_are_named(case: str) -> None:
    schema = {"type": "array", "items": {"oneOf": OVERLAPPING[case]}, "$defs": DEFS}
    problem = rule_not_kept(schema)
    assert problem is not None and problem.startswith("at '/items' 'oneOf'")
    assert "fit both '0' and '1'" in problem and "or write 'anyOf'" in problem


LEAVES: list[Any] = [None, True, 1, 2, 1.5, "x", "y"]
OBJECTS = [
    {name: value for name, value in zip("ab", values, strict=True) if value != "absent"}
    for values in product([*LEAVES, {}, "absent"], repeat=2)
]
NAMES = ["null", "boolean", "integer", "number", "string", "object"]
leaves = (
    st.sampled_from(LEAVES).map(lambda value: {"const": value})
    | st.lists(st.sampled_from(LEAVES), min_size=1, max_size=3).map(lambda them: {"enum": them})
    | st.sampled_from(NAMES).map(lambda name: {"type": name})
    | st.lists(st.sampled_from(NAMES), min_size=1, unique=True).map(lambda them: {"type": them})
    | st.just({"$ref": "#/$defs/one"})
)


@st.composite
def objects(draw: st.DrawFn) -> dict[str, Any]:
    properties = {name: draw(leaves) for name in "ab" if draw(st.booleans())}
    required = [name for name in properties if draw(st.integers(0, 3))]
    schema: dict[str, Any] = {"properties": properties, "required": required}
    schema |= {"type": "object"} if draw(st.integers(0, 4)) else {}
    return schema | draw(st.sampled_from([{}, {"additionalProperties": False}]))


branches = st.recursive(
    leaves | objects(),
    lambda inner: st.tuples(
        st.sampled_from(["anyOf", "oneOf"]), st.lists(inner, min_size=1, max_size=2)
    ).map(lambda choice: {choice[0]: choice[1]}),
    max_leaves=4,
)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(branches, min_size=2, max_size=3), leaves | objects())
def test_every_text_a_one_of_lets_through_is_valid(them: list[Any], one: Any) -> None:
    """Under jsonschema, of all small values; whatever the schemas, if they are not refused."""
    schema = {"oneOf": them, "$defs": {"one": one}}
    if one.get("$ref") or rule_not_kept(schema) is not None:
        return
    valid = Draft202012Validator(schema).is_valid
    for value in [*LEAVES, *OBJECTS]:
        assert valid(value) or not accepts(schema, value), value


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "(a+)+$", "enum": ["a" * 60 + "!"]},
        {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/slow"}},
            "const": {"a": "a" * 60 + "!"},
            "$defs": {"slow": {"type": "string", "pattern": "(a+)+$"}},
        },
        OBJECT | {"patternProperties": {"(a+)+$": {}}, "const": {"a" * 60 + "!": 1}},
        {"oneOf": [{"const": "a" * 60 + "!"}, {"type": "string", "pattern": "(a+)+$"}]},
    ],
)
def test_no_pattern_of_a_client_is_matched_by_python(schema: dict[str, Any]) -> None:
    """It would take years, during which nobody else gets an answer."""
    assert rule_not_kept(schema) is not None


def test_a_property_may_be_called_pattern() -> None:
    named = {"type": "object", "properties": {"pattern": INTEGER}, "required": ["pattern"]}
    assert rule_not_kept({"oneOf": [{"const": "x"}, named]}) is None


def test_listed_values_may_stand_beside_references_and_nothing_is_fetched() -> None:
    asked: list[str] = []

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    def listed(reference: str, value: Any) -> dict[str, Any]:
        inner = {"type": "object", "properties": {"a": {"$ref": reference}}, "enum": [{"a": value}]}
        return {"oneOf": [inner, {"const": 1}], "$defs": {"a": INTEGER}}

    assert rule_not_kept(listed("#/$defs/a", 1)) is None
    assert rule_not_kept(listed("#/$defs/a", "x")) is not None
    with http.server.HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert rule_not_kept(listed(f"http://127.0.0.1:{server.server_port}/a", 1)) is not None
        server.shutdown()
    assert asked == []
