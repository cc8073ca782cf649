"""Examples:

thinkgate split < completion.txt
thinkgate split outputs.jsonl
thinkgate split outputs.jsonl --field response --prefilled --output split.jsonl

Without a file, stdin is one completion. With one, every line keeps its fields and gains
`reasoning`, `answer` (null when the thought was cut off) and `status`; `-` is JSONL on stdin.
"""

import argparse
import json
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from thinkgate.console import errors
from thinkgate.errors import DataError
from thinkgate.format import Split, SplitStatus, Tags, split
from thinkgate.records import add_format_arguments, field_of, open_output, read_records, write_row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate split`."""
    parser.add_argument("file", type=Path, nargs="?", help="JSONL file; default: stdin, as text")
    parser.add_argument("--output", type=Path, help="where the result goes; default: stdout")
    parser.add_argument("--field", default="completion", help="default: completion")
    add_format_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write the parts, one JSON object a completion; the summary of many goes to stderr."""
    tags = Tags(args.open_tag, args.close_tag)
    with ExitStack() as stack:
        output = open_output(args.output, stack, args.file)
        if args.file is None:
            write_row(_fields(split(_stdin(), args.prefilled, tags)), output)
            return 0
        counts: Counter[SplitStatus] = Counter()
        for number, row in read_records(args.file):
            where = f"{args.file} line {number}"
            text = field_of(row, args.field, where, "--field")
            if not isinstance(text, str):
                raise DataError(f"{where}: {json.dumps(text)[:60]} is not a text to split.")
            parts = split(text, args.prefilled, tags)
            counts[parts.status] += 1
            write_row(row | _fields(parts), output)
    for status in SplitStatus:
        errors.print(f"  {status:<12}{counts[status]:>8}")
    return 0


def _stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise DataError(f"stdin is not UTF-8 ({error.reason}): send the text as UTF-8.") from error


def _fields(parts: Split) -> dict[str, Any]:
    return {"status": parts.status, "reasoning": parts.reasoning, "answer": parts.answer}
