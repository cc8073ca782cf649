"""Suites: which problems are asked, how, and how often, with one fingerprint over all of it.

Two results are comparable when, and only when, their fingerprints are equal. It does not know who
is asked or what came back.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from thinkgate.config import Config, apply_overrides, bundled, parse, read_yaml
from thinkgate.problems import Problem, ProblemSet, load

__all__ = ["LoadedSuite", "Prompt", "Sampling", "Suite", "changed_keys", "load_suite"]

SLOT = "{prompt}"


class Prompt(Config):
    """How a problem becomes the messages that are sent."""

    system: str | None = None
    template: str = SLOT
    """The user's message; the problem goes where it says {prompt}."""

    @model_validator(mode="after")
    def _has_slot(self) -> "Prompt":
        if SLOT not in self.template:
            raise ValueError(f"template needs {SLOT} where the problem goes")
        return self

    def messages(self, problem: str) -> list[dict[str, str]]:
        """An optional system message and one user message."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.template.replace(SLOT, problem)}]


class Sampling(Config):
    """How answers are drawn."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Annotated[int, Field(gt=0)] = 4096
    """Reasoning and answer together."""

    thinking_budget: Annotated[int, Field(gt=0)] | None = Field(
        default=None, exclude_if=lambda value: value is None
    )
    """Tokens of the thought at most; None leaves it to `max_tokens`. An endpoint that does not keep
    to it stops the run."""

    seed: int = 0
    """Every sample gets its own seed, derived from this, the problem and the repeat."""


class Suite(Config):
    """A measurement, completely described."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    version: Annotated[int, Field(ge=1)] = 1
    description: str = ""
    data: ProblemSet
    prompt: Prompt = Prompt()
    sampling: Sampling = Sampling()
    samples: Annotated[int, Field(ge=1, le=1024)] = 1
    """Answers per problem."""

    def identity(self) -> dict[str, Any]:
        """What decides the results, as JSON: all but the description and where a file lies."""
        result = self.model_dump(mode="json", exclude={"description"})
        result["data"].pop("path", None)
        result["data"].pop("local", None)
        return result


@dataclass(frozen=True)
class LoadedSuite:
    """A suite with all its problems; a limit on how many are asked does not change what it is."""

    suite: Suite
    problems: tuple[Problem, ...]
    order_seed: int | None = None
    """Asks the problems in a random order; like a limit, it does not change what the suite is."""

    @property
    def name(self) -> str:
        """The suite's name: its records lie under it."""
        return self.suite.name

    def identity(self) -> dict[str, Any]:
        """The suite's identity and a digest of the problems."""
        content = "\n".join(json.dumps([p.id, p.prompt, p.gold]) for p in self.problems)
        return self.suite.identity() | {"problems": _sha256(content)}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides the results."""
        return _sha256(json.dumps(self.identity(), sort_keys=True))

    def planned(self, limit: int | None) -> tuple[Problem, ...]:
        """The first `limit` problems, or all, in the order in which they are asked."""
        return self._ordered[:limit]

    @cached_property
    def _ordered(self) -> tuple[Problem, ...]:
        if self.order_seed is None:
            return self.problems
        return tuple(sorted(self.problems, key=lambda p: _sha256(f"{self.order_seed} {p.id}")))


def load_suite(
    name: str, *, data_dir: Path | None = None, overrides: Iterable[str] = ()
) -> LoadedSuite:
    """The suite shipped as `name`, in the file `name`, or over the problems in `jsonl:PATH`."""
    if name.startswith("jsonl:"):
        path = Path(name.removeprefix("jsonl:"))
        data: Mapping[str, Any] = {
            "name": re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-") or "problems",
            "data": {"source": "jsonl", "path": str(path)},
        }
        source: object = name
    else:
        source = bundled("thinkgate_evals", "suites", name)
        data = read_yaml(Path(str(source)))
    suite = parse(Suite, apply_overrides(data, overrides), source)
    return LoadedSuite(suite, tuple(load(suite.data, data_dir=data_dir)))


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted names of what differs between two identities."""
    before, after = _flat(old), _flat(new)
    return sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
