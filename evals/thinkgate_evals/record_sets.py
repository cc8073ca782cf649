"""Records from anywhere: our own runs, and files of other tools with as little as two fields.

Owns finding them behind a path and reading what is no run of ours. A minimal line is
`{"problem_id": "17", "correct": true}`; with several answers to a problem also `"sample"`. Every
other field of `Record` is taken over where it is there, and unknown ones are left alone.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from thinkgate.answers import Verdict
from thinkgate.checkpoint import META
from thinkgate.errors import DataError
from thinkgate.records import read_records as read_rows
from thinkgate_evals.measure import graded_again, records_folder
from thinkgate_evals.records import (
    Header,
    Record,
    Session,
    header_path,
    read_header,
    read_records,
    refuse_doubles,
)

__all__ = ["RecordSet", "find_record_sets", "load_record_set"]

OLD = ".old.jsonl"
"""What `--fresh` sets aside is not a measurement any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordSet:
    """The records of one suite for one model, wherever they come from."""

    name: str
    """Of the model, as a reader of a table knows it."""

    suite: str
    path: Path
    records: tuple[Record, ...]
    header: Header | None
    """Only a run of ours has one."""

    @property
    def sessions(self) -> Sequence[Session]:
        """When the samples were drawn; empty where that is not known."""
        return self.header.sessions if self.header else ()

    @property
    def digest(self) -> str:
        """Of the model where the records say, else of the file."""
        if self.header is not None:
            return self.header.model
        return f"records:{hashlib.sha256(self.path.read_bytes()).hexdigest()}"


def find_record_sets(target: Path, name: str | None = None) -> dict[str, RecordSet]:
    """By suite: the records in the file `target`, in a checkpoint, or in a folder of records.

    DataError when there are none. A file of another tool is a suite of its own name.
    """
    if target.is_file():
        found = load_record_set(target, name or _model_name(target))
        return {found.suite: found}
    if not target.is_dir():
        raise DataError(f"{target}: no such file or folder")
    folder = records_folder(target) if (target / META).is_dir() else target
    files = [file for file in sorted(folder.glob("*.jsonl")) if not file.name.endswith(OLD)]
    if not files:
        raise DataError(
            f"{folder} has no records; measure with 'thinkgate eval', or name a .jsonl file"
        )
    sets = [load_record_set(file, name or target.name) for file in files]
    return {each.suite: each for each in sets}


def load_record_set(path: Path, name: str) -> RecordSet:
    """One file. Ours are read strictly, others by `problem_id` and `correct` or `verdict`."""
    header = read_header(path) if header_path(path).is_file() else None
    records = _ours(path, header) if header else _foreign(path)
    if not records:
        raise DataError(f"{path} has no records")
    suite = header.suite if header else path.stem
    return RecordSet(name=name, suite=suite, path=path, records=tuple(records), header=header)


def _ours(path: Path, header: Header) -> list[Record]:
    """The records of a run of ours, graded again as where it goes on; lm-eval grades its own."""
    records = read_records(path)
    if header.suite.startswith("lm-"):
        return records
    golds = {record.problem_id: record.gold for record in records if record.gold is not None}
    changed = graded_again(path, records, golds)
    return [changed.get(record.key, record) for record in records]


def _model_name(file: Path) -> str:
    """`a` for `a/thinkgate/evals/x.jsonl` and `a.evals/DIGEST/x.jsonl`, the file itself for one
    that lies alone."""
    if file.parent.name == "evals" and file.parent.parent.name == META:
        return file.parent.parent.parent.name
    if file.parent.parent.suffix == ".evals":
        return file.parent.parent.stem
    return file.parent.name if header_path(file).is_file() else file.stem


def _foreign(path: Path) -> list[Record]:
    records: list[Record] = []
    for number, row in read_rows(path):
        where = f"{path}, line {number}"
        try:
            records.append(Record.model_validate(_as_record(row, where)))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            reason = str(first["msg"])
            raise DataError(f"{where}: '{field}': {reason[0].lower()}{reason[1:]}") from error
    refuse_doubles(path, records)
    return records


def _as_record(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    known = {name: row[name] for name in Record.model_fields if row.get(name) is not None}
    problem = row.get("problem_id")
    if isinstance(problem, bool) or not isinstance(problem, str | int):
        raise DataError(
            f"{where}: 'problem_id' must be a text or a whole number; the line has "
            f"{', '.join(row) or 'no fields'}"
        )
    known["problem_id"] = str(problem)
    if "sample" in row and known.setdefault("repeat", row["sample"]) != row["sample"]:
        raise DataError(f"{where}: 'sample' and 'repeat' differ; give one of them")
    verdict = _verdict(row, where)
    if known.setdefault("verdict", verdict) != verdict and "correct" in row:
        raise DataError(
            f"{where}: 'correct' is {row['correct']} and 'verdict' is {known['verdict']}; give one "
            "of them"
        )
    return known


def _verdict(row: Mapping[str, Any], where: str) -> str:
    """From `correct`; null is a measurement that failed, not a wrong answer."""
    if "correct" not in row:
        if "verdict" in row:
            return str(row["verdict"])
        raise DataError(f"{where}: neither 'correct' nor 'verdict'; the line has {', '.join(row)}")
    correct = row["correct"]
    if correct is None:
        return Verdict.ERROR
    if correct not in (0, 1):  # true, 1 and 1.0 are one answer
        raise DataError(f"{where}: 'correct' is {correct!r}; write true, false or null")
    if correct:
        return Verdict.CORRECT
    # Any graded verdict but CORRECT says "not correct" and says more.
    told = row.get("verdict")
    return Verdict.NO_ANSWER if told == Verdict.NO_ANSWER else Verdict.WRONG
