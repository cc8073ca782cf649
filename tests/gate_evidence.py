"""Evidence made up for the gate's tests: so many right, so many cut off, so many failed.

Not a test: what several test files say about the gate.
"""

import itertools
from typing import Any

from thinkgate.answers import Verdict
from thinkgate.checkpoint import Decision, RuleResult
from thinkgate.config import parse
from thinkgate.format import SplitStatus
from thinkgate_evals.evidence import Evidence
from thinkgate_evals.gate import decide
from thinkgate_evals.policy import Policy
from thinkgate_evals.records import Record
from thinkgate_evals.suites import load_suite

SUITE = load_suite("arithmetic")


def records(
    correct: int,
    n: int,
    *,
    offset: int = 0,
    errors: int = 0,
    cut: int = 0,
    samples: int = 1,
) -> list[Record]:
    """`n` problems of which `correct` are right, from number `offset` on; the last ones fail."""
    made: list[Record] = []
    for index, repeat in itertools.product(range(n), range(samples)):
        problem = SUITE.problems[index]
        right = (index - offset) % n < correct
        shared: dict[str, Any] = {
            "problem_id": problem.id,
            "repeat": repeat,
            "seed": 0,
            "prompt": problem.prompt,
            "prompt_hash": "",
            "gold": problem.gold,
        }
        if index >= n - errors:
            made.append(Record(**shared, verdict=Verdict.ERROR, error="server failed (500)"))
            continue
        status = SplitStatus.TRUNCATED if index < cut else SplitStatus.CLOSED
        verdict = Verdict.CORRECT if right else Verdict.WRONG
        made.append(Record(**shared, verdict=verdict, status=status, reasoning="r", answer="a"))
    return made


def evidence(
    made: list[Record], seen: frozenset[str] | None = frozenset({"x"}), **more: Any
) -> Evidence:
    return Evidence(
        digest="c" * 64,
        suites={"arithmetic": SUITE},
        records={"arithmetic": made},
        seen_prompts=seen,
        **more,
    )


def gate(
    rules: list[dict[str, Any]],
    candidate: list[Record],
    base: list[Record] | None = None,
    **more: Any,
) -> Decision:
    """What the gate says; a rule that names no suite is about `arithmetic`."""
    about_training = ("training_health", "reward_divergence")
    rules = [
        rule if rule["rule"] in about_training else {"suite": "arithmetic", **rule}
        for rule in rules
    ]
    policy = parse(Policy, {"name": "test", "rules": rules}, "test")
    incumbent = evidence(base) if base is not None else None
    return decide(policy, evidence(candidate, **more), incumbent)


def first(decision: Decision) -> RuleResult:
    return decision.rules[0]
