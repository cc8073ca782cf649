"""Policies: what a checkpoint must show before it may be served, as strict YAML.

Owns the rules' names and thresholds. How evidence is weighed against them is `gate.py`'s.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from thinkgate.config import Config, bundled, parse, read_yaml
from thinkgate_evals.second_grader import Grader

__all__ = [
    "Contamination",
    "DuplicateRate",
    "ErrorRate",
    "Floor",
    "FormatRate",
    "NonInferiority",
    "Policy",
    "Rule",
    "Superiority",
    "TruncationRate",
    "load_policy",
]

Share = Annotated[float, Field(ge=0, le=1)]


class _Rule(Config):
    suite: str
    """A shipped suite, or a suite file."""


class Floor(_Rule):
    """Accuracy is at least this: the interval's lower end must reach it."""

    rule: Literal["floor"]
    at_least: Share


class Superiority(_Rule):
    """Better than the incumbent: the paired interval lies above 0, and the estimate is a gain of
    `min_gain` at least."""

    rule: Literal["superiority"]
    min_gain: Share = 0.0


class NonInferiority(_Rule):
    """Not worse than the incumbent by `margin` or more: the paired interval lies above -margin."""

    rule: Literal["non_inferiority"]
    margin: Annotated[float, Field(gt=0, le=1)]


class FormatRate(_Rule):
    """Share of samples with a closed thought and then an answer; the lower end must reach it."""

    rule: Literal["format_rate"]
    at_least: Share


class TruncationRate(_Rule):
    """Share of samples cut off inside the thought; the upper end must stay below."""

    rule: Literal["truncation_rate"]
    at_most: Share


class ErrorRate(_Rule):
    """Share of samples that could not be measured, on either side. Above it nothing on this suite
    is decided: INCONCLUSIVE, never PASS."""

    rule: Literal["error_rate"]
    at_most: Share


class DuplicateRate(_Rule):
    """Share of further samples that repeat an earlier one of their problem word for word, on either
    side. Above it the several samples are not several, and the rule is INCONCLUSIVE."""

    rule: Literal["duplicate_rate"]
    at_most: Share


class Contamination(_Rule):
    """Share of the suite's problems that the candidate or an ancestor was trained on."""

    rule: Literal["contamination"]
    at_most: Share = 0.0


Rule = Annotated[
    Floor
    | Superiority
    | NonInferiority
    | FormatRate
    | TruncationRate
    | ErrorRate
    | DuplicateRate
    | Contamination,
    Field(discriminator="rule"),
]

DEFAULT_ERRORS = 0.01
"""Ceiling on failed measurements for suites whose policy names none."""


class Policy(Config):
    """Rules, all of which must pass."""

    name: str
    version: Annotated[int, Field(ge=1)] = 1
    description: str = ""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Intervals have confidence 1 - alpha; over the rules that compare with the incumbent, alpha
    is shared out by Holm's procedure."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """Ask only the first this many problems of each suite."""

    second_grader: Grader | None = None
    """Rules about accuracy pass only when they do under this grader as well: `math-verify`, or the
    settings of a language model that judges."""

    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]

    def all_rules(self) -> tuple[Rule, ...]:
        """The rules written, and a ceiling on failed measurements for each suite without one."""
        bounded = {rule.suite for rule in self.rules if isinstance(rule, ErrorRate)}
        implied = [suite for suite in self.suites() if suite not in bounded]
        return (
            *self.rules,
            *(ErrorRate(rule="error_rate", suite=s, at_most=DEFAULT_ERRORS) for s in implied),
        )

    def suites(self) -> tuple[str, ...]:
        """The suites named, each once, in order."""
        return tuple(dict.fromkeys(rule.suite for rule in self.rules))

    def compares(self) -> bool:
        """Whether an incumbent is needed."""
        return any(isinstance(rule, Superiority | NonInferiority) for rule in self.rules)

    def digest(self) -> str:
        """SHA-256 of the policy as it is applied."""
        return hashlib.sha256(self.model_dump_json(exclude={"description"}).encode()).hexdigest()


def load_policy(name: str) -> Policy:
    """The policy shipped as `name`, or in the file `name`."""
    path: Path = bundled("thinkgate_evals", "gates", name)
    return parse(Policy, read_yaml(path), path)
