"""Intervals are checked by simulation: how often they contain the truth they were drawn from."""

from functools import cache

import numpy as np
import pytest
from scipy import stats as scipy_stats

from thinkgate_evals.policy import NonInferiority, load_policy
from thinkgate_evals.stats import (
    Interval,
    holm_levels,
    mcnemar,
    paired_difference,
    paired_p_value,
    problems_for_difference,
    problems_for_share,
    share,
    sign_flip,
)

RUNS = 2000
Counts = np.ndarray


def covered(hits: Counts, trials: int, truth: float) -> float:
    """The share of simulated evaluations (rows) whose interval contains `truth`."""

    @cache
    def contains(row: tuple[tuple[int, int], ...]) -> bool:
        """Of how many problems there are with so many hits."""
        interval = share([(h, trials) for h, problems in row for _ in range(problems)])
        assert interval is not None
        return interval.low <= truth <= interval.high

    counts = (np.bincount(row, minlength=trials + 1) for row in hits.astype(int))
    return sum(contains(tuple(enumerate(map(int, row)))) for row in counts) / len(hits)


@pytest.mark.parametrize("truth", [0.01, 0.1, 0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("problems", [198, 200, 500, 1319])
def test_share_covers_the_truth(problems: int, truth: float) -> None:
    hits = np.random.default_rng(0).random((RUNS, problems)) < truth
    assert 0.93 <= covered(hits, 1, truth) <= 0.97


@pytest.mark.parametrize("truth", [0, 1])
@pytest.mark.parametrize(("problems", "trials"), [(50, 1), (50, 4), (1319, 1), (30, 16)])
def test_share_at_the_extremes_always_covers_and_still_has_a_width(
    truth: int, problems: int, trials: int
) -> None:
    """All evaluations of such a model are the same one, so 95 % of them is not to be had."""
    assert covered(np.full((RUNS, problems), truth * trials), trials, truth) == 1
    interval = share([(truth * trials, trials)] * problems)
    assert interval is not None and interval.estimate == truth
    # With the probability of a tail, a model with this accuracy would not have shown its other one.
    unseen = interval.high if truth == 0 else 1 - interval.low
    assert 0.005 < (1 - unseen) ** problems < 0.05


def test_where_counts_are_too_coarse_for_93_to_97_percent() -> None:
    """1 right of 100 on average: whichever counts an interval covers the truth for, it is less or
    more. Ours does the nearest thing."""
    problems, truth = 100, 0.01
    mass = scipy_stats.binom.pmf(np.arange(problems + 1), problems, truth)
    reachable = [mass[a:b].sum() for a in range(20) for b in range(a + 1, 21)]
    assert not any(0.93 <= each <= 0.97 for each in reachable)
    hits = np.random.default_rng(0).random((RUNS, problems)) < truth
    below, above = 0.9206, 0.9816
    assert {below, above} <= {round(float(each), 4) for each in reachable}
    assert covered(hits, 1, truth) == pytest.approx(below, abs=0.015)


ALIKE = {"all or nothing": 0.2, "alike": 1.0, "somewhat alike": 5.0, "independent": 100.0}
"""How much the answers to one problem have in common: the two parameters' sum of the beta
distribution its accuracy is drawn from."""


@pytest.mark.parametrize("alike", ALIKE)
@pytest.mark.parametrize("truth", [0.01, 0.1, 0.5, 0.95, 0.99])
@pytest.mark.parametrize(("problems", "samples"), [(30, 16), (40, 8), (198, 4), (500, 2)])
def test_share_covers_with_several_samples(
    problems: int, samples: int, truth: float, alike: str
) -> None:
    """It may cover more where that few problems, or that few answers of one kind, cannot show how
    alike the answers are; nowhere less."""
    draw, size = np.random.default_rng(1), (RUNS, problems)
    ability = draw.beta(truth * ALIKE[alike], (1 - truth) * ALIKE[alike], size)
    found = covered(draw.binomial(samples, ability), samples, truth)
    telling = problems > 100 and min(truth, 1 - truth) * problems * samples > 20
    assert 0.93 <= found <= (0.97 if telling else 1.0)


def test_treating_samples_as_independent_would_not_cover() -> None:
    """The control: the same data with every sample its own problem."""
    draw = np.random.default_rng(1)
    hits = draw.binomial(4, draw.beta(0.3, 0.3, (RUNS, 100)))
    single = (np.arange(4) < hits[..., None]).reshape(RUNS, -1)
    assert covered(single, 1, 0.5) < 0.85


def test_share_without_trials_is_unknown_not_zero() -> None:
    assert share([]) is None and share([(0, 0)]) is None
    assert share([(0, 0), (1, 1)]) == share([(1, 1)])


def paired_runs(win: float, loss: float, problems: int) -> Counts:
    draw = np.random.default_rng(2).random((RUNS, problems))
    return np.where(draw < win, 1.0, np.where(draw < win + loss, -1.0, 0.0))


@pytest.mark.parametrize(
    ("win", "loss", "problems"),
    [(0.1, 0.1, 100), (0.12, 0.04, 1000), (0.3, 0.1, 300), (0.02, 0.02, 1000), (0.5, 0.02, 200)],
)
def test_paired_difference_covers_the_truth(win: float, loss: float, problems: int) -> None:
    found = 0
    for row in paired_runs(win, loss, problems):
        interval = paired_difference(row)
        assert interval is not None
        found += interval.low <= win - loss <= interval.high
    assert 0.93 <= found / RUNS <= 0.97


@pytest.mark.parametrize(("changed", "problems"), [(0.4, 50), (0.1, 200), (0.02, 1000), (0.0, 40)])
def test_equal_models_seldom_look_better(changed: float, problems: int) -> None:
    """False promotions: one-sided, at half of alpha each side."""
    rows = paired_runs(changed / 2, changed / 2, problems)
    better = sum(paired_difference(row).low > 0 for row in rows)  # type: ignore[union-attr]
    assert better / RUNS <= 0.03


def answered(problems: int, samples: int, kind: str) -> tuple[Counts, float]:
    """Differences of two models with several answers each, and their true mean."""
    draw = np.random.default_rng(7)
    size = (RUNS, problems)
    ability = draw.beta(0.3, 0.3, size) if kind == "extreme" else draw.random(size)
    other = ability
    if kind == "gain":
        other = np.clip(ability - 0.1, 0, 1)
    if kind == "flips":  # one problem in thirty is solved that never was
        flipped = draw.random(size) < 1 / 30
        ability, other = np.where(flipped, 1.0, ability), np.where(flipped, 0.0, ability)
    truth = {"gain": 0.095, "flips": 1 / 30}.get(kind, 0.0)
    hits = (draw.binomial(samples, p) / samples for p in (ability, other))
    return next(hits) - next(hits), truth


@pytest.mark.parametrize(("problems", "samples"), [(30, 16), (40, 8), (200, 4)])
@pytest.mark.parametrize("kind", ["uniform", "extreme", "gain", "flips"])
def test_paired_difference_covers_with_several_samples(
    problems: int, samples: int, kind: str
) -> None:
    """On few problems it covers more than it must: extremes among them may be unseen."""
    rows, truth = answered(problems, samples, kind)
    intervals = [paired_difference(row) for row in rows]
    found = sum(i.low <= truth <= i.high for i in intervals if i)
    assert 0.93 <= found / RUNS <= (0.97 if problems > 100 else 1.0)
    width = np.mean([i.high - i.low for i in intervals if i])
    assert width < 0.75 * 0.21 or kind == "flips"


@pytest.mark.parametrize(("changed", "problems"), [(0.4, 100), (0.1, 500), (0.02, 1000)])
def test_equal_models_seldom_look_different(changed: float, problems: int) -> None:
    """Two-sided, by each of the tests there are."""
    rows = paired_runs(changed / 2, changed / 2, problems)
    p_values = [paired_p_value(row) for row in rows]
    assert sum(min(p, 1 - p) <= 0.025 for p in p_values) / RUNS <= 0.055
    exact = [mcnemar(int((row > 0).sum()), int((row < 0).sum())) for row in rows]
    assert sum(p <= 0.05 for p in exact) / RUNS <= 0.055


@pytest.mark.parametrize(("problems", "samples"), [(30, 16), (40, 8), (60, 4), (198, 4)])
@pytest.mark.parametrize("kind", ["uniform", "extreme"])
def test_equal_models_with_several_samples_seldom_look_different(
    problems: int, samples: int, kind: str
) -> None:
    rows, _ = answered(problems, samples, kind)
    drawn = [sign_flip(row.tolist(), 400) for row in rows]
    assert 0.02 <= sum(p <= 0.05 for p in drawn) / RUNS <= 0.055
    p_values = [paired_p_value(row) for row in rows]
    assert sum(min(p, 1 - p) <= 0.025 for p in p_values) / RUNS <= 0.055


def test_sign_flip_is_mcnemar_for_single_answers() -> None:
    differences = [1.0] * 40 + [-1.0] * 22 + [0.0] * 238
    assert sign_flip(differences) == pytest.approx(mcnemar(40, 22), abs=0.005)
    assert sign_flip(differences) == sign_flip(differences)
    assert sign_flip([0.0] * 10) == sign_flip([1.0, -1.0] * 30) == 1.0
    many = [1.0] * 12_000 + [-1.0] * 11_500
    assert sign_flip(many) == pytest.approx(mcnemar(12_000, 11_500), rel=0.05)


def test_equal_models_with_several_samples_seldom_look_better() -> None:
    draw = np.random.default_rng(3)
    ability = draw.beta(1, 1, (RUNS, 60))
    rows = (draw.binomial(4, ability) - draw.binomial(4, ability)) / 4
    assert sum(paired_difference(row).low > 0 for row in rows) / RUNS <= 0.03  # type: ignore[union-attr]


@pytest.mark.parametrize(("worse_by", "at_least", "at_most"), [(0.0, 0.84, 0.91), (0.03, 0, 0.04)])
def test_the_default_policys_margins(worse_by: float, at_least: float, at_most: float) -> None:
    """What `default.yaml` says of itself: GSM8K and MATH-500, 10 % answered otherwise."""
    rules = [rule for rule in load_policy("default").rules if isinstance(rule, NonInferiority)]
    assert [rule.suite for rule in rules] == ["gsm8k", "math500"]
    margins = [rule.margin for rule in rules]
    draw, passed = np.random.default_rng(6), 0
    for _ in range(1000):
        sides = [
            draw.choice(
                [1.0, -1.0, 0.0], size, p=[0.05 - shift / 2, 0.05 + shift / 2, 0.9]
            ).tolist()
            for size, shift in ((1319, worse_by), (500, 0.0))
        ]
        p_values = [2 * paired_p_value(d, -m) for d, m in zip(sides, margins, strict=True)]
        levels = holm_levels(p_values, 0.05)
        intervals = [paired_difference(d, 1 - a) for d, a in zip(sides, levels, strict=True)]
        passed += all(i is not None and i.low > -m for i, m in zip(intervals, margins, strict=True))
    assert at_least <= passed / 1000 <= at_most


def test_paired_difference_of_models_that_always_agree_has_a_width() -> None:
    interval = paired_difference([0.0] * 30)
    assert interval is not None and interval.estimate == 0.0
    assert interval.low < -0.05 and interval.high > 0.05
    assert paired_difference([]) is None


def test_p_value_and_interval_say_the_same() -> None:
    differences = [1.0] * 14 + [-1.0] * 5 + [0.0] * 81
    p = paired_p_value(differences)
    just_above, just_below = (paired_difference(differences, 1 - 2 * p * f) for f in (1.01, 0.99))
    assert just_above is not None and just_below is not None
    assert just_below.low < 0 < just_above.low


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (9, 2), (40, 40), (112, 31)])
def test_mcnemar_is_the_exact_binomial_test(wins: int, losses: int) -> None:
    n, k = wins + losses, max(wins, losses)
    exact = min(1.0, 2 * float(scipy_stats.binom.sf(k - 1, n, 0.5))) if n else 1.0
    assert mcnemar(wins, losses) == pytest.approx(exact)


def test_holm_shares_alpha_out_and_stops_at_the_first_that_fails() -> None:
    assert holm_levels([0.001], 0.05) == [0.05]
    assert holm_levels([0.03, 0.001, 0.02], 0.05) == pytest.approx([0.05, 0.05 / 3, 0.025])
    # 0.04 would pass at 0.05, but 0.03 has failed at 0.025 before it.
    levels = holm_levels([0.04, 0.03, 0.001], 0.05)
    assert levels == pytest.approx([0.025, 0.025, 0.05 / 3])
    assert holm_levels([], 0.05) == []


def test_the_number_of_problems_asked_for_settles_a_share_four_times_in_five() -> None:
    interval = share([(1, 1)] * 180 + [(0, 1)] * 20)
    assert interval is not None
    needed = problems_for_share(interval, 0.88, 0.95)
    assert needed is not None and needed > 200
    hits = np.random.default_rng(4).binomial(needed, 0.9, RUNS)
    settled = sum(share([(1, 1)] * h + [(0, 1)] * (needed - h)).low >= 0.88 for h in hits[:300])  # type: ignore[union-attr]
    assert 0.7 <= settled / 300 <= 0.9


def test_the_number_of_problems_asked_for_settles_a_difference_four_times_in_five() -> None:
    seen = [1.0] * 10 + [-1.0] * 6 + [0.0] * 84
    needed = problems_for_difference(seen, 0.0, 0.95)
    assert needed is not None
    draw = np.random.default_rng(5).choice([1.0, -1.0, 0.0], (400, needed), p=[0.1, 0.06, 0.84])
    settled = sum(paired_difference(row).low > 0 for row in draw)  # type: ignore[union-attr]
    assert 0.7 <= settled / 400 <= 0.92


def test_what_no_number_of_problems_settles() -> None:
    assert problems_for_difference([0.0] * 50, 0.0, 0.95) is None
    assert problems_for_share(Interval(0.5, 0.4, 0.6, 100), 0.5, 0.95) is None
