"""Policies: what a checkpoint must show before it may be served, as strict YAML.

Owns the rules' names and thresholds, and the JSON schema by which editors know them. How evidence
is weighed against them is `judge.py`'s.
"""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from thinkgate.checkpoint import HealthVerdict
from thinkgate.config import Config, bundled, parse, read_yaml
from thinkgate_evals.second_grader import Grader

__all__ = [
    "ANY_SUITE",
    "SCHEMA_FILE",
    "Contamination",
    "CostPerCorrect",
    "DuplicateRate",
    "ErrorRate",
    "Floor",
    "FormatRate",
    "ModelRule",
    "NonInferiority",
    "Policy",
    "RewardDivergence",
    "Rule",
    "SuiteRule",
    "Superiority",
    "ThinkingTokens",
    "TrainingHealth",
    "TruncationRate",
    "load_policy",
    "policy_schema",
]

ANY_SUITE = "records"
"""In a policy for `gate --records`: the one suite the records are about, whatever its name."""

SCHEMA_FILE = "policy.schema.json"
"""Beside the shipped policies; a test keeps it equal to `policy_schema()`."""

# Strict: YAML's `true` would be the number 1, which clears every ceiling.
Share = Annotated[float, Field(ge=0, le=1, strict=True)]
Tokens = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Name = Annotated[str, Field(min_length=1)]


class _SuiteRule(Config):
    suite: Name
    """A shipped suite, or a suite file."""


class Floor(_SuiteRule):
    """Accuracy is at least this: the interval's lower end must reach it."""

    rule: Literal["floor"]
    at_least: Share


class Superiority(_SuiteRule):
    """Better than the incumbent: the paired interval lies above 0, and the estimate is a gain of
    `min_gain` at least."""

    rule: Literal["superiority"]
    min_gain: Share = 0.0


class NonInferiority(_SuiteRule):
    """Not worse than the incumbent by `margin` or more: the paired interval lies above -margin."""

    rule: Literal["non_inferiority"]
    margin: Annotated[float, Field(gt=0, le=1, strict=True)]


class FormatRate(_SuiteRule):
    """Share of samples with a closed thought and then an answer; the lower end must reach it."""

    rule: Literal["format_rate"]
    at_least: Share


class TruncationRate(_SuiteRule):
    """Share of samples cut off inside the thought; the upper end must stay below."""

    rule: Literal["truncation_rate"]
    at_most: Share


class ThinkingTokens(_SuiteRule):
    """The 95th percentile of a thought's tokens; its interval's upper end must stay below."""

    rule: Literal["p95_thinking_tokens"]
    at_most: Tokens


class CostPerCorrect(_SuiteRule):
    """Tokens, of thoughts and answers, for each right answer; the upper end must stay below."""

    rule: Literal["tokens_per_correct"]
    at_most: Tokens


class ErrorRate(_SuiteRule):
    """Share of samples that could not be measured, on either side. Above it nothing on this suite
    is decided: INCONCLUSIVE, never PASS."""

    rule: Literal["error_rate"]
    at_most: Share


class DuplicateRate(_SuiteRule):
    """Share of further samples that repeat an earlier one of their problem word for word, on either
    side. Above it the several samples are not several, and the rule is INCONCLUSIVE."""

    rule: Literal["duplicate_rate"]
    at_most: Share


class Contamination(_SuiteRule):
    """Share of the suite's problems that the candidate or an ancestor was trained on."""

    rule: Literal["contamination"]
    at_most: Share = 0.0


class TrainingHealth(Config):
    """What the health watch said of the candidate's training, as its manifest records it."""

    rule: Literal["training_health"]
    at_worst: Literal[HealthVerdict.HEALTHY, HealthVerdict.WARNED] = HealthVerdict.WARNED


class RewardDivergence(Config):
    """The training reward did not rise while a check that was not optimised fell: neither
    `reward_hacking` nor `held_out_divergence` is among the findings of the health watch."""

    rule: Literal["reward_divergence"]


SuiteRule = (
    Floor
    | Superiority
    | NonInferiority
    | FormatRate
    | TruncationRate
    | ThinkingTokens
    | CostPerCorrect
    | ErrorRate
    | DuplicateRate
    | Contamination
)
ModelRule = TrainingHealth | RewardDivergence
"""About the candidate's training, not about a suite."""

Rule = SuiteRule | ModelRule

DEFAULT_ERRORS = 0.01
"""Ceiling on failed measurements for suites whose policy names none."""


class Policy(Config):
    """Rules, all of which must pass."""

    name: Name
    version: Annotated[int, Field(ge=1)] = 1
    description: str = ""
    alpha: Annotated[float, Field(gt=0, lt=0.5, strict=True)] = 0.05
    """Intervals have confidence 1 - alpha."""

    correction: Literal["holm", "none"] = "holm"
    """How rules that compare with the incumbent share alpha. `holm`: all of their claims hold
    together; `none`: each alone. A candidate must pass every rule, so either way one that breaks a
    rule is promoted with a probability of alpha/2 at most."""

    template_change: Literal["refuse", "allow"] = "refuse"
    """Whether a candidate may have another chat template or other tags than the incumbent it is
    compared with."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """Ask only the first this many problems of each suite."""

    second_grader: Grader | None = None
    """Rules about accuracy pass only when they do under this grader as well: `math-verify`, or the
    settings of a language model that judges."""

    rules: Annotated[tuple[Annotated[Rule, Field(discriminator="rule")], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _measures_something(self) -> "Policy":
        if not self.suites():
            raise ValueError("no rule names a suite, so nothing would be measured")
        return self

    @model_validator(mode="after")
    def _says_everything_once(self) -> "Policy":
        named = Counter((r.rule, getattr(r, "suite", None)) for r in self.rules)
        [((rule, suite), times)] = named.most_common(1)
        if times > 1:
            where = f" for suite '{suite}'" if suite else ""
            raise ValueError(
                f"the rule {rule}{where} is there {times} times; keep the one you mean"
            )
        return self

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
        named = [rule.suite for rule in self.rules if not isinstance(rule, ModelRule)]
        return tuple(dict.fromkeys(named))

    def comparative(self) -> tuple[Superiority | NonInferiority, ...]:
        """The rules that compare with the incumbent."""
        return tuple(r for r in self.rules if isinstance(r, Superiority | NonInferiority))

    def text(self) -> str:
        """The policy as it is applied, in the form that is kept with a decision."""
        return self.model_dump_json(exclude={"description"})

    def digest(self) -> str:
        """SHA-256 of `text`."""
        return hashlib.sha256(self.text().encode()).hexdigest()


def load_policy(name: str) -> Policy:
    """The policy shipped as `name`, or in the file `name`."""
    path: Path = bundled("thinkgate_evals", "gates", name)
    return parse(Policy, read_yaml(path), path)


def policy_schema() -> str:
    """JSON schema of a policy file, for editors and other tools."""
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Policy.model_json_schema(),
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
