"""How commands talk: one rich console, and progress bars with an ETA."""

import os
import re
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

__all__ = ["Meter", "console", "errors", "printable", "progress", "warn"]

# Of several processes under one launcher (torchrun, accelerate) only the first speaks.
console = Console(highlight=False, quiet=os.environ.get("RANK", "0") != "0")
errors = Console(stderr=True, highlight=False)

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """`text` without what a terminal would obey, or could not show: escapes, lone surrogates."""
    return _CONTROL.sub("", text).encode("utf-8", "replace").decode()


def warn(sentence: str) -> None:
    """Say on stderr what is no mistake, but better known."""
    errors.print(f"thinkgate: warning: {sentence}", soft_wrap=True, markup=False)


class Meter:
    """One running progress bar: `advance` by work done, `note` the number worth watching."""

    def __init__(self, bar: Progress, label: str, total: int | None) -> None:
        self._bar = bar
        self._task = bar.add_task(escape(label), total=total, note="")

    def advance(self, by: int = 1) -> None:
        """Move the bar by `by` units."""
        self._bar.advance(self._task, by)

    def set(self, completed: int, total: int | None = None) -> None:
        """Move the bar to `completed`; a new `total` replaces the old one."""
        self._bar.update(self._task, completed=completed, total=total)

    def note(self, text: str) -> None:
        """Show `text` at the end of the bar."""
        self._bar.update(self._task, note=text)


@contextmanager
def progress(label: str, total: int | None = None) -> Generator[Meter]:
    """A progress bar with elapsed and remaining time; where output is no terminal, its end only."""
    with Progress(
        TextColumn("  {task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=8),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=7)),
        TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
        TextColumn("eta"),
        TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
        # Where the line is too short for all, the note is what gives way.
        TextColumn("[dim]{task.fields[note]}", table_column=Column(no_wrap=True, ratio=1)),
        console=console,
        refresh_per_second=4,
        expand=True,
    ) as bar:
        yield Meter(bar, label, total)
