"""How a streamed reply looks on a terminal.

Owns two ways: live, where the thought is folded away and the answer is rendered as Markdown block
by block; and plain, for pipes and terminals without cursor movement. It asks nobody anything.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.spinner import Spinner
from rich.text import Text

from thinkgate.console import printable
from thinkgate.format import SplitStatus
from thinkgate_clients.reply import (
    AnswerText,
    Event,
    Finished,
    ReasoningText,
    Reply,
    Usage,
)

__all__ = ["Display", "displaying"]

THOUGHT_LINES = 6
"""Of the thought, while it lasts."""


class Display:
    """Plain: the thought dim, the answer bold, as they come."""

    def __init__(self, out: Console) -> None:
        self.out = out
        self._last: type[object] | None = None

    def show(self, event: Event) -> None:
        """One event of a stream."""
        if isinstance(event, Finished):
            self.out.print()
            self._remark(event.reply)
        if isinstance(event, Finished | Usage):
            return
        if self._last is ReasoningText and isinstance(event, AnswerText):
            self.out.print()
        self._last = type(event)
        style = "dim" if self._last is ReasoningText else "bold"
        text = printable(event.text)
        self.out.print(text, style=style, end="", markup=False, emoji=False, soft_wrap=True)

    def _remark(self, reply: Reply) -> None:
        """A line on what cannot be seen from the text."""
        if reply.status is SplitStatus.TRUNCATED:
            self.out.print("[yellow](the thought was cut off: no answer; raise --max-tokens)[/]")
        elif reply.finish_reason == "length":
            self.out.print("[yellow](the answer was cut off; raise --max-tokens)[/]")
        if reply.consensus:
            for answer, count in reply.consensus.votes:
                line = f"  {count} voted for {printable(answer)}"
                self.out.print(line, style="dim", markup=False, emoji=False)


class LiveDisplay(Display):
    """The thought's last lines while it lasts, then one line; the answer as Markdown."""

    def __init__(self, out: Console, live: Live) -> None:
        super().__init__(out)
        self._live = live
        self._began = time.perf_counter()
        self._thought = ""
        self._block = ""
        self._waiting = Spinner("dots", Text("waiting", style="dim"))
        live.update(self._waiting)

    def show(self, event: Event) -> None:
        match event:
            case ReasoningText(text):
                self._thought += printable(text)
                self._live.update(self)
            case AnswerText(text):
                self._fold()
                self._answer(printable(text))
            case Usage():
                pass  # counted at the end
            case Finished(reply):
                self._fold()
                self._live.update("", refresh=True)
                self._print_block(self._block)
                self._remark(reply)
                self._count(reply)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The end of the thought, and how long it has lasted."""
        seconds = time.perf_counter() - self._began
        self._waiting.update(text=Text(f"thinking {seconds:.1f} s", style="dim"))
        width = max(20, options.max_width - 4)
        wrapped = Text(self._thought[-width * THOUGHT_LINES :], style="dim").wrap(console, width)
        lines = [Text("  │ ", style="dim") + line for line in wrapped[-THOUGHT_LINES:]]
        yield Group(self._waiting, *lines)

    def _fold(self) -> None:
        """Put one line in the place of the thought."""
        if self._thought:
            seconds = time.perf_counter() - self._began
            self._live.update("", refresh=True)
            self.out.print(f"[dim]thought for {seconds:.1f} s (/thought shows it)[/]")
            self._thought = ""

    def _answer(self, text: str) -> None:
        """Blocks that are complete are printed for good; the last one is drawn again and again."""
        self._block += text
        while (end := _block_end(self._block)) is not None:
            self._live.update("", refresh=True)
            self._print_block(self._block[:end])
            self._block = self._block[end:]
        self._live.update(Markdown(_tail(self._block, self.out.height)))

    def _print_block(self, block: str) -> None:
        if block.strip():
            self.out.print(Markdown(block.strip("\n")))
            self.out.print()

    def _count(self, reply: Reply) -> None:
        parts = [
            f"{number} {name} tokens"
            for number, name in (
                (reply.reasoning_tokens, "thinking"),
                (reply.answer_tokens, "answer"),
            )
            if number is not None
        ]
        if parts:
            self.out.print(f"[dim]{', '.join(parts)}, {reply.latency_s:.1f} s[/]")


def _block_end(text: str) -> int | None:
    """Where the first complete block ends: at an empty line outside a code fence."""
    fenced, at = False, 0
    for line in text.splitlines(keepends=True):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        at += len(line)
        if not fenced and not line.strip() and text[:at].strip() and line.endswith("\n"):
            return at
    return None


def _tail(block: str, height: int) -> str:
    """As much of a long block as a live display can draw."""
    lines = block.splitlines()
    return "\n".join(lines[-max(5, height - 4) :])


@contextmanager
def displaying(out: Console) -> Iterator[Display]:
    """The way that fits the terminal."""
    if not out.is_terminal or out.is_dumb_terminal:
        yield Display(out)
        return
    with Live(console=out, transient=True, refresh_per_second=12) as live:
        yield LiveDisplay(out, live)
