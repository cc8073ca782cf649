"""Recorded outputs, one JSON object a line, for the commands that grade or split them.

Owns the wording of what is wrong with a line. Knows nothing of what the fields mean.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO, cast

from thinkgate.errors import DataError

__all__ = ["field_of", "open_output", "read_records"]


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) for every non-empty line of a JSONL file; `-` is stdin."""
    with ExitStack() as stack:
        if str(path) == "-":
            lines = sys.stdin
        else:
            try:
                lines = stack.enter_context(path.open(encoding="utf-8"))
            except OSError as error:
                raise DataError(f"Cannot read {path}: {error.strerror}.") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row: object = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{path} line {number} is not JSON ({error.msg}): "
                    "the file must hold one JSON object a line."
                ) from error
            if not isinstance(row, dict):
                raise DataError(
                    f"{path} line {number} is {type(row).__name__}, not a JSON object with fields."
                )
            yield number, cast(dict[str, Any], row)


def field_of(row: dict[str, Any], name: str, where: str, flag: str) -> Any:
    """The field `name` of `row`; a missing one is refused with the fields there are."""
    if name not in row:
        present = ", ".join(sorted(row)) or "none"
        raise DataError(f"{where} has no field '{name}' (it has {present}): name it with {flag}.")
    return row[name]


def open_output(path: Path | None, stack: ExitStack) -> TextIO:
    """Open `path` for writing until `stack` closes; None is stdout."""
    if path is None:
        return sys.stdout
    try:
        return stack.enter_context(path.open("w", encoding="utf-8"))
    except OSError as error:
        raise DataError(f"Cannot write {path}: {error.strerror}.") from error
