"""What one part of the preflight found, and how it is shown: one line, or all of it."""

from dataclasses import dataclass

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from thinkgate.console import console, printable
from thinkgate.errors import ThinkgateError

__all__ = ["Topic", "clipped", "complain", "percent", "show"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """One part of the preflight."""

    name: str
    summary: str
    """Short enough for one line beside the name."""
    details: tuple[RenderableType, ...] = ()
    """What `--check` shows below it."""
    warnings: tuple[str, ...] = ()
    refusal: ThinkgateError | None = None
    """Why the run would be in vain."""


def show(topic: Topic, *, detailed: bool) -> None:
    """Print a topic; warnings always, details when asked for."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=8, style="bold")
    grid.add_column(overflow="fold")
    grid.add_row(topic.name, Text(topic.summary))
    for detail in topic.details if detailed else ():
        grid.add_row("", Text(detail) if isinstance(detail, str) else detail)
    for warning in topic.warnings:
        grid.add_row("", Text(warning, style="yellow"))
    console.print(Padding(grid, (0, 0, 0, 2)))


def complain(text: str) -> None:
    """Print a warning that belongs to no topic."""
    console.print(Padding(Text(text, style="yellow"), (0, 0, 0, 2)))


def clipped(text: str, longest: int, *, tail: int = 0) -> str:
    """`text` on one line, escaped, at most `longest` characters, the last `tail` of them kept."""
    line = printable(text).replace("\n", "\\n").replace("\t", "\\t")
    if len(line) <= longest:
        return line
    return f"{line[: longest - tail - 1]}…{line[len(line) - tail :]}"


def percent(share: float) -> str:
    """A share as a percentage; what is not none or all is never shown as 0 or 100 %."""
    shown = round(100 * share)
    if 0 < share < 1:
        shown = min(99, max(1, shown))
    return f"{shown}%"
