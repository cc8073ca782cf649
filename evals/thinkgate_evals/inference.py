"""How sure numbers are: of one sample whose size was settled before, or of one that is looked at
as it grows (`anytime.py`).

Owns what the judge may ask of either; the arithmetic is theirs.
"""

from collections.abc import Sequence
from typing import Protocol

from thinkgate_evals import stats
from thinkgate_evals.stats import Interval

__all__ = ["FIXED", "Counts", "Inference"]

Counts = Sequence[tuple[int, int]]
"""(successes, trials) of each problem, in the order the problems were drawn."""


class Inference(Protocol):
    """Intervals and tests from one value, or pair, per problem; None where nothing is known."""

    @property
    def sequential(self) -> bool:
        """Whether one may look after every problem, and stop."""
        ...

    def share(self, counts: Counts, confidence: float, /) -> Interval | None:
        """The share of successes."""
        ...

    def difference(self, differences: Sequence[float], confidence: float, /) -> Interval | None:
        """The mean of paired differences, each in [-1, 1]."""
        ...

    def p_value(self, differences: Sequence[float], threshold: float, /) -> float:
        """One-sided, of "the true difference is not above `threshold`"."""
        ...

    def ratio(
        self, pairs: Sequence[tuple[float, float]], largest: float, confidence: float, /
    ) -> Interval | None:
        """Mean of the first, in [0, `largest`], over mean of the second, in [0, 1]."""
        ...


class _FixedSize:
    sequential = False
    share = staticmethod(stats.share)
    difference = staticmethod(stats.paired_difference)
    p_value = staticmethod(stats.paired_p_value)

    @staticmethod
    def ratio(
        pairs: Sequence[tuple[float, float]], largest: float, confidence: float, /
    ) -> Interval | None:
        return stats.ratio(pairs, confidence)


FIXED: Inference = _FixedSize()
