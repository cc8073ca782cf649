"""A second opinion on every answer, for results that must not hang on who grades.

Owns which graders there are, asking them, and what a disagreement is. The first grader is always
the one verifier; what it says is never changed here.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum

from thinkgate.answers import Verdict, second_opinion
from thinkgate.console import progress
from thinkgate.countdown import Puzzle
from thinkgate_evals.records import GRADED, Record

__all__ = ["SecondGrader", "disagreements", "grade_again", "under_second"]


class SecondGrader(StrEnum):
    """Who else can grade."""

    MATH_VERIFY = "math-verify"
    """math-verify with its own extraction. It reads no words and no Countdown puzzles: BAD_GOLD."""


def grade_again(records: Sequence[Record], grader: SecondGrader) -> list[Record]:
    """The records with `second_verdict`; those that have one keep it, ungraded ones get none."""
    assert grader is SecondGrader.MATH_VERIFY
    open_ones = [r for r in records if r.second_verdict is None and r.graded]
    if not open_ones:
        return list(records)
    found: dict[tuple[str, int], Verdict] = {}
    with progress(f"grade with {grader}", len(open_ones)) as meter:
        for record in open_ones:
            found[record.key] = _math_verify(record.answer, record.gold or "")
            meter.advance()
    return [
        record.model_copy(update={"second_verdict": found[record.key]})
        if record.key in found
        else record
        for record in records
    ]


def _math_verify(answer: str | None, gold: str) -> Verdict:
    # It would read the target of a puzzle as the right answer.
    return Verdict.BAD_GOLD if Puzzle.read(gold) else second_opinion(answer, gold)


def disagreements(records: Iterable[Record]) -> list[Record]:
    """The answers that one grader calls right and the other does not."""
    return [
        record
        for record in records
        if record.graded
        and record.second_verdict in GRADED
        and (record.verdict is Verdict.CORRECT) != (record.second_verdict is Verdict.CORRECT)
    ]


def under_second(records: Iterable[Record]) -> list[Record]:
    """The records as if the second grader had been the only one; what it could not grade, or was
    not asked about, is an ERROR."""
    return [
        record.model_copy(update={"verdict": record.second_verdict or Verdict.ERROR})
        if record.graded
        else record
        for record in records
    ]
