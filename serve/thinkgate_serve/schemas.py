"""Which JSON schemas answers are really held to, and how one stands within another.

Owns what vLLM's grammars (xgrammar 0.2) read over without a word: a rule that would silently not
hold is named, so that the request can be refused. What they refuse themselves is not repeated
here. They take `oneOf` for `anyOf`, which it is where its schemas exclude each other.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from thinkgate_serve.exclusive import Exclusive

__all__ = ["no_schema", "placed", "rule_not_kept"]

UNKNOWN = (
    "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies",
    "$dynamicRef", "$recursiveRef",
)  # fmt: skip
ALONE = ("$ref", "anyOf", "oneOf", "allOf")
"""Beside one of these no other rule is looked at."""
TYPED = frozenset({
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength",
    "pattern", "format", "minItems", "maxItems", "minProperties", "maxProperties",
})  # fmt: skip
"""Looked at only beside a type."""
RULES = TYPED | {
    *ALONE, "type", "enum", "const", "properties", "required", "additionalProperties",
    "patternProperties", "propertyNames", "items", "prefixItems", "multipleOf", "uniqueItems",
    "contains", "unevaluatedProperties", "unevaluatedItems",
}  # fmt: skip
NAMED = ("properties", "patternProperties", "$defs", "definitions")
LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
NESTED = (
    "items", "additionalProperties", "propertyNames", "contains", "unevaluatedProperties",
    "unevaluatedItems",
)  # fmt: skip
DATA = frozenset({"enum", "const", "default", "examples"})
"""What stands in these is no schema."""
LOOKAROUNDS = ("(?=", "(?!", "(?<")
MAX_COUNT = 128
"""xgrammar 0.2.7 fails on `a{129}`."""
COUNT = re.compile(r"\{(\d+)(?:,(\d*))?\}")
LITERAL = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]", re.DOTALL)
"""Of a pattern, what stands for itself though it may have braces in it: `\\{`, `[{}]`."""


def no_schema(schema: Any) -> str | None:
    """What makes it no JSON schema, and where; None when it is one."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    error = best_match(Draft202012Validator(Draft202012Validator.META_SCHEMA).iter_errors(schema))
    if error is None:
        return None
    return f"at '/{'/'.join(map(str, error.absolute_path))}' {error.message}"


def rule_not_kept(schema: Mapping[str, Any] | None) -> str | None:
    """The first rule an answer would not be held to, and where; None when it is held to all."""
    if schema is None:
        return None
    exclusive = Exclusive(schema)
    for path, part in _schemas(schema, exclusive).items():
        problem = _problem(part) or _unfit_value(part, exclusive) or _both_fit(part, exclusive)
        if problem is not None:
            return f"at '{path or '/'}' {problem}"
    return None


def placed(schema: Mapping[str, Any], place: str) -> dict[str, Any]:
    """`schema` for a part of another one, at the path `place` (`#/a/b`): its references to itself
    lead there, and it has no name of its own, which they would be read against."""
    moved = _moved(schema, place)
    return {key: part for key, part in moved.items() if key not in ("$id", "$schema")}


def _moved(part: Any, place: str) -> Any:
    if isinstance(part, list):
        return [_moved(one, place) for one in part]
    if not isinstance(part, Mapping):
        return part
    moved = dict(part)
    for key in moved.keys() - DATA:
        value = moved[key]
        if key in NAMED and isinstance(value, Mapping):
            moved[key] = {name: _moved(one, place) for name, one in value.items()}
        elif key != "$ref":
            moved[key] = _moved(value, place)
        elif value == "#" or str(value).startswith("#/"):
            moved[key] = place + value[1:]
    return moved


def _schemas(whole: Mapping[str, Any], exclusive: Exclusive) -> dict[str, Mapping[str, Any]]:
    """All in it by path, those included that only a reference knows of: `#/components/A`, say.

    SchemaError when such a one is none; whether the others are was checked before.
    """
    from jsonschema import Draft202012Validator

    found: dict[str, Mapping[str, Any]] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", whole)]
    referred: list[str] = []
    while waiting or referred:
        unchecked = not waiting  # all that is in known places was seen
        if unchecked:
            reference = referred.pop(0)
            waiting.append((reference.removeprefix("#"), exclusive.referred(reference)))
        path, part = waiting.pop()
        if id(part) in seen or not isinstance(part, Mapping):
            continue
        if unchecked:
            Draft202012Validator.check_schema(part)
        seen.add(id(part))
        found[path] = part
        waiting += reversed([(f"{path}/{name}", inner) for name, inner in _parts(part)])
        referred += [part["$ref"]] if "$ref" in part else []
    return found


def _problem(schema: Mapping[str, Any]) -> str | None:
    for key in UNKNOWN:
        if key in schema:
            return f"'{key}' is not supported"
    rules = RULES.intersection(schema)
    for key in ALONE:
        if key in rules and (others := sorted(rules - {key})):
            return f"'{others[0]}' does not hold beside '{key}'; put it inside"
    if len(schema.get("allOf", ())) > 1:
        return "'allOf' of several schemas is not supported; write them as one"
    if not str(schema.get("$ref", "#")).startswith("#/") and schema.get("$ref", "#") != "#":
        return "'$ref' must be a path within the schema, such as '#/$defs/NAME'"
    if "type" not in rules and (untyped := sorted(rules & TYPED)) and not _lists_values(schema):
        return f"'{untyped[0]}' needs a 'type' beside it"
    missing = set(schema.get("required", ())).difference(schema.get("properties", ()))
    if missing:
        return f"'required' names '{min(missing)}', which 'properties' lacks"
    for pattern in (schema.get("pattern", ""), *schema.get("patternProperties", ())):
        if any(mark in pattern for mark in LOOKAROUNDS):
            return "a pattern looks around, which is not supported"
        for counts in COUNT.findall(LITERAL.sub("", pattern)):
            if (most := max(int(count[:9] or 0) for count in counts)) > MAX_COUNT:
                return (
                    f"a pattern counts to {most}, and vLLM to {MAX_COUNT} at most; for a length "
                    "alone write 'minLength' or 'maxLength'"
                )
    return None


def _both_fit(schema: Mapping[str, Any], exclusive: Exclusive) -> str | None:
    overlap = exclusive.overlap(schema.get("oneOf", []))
    if overlap is None:
        return None
    one, other = overlap
    return (
        f"'oneOf' does not hold where an answer may fit both '{one}' and '{other}'; let each be an "
        "'object' with a required property of another 'const', or write 'anyOf'"
    )


def _lists_values(schema: Mapping[str, Any]) -> bool:
    return "enum" in schema or "const" in schema


def _unfit_value(schema: Mapping[str, Any], exclusive: Exclusive) -> str | None:
    """Of values that are listed all may be given, whatever rules stand beside the list."""
    if not _lists_values(schema):
        return None
    values = schema["enum"] if "enum" in schema else [schema["const"]]
    # Without the list itself, which would be searched for each of its values.
    rest = {key: schema[key] for key in RULES.intersection(schema) - {"enum", "const"}}
    fit = list(exclusive.fits(values, rest))
    if all(fit):
        return None
    if False in fit:
        return "a value that is listed does not fit the other rules"
    return "whether the listed values fit the patterns or references beside them is not looked at"


def _parts(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The schemas within, each with its path."""
    for key in NAMED:
        for name, part in schema.get(key, {}).items():
            yield f"{key}/{name}", part
    for key in LISTED:
        for at, part in enumerate(schema.get(key, ())):
            yield f"{key}/{at}", part
    for key in NESTED:
        if key in schema:
            yield key, schema[key]
