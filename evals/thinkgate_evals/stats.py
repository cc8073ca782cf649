"""Intervals and tests for shares and for paired differences, honest at 0 %, at 100 % and small n.

Knows numbers only: nothing of records, suites or rules. The unit of analysis is the problem:
samples of one problem are not independent, so they are a cluster, never extra n.

Shares: Wilson's score interval (1927; recommended by Brown, Cai and DasGupta 2001, who also show
that no interval for counts covers exactly 95 % everywhere); with several samples per problem, on
the effective sample size (Korn and Graubard 1998; Dean and Pagano 2015). It never collapses at 0
or 1, as the usual normal interval does.

Paired differences: the interval of Bonett and Price (2012) for paired proportions: a normal
interval after adding one win and one loss. Fagerland, Lydersen and Laake (2014) recommend it;
unlike Tango's and Newcombe's it is also defined for differences of means over several samples.
There the win and the loss are as large as the largest difference seen, and one half at least: whole
ones would cover the truth 100 times in 100 and see nothing (30 problems with 16 answers each: an
interval of 20 points instead of 13). Where all problems agree they are whole, on purpose: 30
problems that agree do not rule out that one unseen problem in thirty flips.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special  # loads half a second faster than scipy.stats

__all__ = [
    "Interval",
    "above_counts",
    "holm_levels",
    "mcnemar",
    "mean",
    "normal_quantile",
    "paired_difference",
    "paired_p_value",
    "problems_for_difference",
    "problems_for_mean",
    "problems_for_share",
    "quantile",
    "ratio",
    "share",
    "sign_flip",
    "student_quantile",
    "wilson",
]

POWER = 0.8
"""How often a true difference of the planned size shall be found."""

ENOUGH = 1_000_000
"""More problems than this is as good as never."""


SMALLEST_ADDED = 0.5
"""Size of the win and loss that are added where several answers differ by less from each other."""

MANY = 20_000
"""Problems whose signs ten thousand draws would take minutes to flip, and show nothing new."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and where the true value lies with the chosen confidence; `n` in problems."""

    estimate: float
    low: float
    high: float
    n: int
    error: float | None = None
    """Standard error over problems (Miller 2024, arXiv 2411.00640); 0 where all are alike, so the
    interval is not made from it."""


def share(counts: Sequence[tuple[int, int]], confidence: float = 0.95) -> Interval | None:
    """The share of successes, from (successes, trials) of each problem; None without trials."""
    used = [(hits, trials) for hits, trials in counts if trials]
    if not used:
        return None
    return mean([hits / trials for hits, trials in used], sum(t for _, t in used), confidence)


def mean(values: Sequence[float], trials: int, confidence: float = 0.95) -> Interval | None:
    """The mean of one value in [0, 1] per problem, drawn from `trials` samples altogether."""
    n = len(values)
    if not n:
        return None
    means = np.asarray(values, dtype=float)
    estimate = float(means.mean())
    if trials == n:
        size, critical = float(n), _normal(confidence)
    else:
        size, critical = _effective_size(means, trials), _student(confidence, n)
    low, high = _wilson(estimate, size, critical)
    return Interval(estimate, low, high, n, _standard_error(means))


def paired_difference(differences: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Mean of the per-problem differences (candidate minus incumbent, each in [-1, 1])."""
    n = len(differences)
    if not n:
        return None
    centre, error = _adjusted(differences)
    reach = _student(confidence, n + 2) * error
    values = np.asarray(differences, dtype=float)
    low, high = max(-1.0, centre - reach), min(1.0, centre + reach)
    return Interval(float(values.mean()), low, high, n, _standard_error(values))


def paired_p_value(differences: Sequence[float], threshold: float = 0.0) -> float:
    """One-sided p of "the true difference is not above `threshold`".

    It is below alpha/2 exactly when the (1 - alpha) interval lies above the threshold.
    """
    centre, error = _adjusted(differences)
    return float(special.stdtr(len(differences) + 1, (threshold - centre) / error))


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided McNemar p; 1.0 when the two never disagree."""
    return min(1.0, 2 * float(special.bdtr(min(wins, losses), wins + losses, 0.5)))


def sign_flip(differences: Sequence[float], draws: int = 10_000) -> float:
    """Two-sided p of "no difference" where McNemar does not apply: several samples per problem.

    Between equal models each problem's difference might as well have the other sign (Fisher 1935);
    exact McNemar is this test for differences of 1. A bootstrap of the problems finds equal models
    different 6.9 % of the time at 40 problems with 8 answers each. Seeded: the same records give
    the same p. Of many problems the sum is normal, and is taken to be.
    """
    values = np.asarray([d for d in differences if d], dtype=float)
    n, observed = len(values), abs(float(values.sum()))
    if n > MANY:
        return 2 * float(special.ndtr(-observed / math.sqrt(float(values @ values))))
    draw = np.random.default_rng(0)
    as_far = 0
    for start in range(0, draws, step := max(1, 1_000_000 // max(1, n))):
        heads = draw.integers(0, 2, (min(step, draws - start), n), dtype=np.int8)
        sums = 2 * (heads @ values) - values.sum()
        as_far += int((np.abs(sums) >= observed - 1e-9).sum())
    return (as_far + 1) / (draws + 1)


def holm_levels(p_values: Sequence[float], alpha: float) -> list[float]:
    """The level at which Holm's procedure tests each p-value, in the order given.

    Once one is not significant the later ones keep its level, and so cannot be significant either.
    """
    levels = [0.0] * len(p_values)
    open_tests, failed_at = len(p_values), None
    for index in sorted(range(len(p_values)), key=lambda i: p_values[i]):
        level = failed_at or alpha / open_tests
        levels[index] = level
        if p_values[index] > level:
            failed_at = level
        open_tests -= 1
    return levels


def ratio(pairs: Sequence[tuple[float, float]], confidence: float = 0.95) -> Interval | None:
    """Sum of the first over sum of the second of each problem, both 0 or more: Fieller's interval.

    Fieller (1954) asks for which R the mean of `first - R second` cannot be told from 0. Without an
    upper end (infinity) where the second may be 0 on average; None where it is 0 everywhere.
    """
    above, below = np.asarray(pairs, dtype=float).reshape(-1, 2).T
    n = len(above)
    if not below.sum():
        return None
    estimate = float(above.sum() / below.sum())
    if n < 2:
        return Interval(estimate, 0.0, math.inf, n)
    reach = _student(confidence, n) ** 2 / n
    covariance = np.cov(above, below)
    a = below.mean() ** 2 - reach * covariance[1, 1]
    b = above.mean() * below.mean() - reach * covariance[0, 1]
    c = above.mean() ** 2 - reach * covariance[0, 0]
    if a <= 0:
        return Interval(estimate, 0.0, math.inf, n)
    root = math.sqrt(max(0.0, b * b - a * c))
    return Interval(estimate, max(0.0, float(b - root) / a), float(b + root) / a, n)


def quantile(
    samples: Sequence[Sequence[float]],
    level: float,
    share_of: Callable[[Sequence[tuple[int, int]]], Interval | None],
) -> Interval | None:
    """The value that a share `level` of all samples do not exceed; `samples` of each problem.

    The interval inverts `share_of`, the interval of the share above a value: with one sample each
    these are order statistics. Without an upper end (infinity) where too few are known to say.
    """
    values = sorted({value for each in samples for value in each})
    if not values:
        return None

    def first(end: Callable[[Interval], float]) -> float:
        """The smallest value above which, by that end of the interval, few enough lie."""
        too_low, enough = -1, len(values)
        while enough - too_low > 1:
            middle = (too_low + enough) // 2
            above = share_of(above_counts(samples, values[middle]))
            assert above is not None
            if end(above) <= 1 - level + 1e-12:
                enough = middle
            else:
                too_low = middle
        return float(values[enough]) if enough < len(values) else math.inf

    ends = (first(lambda s: s.estimate), first(lambda s: s.low), first(lambda s: s.high))
    return Interval(*ends, sum(map(bool, samples)))


def above_counts(samples: Sequence[Sequence[float]], value: float) -> list[tuple[int, int]]:
    """(samples above `value`, samples) of each problem that has any."""
    return [(sum(x > value for x in each), len(each)) for each in samples if each]


def problems_for_share(interval: Interval, threshold: float, confidence: float) -> int | None:
    """How many problems settle on which side of `threshold` the share lies, 4 times in 5.

    Supposes that the estimate is the truth; None when no reasonable number would do. Wilson's
    interval excludes a threshold by the spread there would be at the threshold.
    """
    n, p = interval.n, interval.estimate
    shrunk = (p * n + 2) / (n + 4)
    # Several answers to one problem say more than one answer does.
    alone = p * (1 - p)
    kept = min(1.0, n * interval.error**2 / alone) if interval.error and alone else 1.0
    spreads = (math.sqrt(kept * x * (1 - x)) for x in (threshold, shrunk))
    return _problems(n, *spreads, distance=abs(p - threshold), confidence=confidence)


def problems_for_difference(
    differences: Sequence[float], threshold: float, confidence: float
) -> int | None:
    """The same for a paired difference."""
    _, error = _adjusted(differences)
    spread = error * math.sqrt(len(differences) + 2)
    distance = abs(float(np.mean(differences)) - threshold)
    return _problems(len(differences), spread, spread, distance=distance, confidence=confidence)


def problems_for_mean(values: Sequence[float], confidence: float) -> int | None:
    """The same for on which side of 0 the mean of one value per problem lies."""
    if len(values) < 2:
        return None
    spread, distance = float(np.std(values, ddof=1)), abs(float(np.mean(values)))
    return _problems(len(values), spread, spread, distance=distance, confidence=confidence)


def _problems(
    n: int, at_threshold: float, at_truth: float, *, distance: float, confidence: float
) -> int | None:
    if distance == 0:
        return None
    reach = _normal(confidence) * at_threshold + normal_quantile(POWER) * at_truth
    needed = math.ceil((reach / distance) ** 2)
    return max(n + 1, needed) if needed <= ENOUGH else None


def _adjusted(differences: Sequence[float]) -> tuple[float, float]:
    """Centre and standard error after adding one win and one loss."""
    values = np.asarray(differences, dtype=float)
    largest = float(np.abs(values).max(initial=0.0))
    added = max(SMALLEST_ADDED, largest) if largest else 1.0
    values = np.append(values, (added, -added))
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def _standard_error(values: "np.ndarray[Any, np.dtype[np.float64]]") -> float | None:
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def _effective_size(means: "np.ndarray[Any, np.dtype[np.float64]]", trials: int) -> float:
    """How many independent trials carry as much information as these clusters do.

    Never fewer than the problems (a cluster is worth one trial at least), nor more than the trials.
    How alike the answers to one problem are is known badly where few of all are right, or few
    wrong; taken as found, 198 problems with 4 answers at 1 % cover 90 % of the time. So a problem
    with right answers only and one with wrong ones are added, each weighing as one answer.
    """
    n = len(means)
    weight = n / trials
    size = n + 2 * weight
    centre = (float(means.sum()) + weight) / size
    squares = float(((means - centre) ** 2).sum()) + weight * ((1 - centre) ** 2 + centre**2)
    variance = squares / (size - 1) / n
    return min(float(trials), max(float(n), centre * (1 - centre) / variance))


def wilson(estimate: float, size: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for a share of `size` independent trials."""
    return _wilson(estimate, size, _normal(confidence))


def _wilson(estimate: float, size: float, critical: float) -> tuple[float, float]:
    square = critical * critical
    centre = (estimate + square / (2 * size)) / (1 + square / size)
    spread = estimate * (1 - estimate) / size + square / (4 * size * size)
    reach = critical * math.sqrt(spread) / (1 + square / size)
    low = 0.0 if estimate == 0 else max(0.0, centre - reach)
    high = 1.0 if estimate == 1 else min(1.0, centre + reach)
    return low, high


def normal_quantile(probability: float) -> float:
    """Where the standard normal distribution reaches `probability`."""
    return float(special.ndtri(probability))


def _normal(confidence: float) -> float:
    return normal_quantile((1 + confidence) / 2)


def student_quantile(probability: float, n: int) -> float:
    """The same for a mean of `n` values whose spread is estimated from them."""
    return float(special.stdtrit(max(1, n - 1), probability))


def _student(confidence: float, n: int) -> float:
    return student_quantile((1 + confidence) / 2, n)
