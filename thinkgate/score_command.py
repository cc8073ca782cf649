"""Examples:

thinkgate score outputs.jsonl
thinkgate score outputs.jsonl --prefilled --workers 4 --output verdicts.jsonl
thinkgate score other-tool.jsonl --gold-field target --completion-field response

Each line has the gold and either a completion, which is split first (only its answer part is
graded), or an answer. One JSON object a line comes out; the summary goes to stderr. A null
completion is an ERROR, a null answer NO_ANSWER. Accuracy leaves out ERROR and BAD_GOLD.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from thinkgate.answers import Verdict, check_many, extract
from thinkgate.console import errors
from thinkgate.errors import ConfigError, DataError
from thinkgate.format import Tags, split
from thinkgate.records import add_format_arguments, field_of, open_output, read_records, write_row

_BATCH = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate score`."""
    parser.add_argument("file", type=Path, help="JSONL file of recorded outputs; - for stdin")
    parser.add_argument("--output", type=Path, help="where the verdicts go; default: stdout")
    parser.add_argument("--gold-field", default="gold", help="default: gold")
    parser.add_argument("--completion-field", default="completion", help="default: completion")
    parser.add_argument("--answer-field", default="answer", help="default: answer")
    parser.add_argument("--id-field", default="id", help="copied to the output; default: id")
    add_format_arguments(parser)
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds a comparison may take")
    parser.add_argument("--tolerance", type=float, help="relative tolerance; default: exact")
    parser.add_argument("--workers", type=int, default=1, help="comparisons at a time; default: 1")


def run(args: argparse.Namespace) -> int:
    """Write a verdict per line and the summary; 0 unless nothing could be graded."""
    if not 0 < args.timeout < float("inf"):
        raise ConfigError(f"--timeout {args.timeout} is not a positive number of seconds.")
    if args.tolerance is not None and not args.tolerance >= 0:
        raise ConfigError(f"--tolerance {args.tolerance} is not a number of at least 0.")
    if args.workers < 1:
        raise ConfigError(f"--workers {args.workers} is not at least 1.")
    counts: Counter[Verdict] = Counter()
    with ExitStack() as stack:
        output = open_output(args.output, stack, args.file)
        rows = (_to_grade(number, row, args) for number, row in read_records(args.file))
        while batch := list(islice(rows, _BATCH)):
            for line in _graded(batch, args):
                counts[line["verdict"]] += 1
                write_row(line, output)
    if not counts:
        raise DataError(f"{args.file} has no lines to grade.")
    _summarize(counts)
    return 0 if counts[Verdict.CORRECT] + counts[Verdict.WRONG] + counts[Verdict.NO_ANSWER] else 1


_Row = tuple[dict[str, Any], str | None, str | int | float]


def _to_grade(number: int, row: dict[str, Any], args: argparse.Namespace) -> _Row:
    """The output's first fields, the answer part and the gold of one line."""
    where = f"{args.file} line {number}"
    gold = field_of(row, args.gold_field, where, "--gold-field")
    if isinstance(gold, bool) or not isinstance(gold, str | int | float):
        raise DataError(f"{where}: the gold {json.dumps(gold)} is neither a text nor a number.")
    line: dict[str, Any] = {"line": number}
    if args.id_field in row:
        line["id"] = row[args.id_field]
    if args.completion_field in row:
        completion = _text_of(row[args.completion_field], where)
        if completion is None:
            return line | {"verdict": Verdict.ERROR, "status": None}, None, gold
        parts = split(completion, args.prefilled, Tags(args.open_tag, args.close_tag))
        return line | {"status": parts.status}, parts.answer, gold
    answer = field_of(row, args.answer_field, where, "--completion-field or --answer-field")
    return line, _text_of(answer, where), gold


def _text_of(value: Any, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise DataError(f"{where}: {json.dumps(value)[:60]} is not a text.")


def _graded(batch: Iterable[_Row], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    batch = list(batch)
    verdicts = check_many(
        [(answer, gold) for _, answer, gold in batch],
        workers=args.workers,
        timeout=args.timeout,
        tolerance=args.tolerance,
    )
    for (line, answer, gold), verdict in zip(batch, verdicts, strict=True):
        found = extract(answer)
        graded = {
            "verdict": verdict,
            "extracted": found.text if found else None,
            "how": found.how if found else None,
            "gold": gold,
        }
        yield {**line, **graded, **({"verdict": line["verdict"]} if "verdict" in line else {})}


def _summarize(counts: Counter[Verdict]) -> None:
    total = counts.total()
    graded = total - counts[Verdict.ERROR] - counts[Verdict.BAD_GOLD]
    for verdict in Verdict:
        errors.print(f"  {verdict:<12}{counts[verdict]:>8}  {counts[verdict] / total:7.1%}")
    if graded:
        accuracy = counts[Verdict.CORRECT] / graded
        errors.print(f"  accuracy {accuracy:.4f} of {graded} graded ({total} lines)")
    else:
        errors.print(f"  no accuracy: none of {total} lines could be graded")
