"""What a measurement will be able to show, said before the first sample is drawn.

Owns the sentences; the arithmetic is `power.py`'s. It draws nothing and decides nothing.
"""

from collections.abc import Sequence

from thinkgate_evals.metrics import correct_counts
from thinkgate_evals.policy import NonInferiority, Policy
from thinkgate_evals.power import UNKNOWN, detectable, problems_needed, variances_of
from thinkgate_evals.records import Record
from thinkgate_evals.suites import LoadedSuite

__all__ = ["plan_lines"]

MORE = 4
"""Times as many answers per problem, as the alternative to more problems."""


def plan_lines(
    loaded: LoadedSuite,
    limit: int | None,
    policy: Policy | None = None,
    known: Sequence[Record] = (),
) -> list[str]:
    """What the planned samples can tell apart, and what each margin of `policy` would need.

    `known` are answers of a model like those that are compared, such as the incumbent's.
    """
    problems, samples = len(loaded.planned(limit)), loaded.suite.samples
    variances = variances_of(correct_counts(known)) if known else UNKNOWN
    alpha = policy.alpha if policy else 0.05
    effect = 100 * detectable(problems, samples, variances, alpha)
    supposed = "" if known else ", supposing problems of every difficulty"
    finds = f"find a difference from {effect:.1f} points up 4 times in 5"
    if effect >= 100:
        finds = "are too few to find any difference 4 times in 5"
    lines = [f"{loaded.name}: {_plan(problems, samples)} {finds}{supposed}"]
    for rule, margin in _margins(policy, loaded.name):
        enough = problems_needed(margin, samples, variances, alpha)
        needs = [
            _plan(needed, k)
            for k in (samples, samples * MORE)
            if (needed := problems_needed(margin, k, variances, alpha)) is not None
        ]
        says = "planned are enough" if enough and enough <= problems else "planned are too few"
        lines.append(
            f"{loaded.name}: {rule} by {100 * margin:g} points takes "
            f"{' or '.join(needs) or 'more problems than there are'}; the {problems:,} {says}"
        )
    return lines


def _margins(policy: Policy | None, suite: str) -> list[tuple[str, float]]:
    rules = [rule for rule in policy.comparative() if rule.suite == suite] if policy else []
    margins = [
        (rule.rule, rule.margin if isinstance(rule, NonInferiority) else rule.min_gain)
        for rule in rules
    ]
    return [(rule.replace("_", "-"), margin) for rule, margin in margins if margin > 0]


def _plan(problems: int, samples: int) -> str:
    answers = "1 answer" if samples == 1 else f"{samples} answers"
    asked = "1 problem" if problems == 1 else f"{problems:,} problems"
    return f"{asked} with {answers} each"
