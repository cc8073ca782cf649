"""Confidence sequences, by simulation: looked at after every problem, and seldom ever wrong."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkgate_evals.anytime import Betting, log_wealth
from thinkgate_evals.stats import paired_difference, share

RUNS, PROBLEMS = 2000, 400
BETS = Betting(PROBLEMS)


@pytest.mark.parametrize("truth", [0.02, 0.3, 0.7, 0.98])
@pytest.mark.parametrize("answers", [1, 4])
def test_the_truth_is_hardly_ever_excluded_at_any_time(truth: float, answers: int) -> None:
    """Over all 400 looks together, not at each; a fixed interval would be wrong far more often."""
    draw = np.random.default_rng(1)
    ability = draw.beta(4 * truth, 4 * (1 - truth), (RUNS, PROBLEMS))
    values = draw.binomial(answers, ability) / answers
    enough = math.log(2 / 0.05)
    above = log_wealth(values, truth, PROBLEMS).max(1) >= enough
    below = log_wealth(1 - values, 1 - truth, PROBLEMS).max(1) >= enough
    assert float((above | below).mean()) <= 0.05


def test_looking_often_with_a_fixed_interval_would_be_wrong_often() -> None:
    draw = np.random.default_rng(2)
    wrong = 0
    for row in draw.choice([1.0, 0.0, -1.0], (200, PROBLEMS), p=[0.1, 0.8, 0.1]):
        looks = (paired_difference(row[:n]) for n in range(20, PROBLEMS, 20))
        wrong += any(i is not None and not i.low <= 0 <= i.high for i in looks)
    assert wrong / 200 > 0.1


@given(
    hits=st.lists(st.integers(0, 4), min_size=1, max_size=120),
    more=st.lists(st.integers(0, 4), max_size=40),
)
def test_an_interval_holds_its_estimate_and_only_shrinks(hits: list[int], more: list[int]) -> None:
    now = BETS.share([(h, 4) for h in hits])
    later = BETS.share([(h, 4) for h in hits + more])
    assert now is not None and later is not None
    assert 0 <= now.low <= now.estimate <= now.high <= 1
    # What was excluded stays excluded, up to where the estimate itself has moved to.
    assert later.low >= min(now.low, later.estimate) - 1e-9
    assert later.high <= max(now.high, later.estimate) + 1e-9


@given(
    differences=st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=1, max_size=150),
    threshold=st.floats(-0.5, 0.5),
)
def test_p_value_and_interval_say_the_same(differences: list[float], threshold: float) -> None:
    interval = BETS.difference(differences, 0.9)
    assert interval is not None
    p = BETS.p_value(differences, threshold)
    if abs(interval.low - threshold) > 1e-6 and threshold < interval.estimate:
        assert (p < 0.05) == (interval.low > threshold)


def test_both_sides_are_alike() -> None:
    draw = np.random.default_rng(3)
    values = draw.choice([1.0, 0.5, -1.0, 0.0], 300).tolist()
    ours, mirrored = BETS.difference(values), BETS.difference([-v for v in values])
    assert ours is not None and mirrored is not None
    assert (ours.low, ours.high) == pytest.approx((-mirrored.high, -mirrored.low))


def test_a_ratio_contains_the_truth_and_has_no_end_where_nothing_is_right() -> None:
    draw, wrong = np.random.default_rng(4), 0
    for _ in range(100):
        tokens = draw.uniform(20, 60, PROBLEMS)
        right = draw.binomial(1, 0.8, PROBLEMS)
        interval = BETS.ratio(list(zip(tokens.tolist(), right.tolist(), strict=True)), 96)
        assert interval is not None
        wrong += not interval.low <= 50 <= interval.high
    assert wrong <= 5
    assert BETS.ratio([(10.0, 0.0)] * 9, 96) is None
    seldom = BETS.ratio([(10.0, 0.0)] * 20 + [(10.0, 1.0)], 96)
    assert seldom is not None and seldom.high == math.inf


def test_it_costs_width_and_not_too_much() -> None:
    counts = [(1, 1)] * 320 + [(0, 1)] * 80
    order = np.random.default_rng(5).permutation(400)
    counts = [counts[i] for i in order]
    once, always = share(counts), BETS.share(counts)
    assert once is not None and always is not None
    assert 1.0 < (always.high - always.low) / (once.high - once.low) < 1.6
