"""Plans are checked by simulating what they promise."""

import numpy as np
import pytest
from scipy import special

from thinkgate_evals.plan import plan_lines
from thinkgate_evals.policy import Policy, load_policy
from thinkgate_evals.power import (
    UNKNOWN,
    Variances,
    detectable,
    problems_needed,
    variances_of,
)
from thinkgate_evals.stats import paired_difference
from thinkgate_evals.suites import load_suite

RUNS = 500
CORRELATION = 0.518
"""Of the normal variables, for one half between the uniform accuracies made of them."""


def measured(problems: int, samples: int, shift: float) -> tuple[np.ndarray, float]:
    """Differences of two models whose accuracies spread evenly, and the true mean difference."""
    draw = np.random.default_rng(0)
    normal = draw.multivariate_normal(
        [0, 0], [[1, CORRELATION], [CORRELATION, 1]], size=(RUNS, problems)
    )
    old, new = (special.ndtr(normal[..., side]) for side in (0, 1))
    # Up where there is room for it, so that 0 and 1 stay what they are.
    new = np.clip(new + 6 * shift * new * (1 - new), 0, 1)
    hits = [draw.binomial(samples, p) / samples for p in (new, old)]
    return hits[0] - hits[1], float((new - old).mean())


@pytest.mark.parametrize(("problems", "samples"), [(1000, 1), (200, 1), (200, 4), (30, 16)])
def test_the_detectable_difference_is_found_four_times_in_five(problems: int, samples: int) -> None:
    effect = detectable(problems, samples, UNKNOWN)
    rows, truth = measured(problems, samples, effect)
    assert truth == pytest.approx(effect, rel=0.07)
    found = sum(paired_difference(row).low > 0 for row in rows)  # type: ignore[union-attr]
    assert 0.72 <= found / RUNS <= 0.88


@pytest.mark.parametrize("samples", [1, 4, 16])
@pytest.mark.parametrize("margin", [0.03, 0.1])
def test_the_problems_needed_are_the_first_that_detect_the_margin(
    margin: float, samples: int
) -> None:
    needed = problems_needed(margin, samples, UNKNOWN)
    assert needed is not None
    assert detectable(needed, samples, UNKNOWN) <= margin
    assert detectable(needed - 1, samples, UNKNOWN) > margin


def test_a_margin_nobody_can_resolve() -> None:
    assert problems_needed(0.0001, 1, UNKNOWN) is None


def test_several_answers_take_away_what_varies_within_a_problem_and_no_more() -> None:
    variances = Variances(between=0.1, within=0.2)
    assert variances.of_difference(1) == pytest.approx(0.5)
    assert variances.of_difference(4) == pytest.approx(0.2)
    assert variances.of_difference(10_000) == pytest.approx(0.1, abs=1e-3)


def test_variances_are_told_apart_where_there_are_several_answers() -> None:
    draw = np.random.default_rng(1)
    hits = draw.binomial(8, draw.random(20_000))
    found = variances_of([(int(h), 8) for h in hits])
    assert found.within == pytest.approx(1 / 6, abs=0.004)
    assert found.between == pytest.approx(1 / 12, abs=0.004)
    alike = variances_of([(8, 8)] * 500 + [(0, 8)] * 500)
    assert alike.within == 0 and alike.between == pytest.approx(0.25, abs=0.01)
    coins = variances_of([(int(h), 8) for h in draw.binomial(8, 0.5, 20_000)])
    assert coins.within == pytest.approx(0.25, abs=0.004) and coins.between < 0.005


def test_an_easy_suite_needs_fewer_problems_and_a_perfect_score_is_not_certainty() -> None:
    easy = variances_of([(1, 1)] * 95 + [(0, 1)] * 5)
    assert detectable(100, 1, easy) < detectable(100, 1, UNKNOWN)
    perfect = variances_of([(1, 1)] * 20)
    assert perfect.of_difference(1) > 0
    assert variances_of([]) == UNKNOWN == variances_of([(0, 0)])


def test_the_plan_says_what_is_found_and_what_the_margin_takes() -> None:
    suite = load_suite("arithmetic")
    policy = load_policy("quickstart")
    first, second = plan_lines(suite, 100, policy)
    assert first.startswith("arithmetic: 100 problems with 1 answer each find a difference from ")
    assert "supposing problems of every difficulty" in first
    needed = problems_needed(0.08, 1, UNKNOWN)
    assert f"superiority by 8 points takes {needed} problems with 1 answer each or " in second
    assert second.endswith("; the 100 planned are too few")
    assert plan_lines(suite, None, policy)[1].endswith("; the 1,000 planned are enough")
    assert len(plan_lines(suite, 100)) == 1
    [hopeless] = plan_lines(suite, 1)
    assert "1 problem with 1 answer each are too few to find any difference" in hopeless


def test_rules_without_a_margin_need_no_plan() -> None:
    rules = [
        {"rule": "superiority", "suite": "arithmetic"},
        {"rule": "floor", "suite": "arithmetic", "at_least": 0.5},
        {"rule": "non_inferiority", "suite": "gsm8k", "margin": 0.03},
    ]
    policy = Policy.model_validate({"name": "p", "rules": rules})
    assert len(plan_lines(load_suite("arithmetic"), 100, policy)) == 1
