"""Power: which differences a plan can find, before a single sample is drawn.

Owns the arithmetic of Miller 2024 (arXiv 2411.00640, section 5): the variance of a paired
difference per problem is `between + (within of A + within of B) / samples`. `between` is how much
the two models differ from problem to problem, `within` how much one model's answers to the same
problem do. Knows numbers only.

A pseudo-problem won and one lost are added as in the interval that will judge the result
(`stats.paired_difference`), so that a plan and its analysis agree also on few problems.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from thinkgate_evals.stats import (
    ENOUGH,
    POWER,
    SMALLEST_ADDED,
    normal_quantile,
    student_quantile,
)

__all__ = [
    "UNKNOWN",
    "Variances",
    "detectable",
    "detectable_between",
    "problems_needed",
    "variances_of",
]


@dataclass(frozen=True, slots=True)
class Variances:
    """Where the noise of a comparison comes from, per problem."""

    between: float
    """Of the difference of the two models' accuracies, over problems."""

    within: float
    """Of one answer to one problem, averaged over problems; the same for both models."""

    def of_difference(self, samples: int) -> float:
        """Of one problem's difference with so many answers from each model."""
        return self.between + 2 * self.within / samples


UNKNOWN = Variances(between=1 / 12, within=1 / 6)
"""Where nothing is known: each model's accuracies spread evenly from 0 to 1 over the problems
(variance 1/12, which leaves 1/6 within), and correlate by one half between the models."""


def variances_of(counts: Sequence[tuple[int, int]]) -> Variances:
    """What one model's (successes, trials) per problem say about comparing it with one like it.

    With one answer each, the two parts cannot be told apart and are split as in UNKNOWN.
    """
    used = [(hits, trials) for hits, trials in counts if trials]
    if not used:
        return UNKNOWN
    shares = [hits / trials for hits, trials in used]
    # One success and one failure more: no model is perfect because it was on few problems.
    centre = (sum(shares) + 1) / (len(shares) + 2)
    total = centre * (1 - centre)
    several = [hits / n * (1 - hits / n) * n / (n - 1) for hits, n in used if n > 1]
    within = min(total, sum(several) / len(several)) if several else total * 2 / 3
    # Variance of the difference of two values that correlate by one half: once their variance.
    return Variances(between=total - within, within=within)


def detectable(problems: int, samples: int, variances: Variances, alpha: float = 0.05) -> float:
    """The smallest true difference that is found 4 times in 5, at a two-sided level of `alpha`."""
    return _detectable(problems, variances.of_difference(samples), _added(samples), alpha)


def detectable_between(differences: Sequence[float], alpha: float = 0.05) -> float:
    """The same for two models that have been measured, from their differences per problem."""
    n = len(differences)
    centre = sum(differences) / n
    variance = sum((difference - centre) ** 2 for difference in differences) / n
    largest = max(map(abs, differences))
    return _detectable(n, variance, max(SMALLEST_ADDED, largest) if largest else 1.0, alpha)


def problems_needed(
    margin: float, samples: int, variances: Variances, alpha: float = 0.05
) -> int | None:
    """How many problems find a difference of `margin` 4 times in 5; None for over a million."""
    too_few, enough = 0, 1
    while detectable(enough, samples, variances, alpha) > margin:
        too_few, enough = enough, 2 * enough
        if too_few > ENOUGH:
            return None
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if detectable(middle, samples, variances, alpha) > margin:
            too_few = middle
        else:
            enough = middle
    return enough if enough <= ENOUGH else None


def _detectable(problems: int, variance: float, added: float, alpha: float) -> float:
    reach = student_quantile(1 - alpha / 2, problems + 2) + normal_quantile(POWER)
    return reach * math.sqrt(problems * variance + 2 * added**2) / problems


def _added(samples: int) -> float:
    return 1.0 if samples == 1 else SMALLEST_ADDED
