"""What records add up to: shares with intervals, lengths, latency, throughput.

Owns the definition of every number in a report. What enters a share is decided here once: answers
that could not be graded (ERROR, BAD_GOLD) are left out of accuracy and counted in the error rate.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thinkgate.answers import Verdict
from thinkgate.format import SplitStatus
from thinkgate_evals.records import Record, Session
from thinkgate_evals.stats import Interval, paired_difference, share

__all__ = ["SHARES", "Comparison", "Spread", "Summary", "compare", "interval_of", "summarise"]


def _accuracy(record: Record) -> bool | None:
    return record.verdict is Verdict.CORRECT if record.graded else None


def _closed(record: Record) -> bool | None:
    return record.status is SplitStatus.CLOSED if record.status else None


def _truncated(record: Record) -> bool | None:
    return record.status is SplitStatus.TRUNCATED if record.status else None


def _has_steps(record: Record) -> bool | None:
    return bool((record.reasoning or "").strip()) if record.status else None


def _unmeasured(record: Record) -> bool:
    return not record.graded


Test = Callable[[Record], bool | None]
"""True or False for a sample that counts, None for one that says nothing."""

SHARES: Mapping[str, Test] = {
    "accuracy": _accuracy,
    "format_rate": _closed,
    "truncation_rate": _truncated,
    "step_share": _has_steps,
    "error_rate": _unmeasured,
}


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution in three numbers."""

    mean: float
    p50: float
    p95: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One suite, one model."""

    problems: int
    samples: int
    verdicts: Mapping[str, int]
    shares: Mapping[str, Interval | None]
    """By the names in SHARES; None where no sample says anything."""

    reasoning_tokens: Spread | None
    answer_tokens: Spread | None
    latency_s: Spread | None
    samples_per_second: float | None
    tokens_per_second: float | None
    """Over the sessions in which the samples were drawn."""

    first_error: str | None

    def as_json(self) -> dict[str, Any]:
        """Plain data for `report.json`."""
        import dataclasses

        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Candidate against incumbent on the problems both have graded answers to."""

    differences: tuple[float, ...]
    """Per problem: the candidate's accuracy minus the incumbent's."""

    wins: int
    losses: int
    """Problems on which the candidate is better, or worse."""

    single: bool
    """One sample each, so that the exact McNemar test applies."""

    def interval(self, confidence: float) -> Interval | None:
        """The mean difference."""
        return paired_difference(self.differences, confidence)


def summarise(records: Sequence[Record], sessions: Sequence[Session] = ()) -> Summary:
    """All numbers about one run."""
    seconds = sum(session.seconds for session in sessions)
    tokens = sum(session.tokens for session in sessions)
    errors = (record.error for record in records if record.error)
    return Summary(
        problems=len({record.problem_id for record in records}),
        samples=len(records),
        verdicts={v.value: n for v, n in Counter(r.verdict for r in records).most_common()},
        shares={name: interval_of(records, test) for name, test in SHARES.items()},
        reasoning_tokens=_spread(record.reasoning_tokens for record in records),
        answer_tokens=_spread(record.answer_tokens for record in records),
        latency_s=_spread(record.latency_s for record in records),
        samples_per_second=sum(s.samples for s in sessions) / seconds if seconds else None,
        tokens_per_second=tokens / seconds if seconds and tokens else None,
        first_error=next(errors, None),
    )


def interval_of(records: Iterable[Record], test: Test, confidence: float = 0.95) -> Interval | None:
    """The share of samples for which `test` holds, clustered by problem."""
    return share([(sum(a), len(a)) for a in _by_problem(records, test).values()], confidence)


def compare(candidate: Iterable[Record], incumbent: Iterable[Record]) -> Comparison:
    """Accuracy problem by problem."""
    ours, theirs = _by_problem(candidate, _accuracy), _by_problem(incumbent, _accuracy)
    shared = [problem for problem in ours if problem in theirs]
    differences = tuple(
        sum(ours[p]) / len(ours[p]) - sum(theirs[p]) / len(theirs[p]) for p in shared
    )
    return Comparison(
        differences,
        wins=sum(difference > 0 for difference in differences),
        losses=sum(difference < 0 for difference in differences),
        single=all(len(ours[p]) == len(theirs[p]) == 1 for p in shared),
    )


def _by_problem(records: Iterable[Record], test: Test) -> dict[str, list[bool]]:
    answers: defaultdict[str, list[bool]] = defaultdict(list)
    for record in records:
        answer = test(record)
        if answer is not None:
            answers[record.problem_id].append(answer)
    return dict(answers)


def _spread(values: Iterable[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    p50, p95 = np.percentile(known, (50, 95))
    return Spread(float(np.mean(known)), float(p50), float(p95))
