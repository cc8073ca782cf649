"""What records add up to: shares with intervals, lengths, latency, throughput.

Owns the definition of every number in a report; those that need several answers to one problem
are `voting.py`'s. What enters a share is decided here once: answers that could not be graded
(ERROR, BAD_GOLD) are left out of accuracy and counted in the error rate.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thinkgate.answers import Verdict
from thinkgate.format import SplitStatus
from thinkgate_evals.power import detectable, variances_of
from thinkgate_evals.records import GRADED, Record, Session
from thinkgate_evals.stats import Interval, share
from thinkgate_evals.voting import by_problem, duplicate_rate, majority, pass_at, sizes

__all__ = [
    "SHARES",
    "Spread",
    "Summary",
    "correct_counts",
    "cost_by_problem",
    "counts_by_problem",
    "counts_of",
    "interval_of",
    "summarise",
    "tokens_by_problem",
]


def _accuracy(record: Record) -> bool | None:
    return record.verdict is Verdict.CORRECT if record.graded else None


def _second(record: Record) -> bool | None:
    graded = record.graded and record.second_verdict in GRADED
    return record.second_verdict is Verdict.CORRECT if graded else None


def _disputed(record: Record) -> bool | None:
    second = _second(record)
    return None if second is None else second != (record.verdict is Verdict.CORRECT)


def _closed(record: Record) -> bool | None:
    return record.status is SplitStatus.CLOSED if record.status else None


def _truncated(record: Record) -> bool | None:
    return record.status is SplitStatus.TRUNCATED if record.status else None


def _has_steps(record: Record) -> bool | None:
    return bool((record.reasoning or "").strip()) if record.status else None


_CUES = re.compile(
    r"\b(?:wait(?=\s*[,.!?:;\u2014\u2026-]|\s+(?:no|but|that|actually|i|let|is|what|maybe|so)\b)"
    r"|hmm+|hold on|on second thought"
    r"|(?:let me|let's|let us|i should|i'll)(?: just| quickly| also)? (?:check|verify|try again)"
    r"|(?:double|re)[- ]?check(?:ing|ed)?|re-?(?:think|consider|evaluate|examine)(?:ing)?"
    r"|made (?:a|an) (?:\w+ )?(?:mistake|error)"
    r"|that(?:'s| is| was) (?:not right|wrong|incorrect)"
    r"|(?:does not|doesn't|can't|cannot) (?:seem|look|be) right)\b",
    re.IGNORECASE,
)
"""Words with which a thought turns on itself. A count of cues, not of insight: Liu et al. 2025
(arXiv 2503.20783) find them in base models too, and often without effect."""


def _reflects(record: Record) -> bool | None:
    return bool(_CUES.search(record.reasoning or "")) if record.status else None


def _unmeasured(record: Record) -> bool:
    return not record.graded


Test = Callable[[Record], bool | None]
"""True or False for a sample that counts, None for one that says nothing."""

SHARES: Mapping[str, Test] = {
    "accuracy": _accuracy,
    "second_accuracy": _second,
    "disagreement": _disputed,
    "format_rate": _closed,
    "truncation_rate": _truncated,
    "step_share": _has_steps,
    "reflection_rate": _reflects,
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

    several: Mapping[str, Interval | None]
    """pass@k and maj@k by those names; empty with one answer per problem."""

    duplicate_rate: Interval | None
    """See `voting.duplicate_rate`; None with one answer per problem."""

    detectable: float | None
    """The difference in accuracy to a model of like skill that this many samples would find."""

    reasoning_tokens: Spread | None
    answer_tokens: Spread | None
    tokens_per_correct: float | None
    """Reasoning and answer tokens of all graded samples, by the number of right answers."""

    latency_s: Spread | None
    samples_per_second: float | None
    tokens_per_second: float | None
    """Over the sessions in which the samples were drawn."""

    first_error: str | None

    def as_json(self) -> dict[str, Any]:
        """Plain data for `report.json`."""
        import dataclasses

        return dataclasses.asdict(self)


def summarise(records: Sequence[Record], sessions: Sequence[Session] = ()) -> Summary:
    """All numbers about one run."""
    seconds = sum(session.seconds for session in sessions)
    tokens = sum(session.tokens for session in sessions)
    errors = (record.error for record in records if record.error)
    answers = list(by_problem(records).values())
    return Summary(
        problems=len({record.problem_id for record in records}),
        samples=len(records),
        verdicts={v.value: n for v, n in Counter(r.verdict for r in records).most_common()},
        shares={name: interval_of(records, test) for name, test in SHARES.items()},
        several={
            name.format(k): measure(k, answers)
            for k in sizes(answers)
            for name, measure in (("pass@{}", pass_at), ("maj@{}", majority))
        },
        duplicate_rate=duplicate_rate(records),
        detectable=_detectable(correct_counts(records)),
        reasoning_tokens=_spread(record.reasoning_tokens for record in records),
        answer_tokens=_spread(record.answer_tokens for record in records),
        tokens_per_correct=_tokens_per_correct(records),
        latency_s=_spread(record.latency_s for record in records),
        samples_per_second=sum(s.samples for s in sessions) / seconds if seconds else None,
        tokens_per_second=tokens / seconds if seconds and tokens else None,
        first_error=next(errors, None),
    )


def correct_counts(records: Iterable[Record]) -> list[tuple[int, int]]:
    """(right, graded) answers of each problem."""
    return list(counts_by_problem(records).values())


def counts_by_problem(records: Iterable[Record]) -> dict[str, tuple[int, int]]:
    """The same, by problem."""
    return {p: (sum(a), len(a)) for p, a in _by_problem(records, _accuracy).items()}


def tokens_by_problem(records: Iterable[Record]) -> list[list[int]] | None:
    """Tokens of the thought of each sample, by problem; None where one is not counted."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for record in records:
        if record.status is None and record.error is not None:
            continue
        if record.reasoning_tokens is None:
            return None
        found[record.problem_id].append(record.reasoning_tokens)
    return list(found.values())


def cost_by_problem(records: Iterable[Record]) -> list[tuple[float, float]] | None:
    """(tokens, share right) of each problem's graded samples, on average; None where tokens are
    not counted."""
    found: list[tuple[float, float]] = []
    for each in by_problem(records).values():
        spent = [(r.reasoning_tokens, r.answer_tokens) for r in each]
        if any(None in pair for pair in spent):
            return None
        tokens = sum((thought or 0) + (answer or 0) for thought, answer in spent)
        right = sum(record.verdict is Verdict.CORRECT for record in each)
        found.append((tokens / len(each), right / len(each)))
    return found


def _detectable(counts: Sequence[tuple[int, int]]) -> float | None:
    if not counts:
        return None
    samples = sorted(trials for _, trials in counts)[len(counts) // 2]
    return detectable(len(counts), samples, variances_of(counts))


def _tokens_per_correct(records: Sequence[Record]) -> float | None:
    """None without a right answer, or where the server does not count."""
    graded = [record for record in records if record.graded]
    spent = [(r.reasoning_tokens, r.answer_tokens) for r in graded]
    correct = sum(record.verdict is Verdict.CORRECT for record in graded)
    if not correct or any(None in pair for pair in spent):
        return None
    return sum((thought or 0) + (answer or 0) for thought, answer in spent) / correct


def interval_of(records: Iterable[Record], test: Test) -> Interval | None:
    """The share of samples for which `test` holds, clustered by problem, at 95 %."""
    return share(counts_of(records, test))


def counts_of(
    records: Iterable[Record], test: Test, absent: Mapping[str, int] | None = None
) -> list[tuple[int, int]]:
    """(samples for which `test` holds, samples it says something about) of each problem.

    `absent` samples of a problem, by its id, are not there; for each of them it holds.
    """
    answers = _by_problem(records, test)
    for problem, count in (absent or {}).items():
        answers[problem] = [*answers.get(problem, []), *([True] * count)]
    return [(sum(each), len(each)) for each in answers.values()]


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
