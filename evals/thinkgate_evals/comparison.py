"""Two models on the same problems: the paired difference, and how sure it is.

Owns pairing and nothing else: which problems count, who is better on each. The intervals and tests
are `stats.py`'s, what a difference is worth `gate.py`'s.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from thinkgate.errors import DataError
from thinkgate_evals.metrics import counts_by_problem
from thinkgate_evals.power import detectable_between
from thinkgate_evals.records import Record
from thinkgate_evals.stats import Interval, mcnemar, paired_difference, sign_flip

__all__ = ["Comparison", "Pair", "compare"]


@dataclass(frozen=True, slots=True)
class Pair:
    """One problem both models have graded answers to: (right, graded) of each."""

    problem_id: str
    candidate: tuple[int, int]
    base: tuple[int, int]

    @property
    def difference(self) -> float:
        """The candidate's accuracy minus the base's."""
        (ours, n), (theirs, m) = self.candidate, self.base
        return ours / n - theirs / m


@dataclass(frozen=True)
class Comparison:
    """Candidate against base, problem by problem."""

    pairs: tuple[Pair, ...]
    candidate_only: int
    base_only: int
    """Problems that only one side has graded answers to; they are in no pair."""

    @cached_property
    def differences(self) -> tuple[float, ...]:
        """Per problem: the candidate's accuracy minus the base's."""
        return tuple(pair.difference for pair in self.pairs)

    @cached_property
    def wins(self) -> int:
        """Problems on which the candidate is better."""
        return sum(difference > 0 for difference in self.differences)

    @cached_property
    def losses(self) -> int:
        """Problems on which it is worse."""
        return sum(difference < 0 for difference in self.differences)

    @cached_property
    def single(self) -> bool:
        """One sample each, so that the exact McNemar test applies."""
        return all(pair.candidate[1] == pair.base[1] == 1 for pair in self.pairs)

    @property
    def test(self) -> str:
        """Which test `p_value` is of."""
        return "exact McNemar" if self.single else "sign-flip"

    @cached_property
    def p_value(self) -> float | None:
        """Two-sided, of "no difference", by `test`."""
        if not self.pairs:
            return None
        if self.single:
            return mcnemar(self.wins, self.losses)
        return sign_flip(self.differences)

    @cached_property
    def detectable(self) -> float | None:
        """The true difference these problems would have found 4 times in 5."""
        return detectable_between(self.differences) if len(self.pairs) > 1 else None

    def interval(self, confidence: float = 0.95) -> Interval | None:
        """The mean difference."""
        return paired_difference(self.differences, confidence)

    def agreement(self) -> tuple[int, int, int, int]:
        """Problems (both right, only the candidate, only the base, neither): right in at least
        half of the answers."""
        sides = [
            (pair.candidate[0] * 2 >= pair.candidate[1], pair.base[0] * 2 >= pair.base[1])
            for pair in self.pairs
        ]
        order = ((True, True), (True, False), (False, True), (False, False))
        both, ours, theirs, neither = (sides.count(each) for each in order)
        return both, ours, theirs, neither


def compare(candidate: Sequence[Record], base: Sequence[Record]) -> Comparison:
    """Pair the problems both have graded answers to, in the candidate's order.

    DataError when one problem id stands for two problems: then nothing is paired.
    """
    _same_problems(candidate, base)
    ours, theirs = counts_by_problem(candidate), counts_by_problem(base)
    return Comparison(
        tuple(Pair(p, counts, theirs[p]) for p, counts in ours.items() if p in theirs),
        candidate_only=len(ours.keys() - theirs.keys()),
        base_only=len(theirs.keys() - ours.keys()),
    )


def _same_problems(candidate: Iterable[Record], base: Iterable[Record]) -> None:
    asked = {r.problem_id: r.prompt for r in candidate if r.prompt is not None}
    for record in base:
        prompt = asked.get(record.problem_id)
        if None not in (prompt, record.prompt) and prompt != record.prompt:
            raise DataError(
                f"problem {record.problem_id} is '{_short(prompt)}' on one side and "
                f"'{_short(record.prompt)}' on the other; compare records of the same problems"
            )


def _short(text: str | None) -> str:
    line = " ".join((text or "").split())
    return line if len(line) <= 60 else f"{line[:60]}…"
