"""A second opinion on every answer, for results that must not hang on who grades.

Owns which graders there are, asking them, and what a disagreement is. The first grader is always
the one verifier; what it says is never changed here. A second grader that fails says nothing: its
verdict stays open, and it is asked again by the next run.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Discriminator, Tag

from thinkgate.answers import Verdict, second_opinion
from thinkgate.config import parse, read_yaml
from thinkgate.console import progress
from thinkgate.countdown import Puzzle
from thinkgate.errors import ConfigError
from thinkgate.llm_judge import LLMJudge
from thinkgate_evals.records import GRADED, Record

__all__ = [
    "AnswerJudge",
    "Grader",
    "SecondGrader",
    "disagreements",
    "grade_again",
    "grader_from",
    "grader_name",
    "under_second",
]

JUDGE_CACHE = "judge.cache"
"""Beside the records, where the judge's settings name no other file."""


class SecondGrader(StrEnum):
    """Who else can grade, without asking anybody."""

    MATH_VERIFY = "math-verify"
    """math-verify with its own extraction. It reads no words and no Countdown puzzles: BAD_GOLD."""


RUBRIC = (
    "Give 1 if the final answer agrees with the reference answer, however it is written, and 0 if "
    "it does not or if there is none. Only the final answer counts, not the way to it. Do not "
    "solve the problem again: the reference answer is right."
)


class AnswerJudge(LLMJudge):
    """A language model that says of each answer whether it agrees with the gold: 1 or 0.

    Anything between, an unreadable reply and a failed request are no verdict.
    """

    rubric: str = RUBRIC

    def identity(self) -> str:
        """The model, and a digest of what decides its verdicts beside it."""
        deciding = {"base_url", "rubric", "template", "scale", "sampling"}
        asked = self.model_dump_json(include=deciding)
        return f"{self.model} ({hashlib.sha256(asked.encode()).hexdigest()[:8]})"


def _is_judge(given: object) -> str:
    return "judge" if isinstance(given, Mapping | AnswerJudge) else "name"


Grader = Annotated[
    Annotated[SecondGrader, Tag("name")] | Annotated[AnswerJudge, Tag("judge")],
    Discriminator(_is_judge),
]
"""As a policy writes it: a name, or the settings of a judge."""


def grader_from(given: str) -> Grader:
    """What `--second-grader` names: `math-verify`, or a file with the settings of a judge."""
    if given in {grader.value for grader in SecondGrader}:
        return SecondGrader(given)
    if not given.endswith((".yaml", ".yml")):
        raise ConfigError(
            f"--second-grader {given}: there is {', '.join(SecondGrader)}, or a .yaml file with "
            "base_url and model of a language model that judges"
        )
    return parse(AnswerJudge, read_yaml(Path(given)), Path(given))


def grader_name(grader: Grader) -> str:
    """What records say about who gave the second verdict."""
    return grader.identity() if isinstance(grader, AnswerJudge) else grader.value


def grade_again(
    records: Sequence[Record], grader: Grader, folder: Path | None = None
) -> list[Record]:
    """The records with the grader's `second_verdict`; those that have it keep it, ungraded ones get
    none. A judge keeps its verdicts in `folder` as they come."""
    name = grader_name(grader)
    open_ones = [record for record in records if record.graded and not _given_by(record, name)]
    if not open_ones:
        return list(records)
    found: dict[tuple[str, int], Verdict | None] = {}
    with progress(f"grade with {name}", len(open_ones)) as meter:
        for record, verdict in _verdicts(open_ones, grader, folder):
            found[record.key] = verdict
            meter.advance()
    return [
        _with_second(record, found[record.key], name) if record.key in found else record
        for record in records
    ]


def _given_by(record: Record, name: str) -> bool:
    """Whether the second verdict is there, and of this grader; where nobody signed, it is."""
    return record.second_verdict is not None and record.second_grader in (None, name)


def _with_second(record: Record, verdict: Verdict | None, name: str) -> Record:
    signed = None if verdict is None else name
    return record.model_copy(update={"second_verdict": verdict, "second_grader": signed})


def _verdicts(
    records: Sequence[Record], grader: Grader, folder: Path | None
) -> Iterator[tuple[Record, Verdict | None]]:
    if isinstance(grader, AnswerJudge):
        yield from _judged(records, grader, folder)
        return
    for record in records:
        yield record, _math_verify(record.answer, record.gold or "")


def _math_verify(answer: str | None, gold: str) -> Verdict:
    # It would read the target of a puzzle as the right answer.
    return Verdict.BAD_GOLD if Puzzle.read(gold) else second_opinion(answer, gold)


def _judged(
    records: Sequence[Record], judge: AnswerJudge, folder: Path | None
) -> Iterator[tuple[Record, Verdict | None]]:
    """A few at a time, so that the bar moves and what was said is kept."""
    if judge.cache is None and folder is not None:
        judge = judge.model_copy(update={"cache": folder / JUDGE_CACHE})
    asked = _connected(judge.model_dump_json())
    step = 4 * judge.concurrency
    for start in range(0, len(records), step):
        some = records[start : start + step]
        askable = [r for r in some if r.gold is not None and r.answer and r.answer.strip()]
        scores = asked.score(
            [record.prompt or "" for record in askable],
            [record.answer for record in askable],
            [_gold_in_words(record.gold or "") for record in askable],
        )
        said = {r.key: score for r, score in zip(askable, scores, strict=True)}
        for record in some:
            if record.gold is None:
                yield record, Verdict.BAD_GOLD
            else:
                # Neither 0 nor 1 is a judge in two minds, which is no verdict.
                known = {1.0: Verdict.CORRECT, 0.0: Verdict.WRONG}
                score = said.get(record.key)
                verdict = None if score is None else known.get(score)
                yield record, verdict if record.key in said else Verdict.NO_ANSWER


@cache
def _connected(settings: str) -> AnswerJudge:
    """One for the whole process: it holds the pace, and what was said."""
    judge = AnswerJudge.model_validate_json(settings)
    judge.connect()
    return judge


def _gold_in_words(gold: str) -> str:
    """The gold, or what a puzzle's gold means."""
    puzzle = Puzzle.read(gold)
    if puzzle is None:
        return gold
    numbers = ", ".join(map(str, puzzle.numbers))
    return (
        f"any expression that comes to {puzzle.target}, made from the numbers {numbers}, each used "
        "once at most"
    )


def disagreements(records: Iterable[Record]) -> list[Record]:
    """The answers that one grader calls right and the other does not."""
    return [
        record
        for record in records
        if record.graded
        and record.second_verdict in GRADED
        and (record.verdict is Verdict.CORRECT) != (record.second_verdict is Verdict.CORRECT)
    ]


def under_second(records: Iterable[Record], grader: Grader) -> list[Record]:
    """The records as if the second grader had been the only one; what it could not grade, or was
    not asked about, is an ERROR."""
    name = grader_name(grader)
    return [
        record.model_copy(
            update={"verdict": (_given_by(record, name) and record.second_verdict) or Verdict.ERROR}
        )
        if record.graded
        else record
        for record in records
    ]
