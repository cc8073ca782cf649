"""Whether two JSON schemas exclude each other: no value fits both.

Owns what can be told by looking at them: other types, other listed values, a required property that
differs, a property that one requires and the other forbids. What cannot be told counts as no. A
grammar gives a text the shape of any one branch, so only where they exclude each other has it the
shape of exactly one. References lead into the whole schema, which was checked to be one.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations, product
from typing import Any

__all__ = ["Exclusive"]

TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
MAX_STEPS = 500_000
"""Comparisons and listed values looked at: a second's work, hundreds of branches."""
MAX_DEPTH = 20
"""References and properties followed: schemas may go in circles."""


class Exclusive:
    """Asks about the parts of one schema."""

    def __init__(self, whole: Mapping[str, Any]) -> None:
        from jsonschema import Draft202012Validator
        from referencing import Registry

        self._whole = whole
        # A registry of nothing: the default one fetches what a client's schema refers to.
        self._validator = Draft202012Validator(whole, registry=Registry())
        self._steps = 0

    def fits(self, values: Iterable[Any], schema: Mapping[str, Any]) -> Iterator[bool | None]:
        """Whether each of `values` fits a part of the whole; None when that refers to what is not
        there, or when a client's pattern would have to be matched: Python takes exponential time
        over some, and holds up every other request meanwhile."""
        from referencing.exceptions import Unresolvable

        matches = self._has_patterns(schema)
        validator = self._validator.evolve(schema=schema)
        for value in values:
            try:
                yield None if matches else validator.is_valid(value)
            except Unresolvable:
                yield None

    def _has_patterns(self, schema: Any) -> bool:
        """In it, or in the whole when it refers there."""
        waiting, refers = [schema], False
        while waiting:
            part = waiting.pop()
            if isinstance(part, Mapping):
                # A property may be called `pattern`; what it has is no string.
                if isinstance(part.get("pattern"), str) or "patternProperties" in part:
                    return True
                if not refers and isinstance(part.get("$ref"), str):
                    refers = True
                    waiting.append(self._whole)
                waiting += part.values()
            elif isinstance(part, list):
                waiting += part
        return False

    def referred(self, reference: str) -> Any:
        """What `#/a/b` names."""
        found: Any = self._whole
        for name in reference.removeprefix("#").split("/")[1:]:
            name = name.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, Mapping) else None
        return found

    def overlap(self, branches: list[Any]) -> tuple[int, int] | None:
        """The first two of `branches` that one value may fit both of."""
        for (at, one), (other_at, other) in combinations(enumerate(branches), 2):
            if not self._exclude(one, other, MAX_DEPTH):
                return at, other_at
        return None

    def _exclude(self, one: Any, other: Any, depth: int) -> bool:
        pairs = product(self._simple(one, depth), self._simple(other, depth))
        return all(self._differ(a, b, depth) for a, b in pairs)

    def _simple(self, schema: Any, depth: int) -> Iterator[Any]:
        """The schemas without references and choices of which `schema` is one; else a `True`."""
        self._steps += 1
        if depth < 0 or self._steps > MAX_STEPS or not isinstance(schema, Mapping):
            yield True
        elif "$ref" in schema:
            yield from self._simple(self.referred(schema["$ref"]), depth - 1)
        elif choices := schema.get("anyOf") or schema.get("oneOf"):
            for choice in choices:
                yield from self._simple(choice, depth - 1)
        else:
            yield schema

    def _differ(self, one: Any, other: Any, depth: int) -> bool:
        self._steps += 1
        if one is True or other is True or self._steps > MAX_STEPS:
            return False
        if self._lists_what_is_unfit(one, other) or self._lists_what_is_unfit(other, one):
            return True
        common = _types(one) & _types(other)
        return not common or (common == {"object"} and self._objects_differ(one, other, depth))

    def _lists_what_is_unfit(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        if "const" not in one and "enum" not in one:
            return False
        values = [one["const"]] if "const" in one else one["enum"]
        self._steps += len(values) * len(other.get("enum", "1"))
        if self._steps > MAX_STEPS:
            return False
        return all(fit is False for fit in self.fits(values, other))

    def _objects_differ(self, one: Mapping[str, Any], other: Mapping[str, Any], depth: int) -> bool:
        present = {*one.get("required", ()), *other.get("required", ())}
        of_one, of_other = one.get("properties", {}), other.get("properties", {})
        if any(
            self._exclude(of_one.get(name), of_other.get(name), depth - 1)
            for name in sorted(present)
        ):
            return True
        return _forbids(one, other) or _forbids(other, one)


def _types(schema: Mapping[str, Any]) -> frozenset[str]:
    """What values may be."""
    given = schema.get("type", TYPES)
    types = frozenset({given} if isinstance(given, str) else given)
    return types | {"integer"} if "number" in types else types


def _forbids(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether `other` requires a property that `one` has no place for."""
    closed = one.get("additionalProperties") is False and "patternProperties" not in one
    return closed and not set(other.get("required", ())) <= set(one.get("properties", ()))
