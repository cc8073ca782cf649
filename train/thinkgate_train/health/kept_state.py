"""The trainer's states on disk: which to go back to when a run has gone wrong.

The trainer keeps only the newest few. What ruins a run is often certain only later, so the best
state is kept beside them, by hard links: it costs no time, and the room of one state at most.
Does not know what is healthy or best; it is told.
"""

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

__all__ = ["KeptState"]

CHECKPOINT, BEST, UNHEALTHY = "checkpoint-", "best-", "unhealthy-"


class KeptState:
    """The states in `folder`, and the best of them. One process of a run owns it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._best = -math.inf
        self._fresh: int | None = None

    def saved(self, step: int, standing: float | None) -> None:
        """The trainer has saved `step`; `standing` says how well the run does, higher is better,
        None when it is too early to say. Other processes may still be writing it."""
        score = -math.inf if standing is None else standing
        if score >= self._best:
            self._best, self._fresh = score, step

    def settle(self) -> None:
        """A new step begins, so what was saved is complete: keep it, if it is the best."""
        step, self._fresh = self._fresh, None
        source = self._folder / f"{CHECKPOINT}{step}"
        if step is None or not source.is_dir():
            return
        for old in self._steps(BEST):
            shutil.rmtree(self._folder / f"{BEST}{old}")
        shutil.copytree(source, self._folder / f"{BEST}{step}", copy_function=_link)

    def go_back(self, before: int) -> int | None:
        """Make the newest state from before step `before`, else the best there is, the newest, and
        return its step. Later ones are set aside. None when there is none."""
        best = max(self._steps(BEST), default=None)
        if best is not None and not (self._folder / f"{CHECKPOINT}{best}").is_dir():
            (self._folder / f"{BEST}{best}").rename(self._folder / f"{CHECKPOINT}{best}")
        steps = list(self._steps(CHECKPOINT))
        scored = best if math.isfinite(self._best) else None
        chosen = max((step for step in steps if step < before), default=scored)
        for step in steps:
            if chosen is None or step > chosen:
                target = self._folder / f"{UNHEALTHY}{step}"
                shutil.rmtree(target, ignore_errors=True)  # of an earlier attempt at that step
                (self._folder / f"{CHECKPOINT}{step}").rename(target)
        return chosen

    def _steps(self, prefix: str) -> Iterator[int]:
        for path in self._folder.glob(f"{prefix}*"):
            if (number := path.name.removeprefix(prefix)).isdigit():
                yield int(number)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
