"""Several answers to one problem: the chance that one of k is right, votes, and repetitions.

Owns pass@k, maj@k and what counts as a repeated sample. Answers that could not be graded are left
out, as everywhere; a problem with fewer than k others says nothing about k.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from thinkgate.answers import Verdict, equivalent
from thinkgate.votes import Poll
from thinkgate_evals.records import Record
from thinkgate_evals.stats import Interval, mean

__all__ = ["by_problem", "duplicate_rate", "majority", "pass_at", "sizes"]


def by_problem(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The graded records of each problem, in the order of their repeats."""
    found: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.graded:
            found[record.problem_id].append(record)
    return {problem: sorted(each, key=lambda r: r.repeat) for problem, each in found.items()}


def sizes(problems: Iterable[Sequence[Record]]) -> tuple[int, ...]:
    """The k that are reported: 2, 4, 8 … and the number of answers most problems have."""
    counts = Counter(len(records) for records in problems)
    if not counts:
        return ()
    n = counts.most_common(1)[0][0]
    powers = [2**exponent for exponent in range(1, n.bit_length()) if 2**exponent < n]
    return (*powers, n) if n > 1 else ()


def pass_at(k: int, problems: Iterable[Sequence[Record]]) -> Interval | None:
    """How often at least one of k answers is right: the unbiased estimator of Chen et al. 2021
    (arXiv 2107.03374), 1 - C(n - c, k) / C(n, k) for c of n answers right."""
    counted = [
        (len(records), sum(r.verdict is Verdict.CORRECT for r in records))
        for records in problems
        if len(records) >= k
    ]
    values = [1 - math.comb(n - right, k) / math.comb(n, k) for n, right in counted]
    return mean(values, sum(n for n, _ in counted))


def majority(k: int, problems: Iterable[Sequence[Record]]) -> Interval | None:
    """How often the most frequent of k answers is right (Wang et al. 2022, arXiv 2203.11171).

    Votes are counted with the verifier's equivalence, so 1/2 and 0.5 are one answer; a tie counts
    by the share of its answers that are right. The samples of a problem are cut into groups of k
    in the order they were drawn. A sample without an answer does not vote.
    """
    values: list[float] = []
    for records in problems:
        starts = range(0, len(records) - k + 1, k)
        votes = [_elect(records[start : start + k]) for start in starts]
        if votes:
            values.append(sum(votes) / len(votes))
    return mean(values, len(values))


def duplicate_rate(records: Iterable[Record]) -> Interval | None:
    """The share of further samples that repeat, word for word, an earlier one of their problem.

    1.0 at a temperature above 0 means that the endpoint ignores seeds, or answers from a cache:
    then several samples are one.
    """
    texts: defaultdict[str, list[tuple[str | None, str | None]]] = defaultdict(list)
    for record in records:
        if record.status is not None:
            texts[record.problem_id].append((record.reasoning, record.answer))
    further = [(len(each) - len(set(each)), len(each) - 1) for each in texts.values()]
    used = [(repeated, trials) for repeated, trials in further if trials]
    return mean([repeated / trials for repeated, trials in used], sum(t for _, t in used))


def _elect(records: Sequence[Record]) -> float:
    """The share of right answers among the most frequent ones; 0 when nobody votes."""
    poll: Poll[Record] = Poll(_same)
    for record in records:
        if record.extracted is not None:
            poll.cast(record)
    winners = poll.leaders()
    right = (sum(r.verdict is Verdict.CORRECT for r in party) / len(party) for party in winners)
    return sum(right) / len(winners) if winners else 0.0


def _same(a: Record, b: Record) -> bool:
    # Both are right, or both extracted the same: no need to ask the verifier.
    if a.verdict is b.verdict is Verdict.CORRECT or a.extracted == b.extracted:
        return True
    if Verdict.CORRECT in (a.verdict, b.verdict):
        return False
    assert a.extracted is not None and b.extracted is not None
    return equivalent(a.extracted, b.extracted)
