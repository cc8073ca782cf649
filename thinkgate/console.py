"""How commands talk: one rich console, and progress bars with an ETA."""

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

__all__ = ["Meter", "console", "errors", "printable", "progress"]

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """`text` without what a terminal would obey, or could not show: escapes, lone surrogates."""
    return _CONTROL.sub("", text).encode("utf-8", "replace").decode()


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
        TextColumn("  {task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=console,
        refresh_per_second=4,
    ) as bar:
        yield Meter(bar, label, total)
