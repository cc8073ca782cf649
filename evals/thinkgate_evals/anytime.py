"""Confidence sequences: intervals that hold after every problem at once, so one may look and stop.

Knows numbers only. From Waudby-Smith and Ramdas, "Estimating means of bounded random variables by
betting" (Journal of the Royal Statistical Society B, 2023; arXiv 2010.09686), the hedged capital
process: whoever bets against "the mean is m" keeps, if that is true, a fair game, and by Ville's
inequality multiplies the stake by 2/alpha with a probability of alpha/2 at most, ever. Every m
against which that has happened is out, for good.

The stakes are the paper's predictable plug-in, tuned to half of the planned problems: any stake is
valid that is set before the value it is placed on. The order of the problems must be random.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thinkgate_evals.stats import Interval

__all__ = ["Betting", "log_wealth"]

Array = np.ndarray[Any, np.dtype[np.float64]]

TRUNCATION = 0.5
"""Share of the stake that one value can lose at most (the paper's c)."""

TUNED_ALPHA = 0.05
"""For the size of the stakes only; another level is tested with the same stakes."""

STEPS = 40
"""Halvings of an interval: more than a float's worth of a per mille."""


def log_wealth(values: Array, mean: float, planned: int) -> Array:
    """Log of the wealth after each value, for bets that the true mean is above `mean`.

    `values` in [0, 1], in the order they came, along the last axis; others are separate games.
    Decreases in `mean`, which lies between 0 and 1.
    """
    count = np.arange(1, values.shape[-1] + 1)
    centre = (0.5 + np.cumsum(values, -1)) / (count + 1)
    variance = (0.25 + np.cumsum((values - centre) ** 2, -1)) / (count + 1)
    before = np.concatenate([np.full_like(values[..., :1], 0.25), variance[..., :-1]], -1)
    stake = np.sqrt(2 * math.log(2 / TUNED_ALPHA) / (before * max(1.0, planned / 2)))
    return np.cumsum(np.log1p(np.minimum(stake, TRUNCATION / mean) * (values - mean)), -1)


@dataclass(frozen=True, slots=True)
class Betting:
    """The intervals of `stats.py`, for looking after every problem.

    All take the problems in the order in which they were drawn.
    """

    planned: int
    """Problems if nothing stops the measurement earlier; fixed before the first is asked."""

    sequential = True

    def share(self, counts: Sequence[tuple[int, int]], confidence: float = 0.95) -> Interval | None:
        """The share of successes, from (successes, trials) of each problem."""
        return self._mean([hits / trials for hits, trials in counts if trials], 0, 1, confidence)

    def difference(self, differences: Sequence[float], confidence: float = 0.95) -> Interval | None:
        """The mean paired difference."""
        return self._mean(differences, -1, 1, confidence)

    def p_value(self, differences: Sequence[float], threshold: float = 0.0) -> float:
        """One-sided, of "the true difference is not above `threshold`", whenever it is looked at.

        It is below alpha/2 exactly when the (1 - alpha) interval lies above the threshold.
        """
        wealth = self._best(_scaled(differences, -1, 1), (threshold + 1) / 2)
        return min(1.0, math.exp(-wealth))

    def ratio(
        self, pairs: Sequence[tuple[float, float]], largest: float, confidence: float = 0.95
    ) -> Interval | None:
        """Sum of the first, in [0, `largest`], over sum of the second, in [0, 1].

        From the two means, each at half of the error. Without an upper end (infinity) where the
        second may be 0 on average; None where it is 0 everywhere.
        """
        above, below = [first for first, _ in pairs], [second for _, second in pairs]
        if not sum(below):
            return None
        each = (1 + confidence) / 2
        first, second = self._mean(above, 0, largest, each), self._mean(below, 0, 1, each)
        assert first is not None and second is not None
        high = first.high / second.low if second.low else math.inf
        return Interval(sum(above) / sum(below), first.low / second.high, high, len(pairs))

    def _mean(
        self, values: Sequence[float], least: float, most: float, confidence: float
    ) -> Interval | None:
        if not len(values):
            return None
        scaled = _scaled(values, least, most)
        enough = math.log(2 / (1 - confidence))
        estimate = float(scaled.mean())
        low = _last(lambda mean: self._best(scaled, mean) >= enough, 0.0, estimate)
        high = 1 - _last(lambda mean: self._best(1 - scaled, mean) >= enough, 0.0, 1 - estimate)
        span = most - least
        ends = (least + estimate * span, least + low * span, least + high * span)
        return Interval(*ends, len(scaled))

    def _best(self, values: Array, mean: float) -> float:
        """Log of the most the bets against `mean` were ever worth."""
        if not 0 < mean < 1:  # there is nothing to bet against
            return 0.0
        return max(0.0, float(log_wealth(values, mean, self.planned).max(initial=0.0)))


def _scaled(values: Sequence[float], least: float, most: float) -> Array:
    return (np.asarray(values, dtype=float) - least) / (most - least)


def _last(out: Callable[[float], bool], low: float, high: float) -> float:
    """The largest value between `low` and `high` that is out; `low` where none is."""
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if out(middle) else (low, middle)
    return low
