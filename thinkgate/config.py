"""Strict configuration: YAML in, frozen models out; an unknown key is refused with the nearest.

Owns reading YAML, dotted overrides and the wording of configuration errors. It does not know
what any recipe, suite or policy means: those models live with their owners.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
import yaml.constructor
from pydantic import BaseModel, ConfigDict, ValidationError

from thinkgate.errors import ConfigError

__all__ = ["Config", "apply_overrides", "bundled", "nearest", "parse", "read_yaml"]


class Config(BaseModel):
    """Base of everything a user may write in YAML: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class _Strict(yaml.SafeLoader):
    """YAML as people write it now: `off`, `on`, `yes` and `no` are words and 1e-4 is a number, as
    in YAML 1.2; and a key written twice is an error, for the first value would be ignored."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        problem=f"the key '{key.value}' is written twice",
                        problem_mark=key.start_mark,
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_Strict.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_BOOL, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    (_BOOL, "^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    (
        _FLOAT,
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+.0123456789",
    ),
):
    for _character in _first:
        _Strict.yaml_implicit_resolvers.setdefault(_character, []).append(
            (_tag, re.compile(_pattern))
        )


C = TypeVar("C", bound=BaseModel)
MANY_NAMES = 40
"""A longer list is not shown whole: nobody reads it."""


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; ConfigError when it is missing, malformed or not a mapping."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        data = yaml.load(path.read_text(encoding="utf-8-sig"), _Strict)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise ConfigError(f"{path}{where}: not valid YAML: {_first_line(error)}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values at the top level")
    return cast("dict[str, Any]", data)


def apply_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`data` with `a.b=value` items applied; values are read as YAML, so `x=1e-4` is a number."""
    result = _deep_copy(data)
    for item in overrides:
        dotted, sep, raw = item.partition("=")
        if not sep or not dotted:
            raise ConfigError(f"override '{item}': write it as key=value, for example seed=1")
        *parents, last = dotted.split(".")
        node = result
        for key in parents:
            child = node.setdefault(key, {})
            if not isinstance(child, dict):
                raise ConfigError(f"override '{item}': '{key}' is a value, not a section")
            node = cast("dict[str, Any]", child)
        node[last] = _scalar(raw)
    return result


def parse(model: type[C], data: Mapping[str, Any], source: object) -> C:
    """`data` as a `model`; ConfigError naming `source`, the key and the nearest known key."""
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        reasons = (
            _explain(model, mistake, _without_tags(mistake["loc"], data))
            for mistake in _without_consequences(error.errors())
        )
        raise ConfigError(f"{source}: {'; '.join(reasons)}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """A suggestion to end a sentence with: the nearest known name, else the whole list; of a long
    list the few that come nearest."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    if len(names) <= MANY_NAMES:
        return f"known: {', '.join(names)}"
    few = difflib.get_close_matches(name, names, n=5, cutoff=0.0)
    return f"there are {len(names)}, among them {', '.join(few)}"


def bundled(package: str, folder: str, name: str) -> Path:
    """The file a user names: of a bare name the YAML that is shipped with us, else a path.

    A file that happens to be called `default` is not the policy of that name. In a checkout
    `folder` lies beside the package; in a wheel it lies inside it.
    """
    import importlib

    root = Path(cast(str, importlib.import_module(package).__file__)).parent
    places = (root.parent / folder, root / folder)
    shipped = {file.stem: file for place in places for file in place.glob("*.yaml")}
    given = Path(name)
    if name in shipped:
        return shipped[name]
    if given.is_file():
        return given
    if given.name == name and name.removesuffix(".yaml") in shipped:
        return shipped[name.removesuffix(".yaml")]
    raise ConfigError(
        f"{name}: no such file, and no shipped one has that name; {nearest(given.stem, shipped)}"
    )


def _without_consequences(errors: list[Any]) -> list[Any]:
    """Without lists that are called too short because what is in them is wrong."""
    return [
        error
        for error in errors
        if error["type"] != "too_short"
        or not any(o is not error and o["loc"][: len(error["loc"])] == error["loc"] for o in errors)
    ]


def _explain(model: type[BaseModel], error: Any, loc: list[str]) -> str:
    dotted, context = ".".join(loc), error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key '{dotted}'; {nearest(loc[-1], _known_keys(model, error))}"
        case "missing":
            return f"'{dotted}' is missing"
        case "union_tag_not_found":
            return f"'{dotted}.{context['discriminator'].strip(chr(39))}' is missing"
        case "union_tag_invalid":
            key, known = context["discriminator"].strip("'"), context["expected_tags"]
            known = nearest(context["tag"], (tag.strip("'") for tag in known.split(", ")))
            return f"'{dotted}.{key}' is '{context['tag']}'; {known}"
        case "too_short":
            return f"'{dotted}' is empty; give {context['min_length']} at least"
        case _:
            reason = _in_words(str(error["msg"]))
            if error["type"] == "value_error" and isinstance(error["input"], Mapping):
                # A whole section, whose validator names what is wrong in it.
                return f"'{dotted}': {reason}" if dotted else reason
            value = repr(error["input"])
            shown = value if len(value) <= 60 else value[:57] + "..."
            return f"'{dotted or 'top level'}' is {shown}: {reason}"


def _in_words(reason: str) -> str:
    """pydantic's words without Python's: users write lists, and the values of enums."""
    reason = reason.removeprefix("Value error, ").replace("a valid tuple", "a list")
    reason = reason.replace("a valid dictionary or object to extract fields from", "a mapping")
    reason = re.sub(r"<\w+\.\w+: ('[^']*')>", r"\1", reason)
    return f"{reason[0].lower()}{reason[1:]}"


def _without_tags(loc: tuple[int | str, ...], data: Any) -> list[str]:
    """The keys of `loc` as the user wrote them: in a discriminated union pydantic puts the tag of
    the variant between them."""
    written: list[str] = []
    for place, part in enumerate(loc):
        inside = isinstance(data, Mapping) and part in data
        if isinstance(data, Mapping) and not inside and place < len(loc) - 1:
            continue
        written.append(str(part))
        if inside or (isinstance(data, list | tuple) and isinstance(part, int)):
            data = cast("Any", data)[part]
    return written


def _known_keys(model: type[BaseModel], error: Any) -> list[str]:
    """Field names of the section with the error, found in the JSON schema, which has unions
    resolved."""
    loc = [str(part) for part in error["loc"][:-1]]
    schema = model.model_json_schema()
    nodes: list[dict[str, Any]] = [schema]
    for part in loc:
        following: list[dict[str, Any]] = []
        for node in _variants(nodes, schema):
            child: Any = node.get("properties", {}).get(part) or node.get("items")
            # In a discriminated union pydantic puts the variant's tag into the location.
            following.append(cast("dict[str, Any]", child) if isinstance(child, dict) else node)
        nodes = following
    return [key for node in _variants(nodes, schema) for key in node.get("properties", {})]


def _variants(nodes: list[dict[str, Any]], schema: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for node in nodes:
        if "$ref" in node:
            found += _variants([schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]], schema)
        elif "anyOf" in node or "oneOf" in node:
            found += _variants(node.get("anyOf", []) + node.get("oneOf", []), schema)
        else:
            found.append(node)
    return found


def _scalar(raw: str) -> Any:
    try:
        return yaml.load(raw, _Strict)
    except yaml.YAMLError:
        return raw


def _deep_copy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _deep_copy(cast("Mapping[str, Any]", value)) if isinstance(value, Mapping) else value
        for key, value in data.items()
    }


def _first_line(error: Exception) -> str:
    return " ".join(str(getattr(error, "problem", None) or error).split())
