"""Recorded outputs, one JSON object a line, for the commands that grade or split them.

Owns the wording of what is wrong with a line. Knows nothing of what the fields mean.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO, cast

from thinkgate.errors import DataError

__all__ = ["add_format_arguments", "field_of", "open_output", "read_records", "write_row"]


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) for every non-empty line of a JSONL file; `-` is stdin."""
    with ExitStack() as stack:
        if str(path) == "-":
            lines: Iterable[bytes] | TextIO = getattr(sys.stdin, "buffer", sys.stdin)
        else:
            try:
                lines = stack.enter_context(path.open("rb"))
            except OSError as error:
                raise DataError(f"Cannot read {path}: {error.strerror}.") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row = _object_in(line, f"{path} line {number}")
            if not isinstance(row, dict):
                raise DataError(
                    f"{path} line {number} is {type(row).__name__}, not a JSON object with fields."
                )
            yield number, cast(dict[str, Any], row)


def _object_in(line: bytes | str, where: str) -> object:
    try:
        # Windows editors begin a file with a byte order mark.
        text = line.decode("utf-8-sig") if isinstance(line, bytes) else line
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8 (byte {error.start + 1} is 0x{error.object[error.start]:02x}): "
            "save the file as UTF-8."
        ) from error
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", str(error).partition(";")[0])
        raise DataError(
            f"{where} is not JSON ({reason}): the file must hold one JSON object a line."
        ) from error


def write_row(row: dict[str, Any], output: TextIO) -> None:
    """Write one line of JSON. Lone surrogates, which JSON can carry and UTF-8 cannot, are escaped
    as they were in the input."""
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(row)
    print(text, file=output)


def field_of(row: dict[str, Any], name: str, where: str, flag: str) -> Any:
    """The field `name` of `row`; a missing one is refused with the fields there are."""
    if name not in row:
        present = ", ".join(sorted(row)) or "none"
        raise DataError(f"{where} has no field '{name}' (it has {present}): name it with {flag}.")
    return row[name]


def open_output(path: Path | None, stack: ExitStack, source: Path | None = None) -> TextIO:
    """Open `path` for writing until `stack` closes; None is stdout. `source`, which is still to
    be read, is refused: opening it would empty it."""
    if path is None:
        return sys.stdout
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise DataError(f"--output {path} is the file that is read: name another.")
    try:
        return stack.enter_context(path.open("w", encoding="utf-8"))
    except OSError as error:
        raise DataError(f"Cannot write {path}: {error.strerror}.") from error


def add_format_arguments(parser: argparse.ArgumentParser) -> None:
    """How recorded completions spell their thoughts: the options `score` and `split` share."""
    parser.add_argument(
        "--prefilled",
        action="store_true",
        help="the prompts ended inside an open <think> (Qwen3 and R1 templates do that)",
    )
    parser.add_argument("--open-tag", default="<think>", help="default: <think>")
    parser.add_argument("--close-tag", default="</think>", help="default: </think>")
