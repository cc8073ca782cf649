"""What a symptom reads and what it says: the metrics of a run so far, and `Seen`.

Owns smoothing and what counts as a change beyond noise: first values, latest values, best moving
average. Keeps a fixed amount per metric, however
long the run. Knows no metric by name and no threshold on one.
"""

import math
import statistics
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

__all__ = ["FEW", "MANY", "SOME", "Change", "History", "RunFacts", "Seen", "Series", "Window"]

FEW, SOME, MANY = 5, 10, 20
"""Logs that must agree: for what no healthy run does, for averages, for slow trends."""

WINDOW = SOME
"""Logs in a moving average: one batch of rollouts is noise, ten tell something."""
EVAL_WINDOW = 3
"""The same for `eval_…` metrics: they come rarely and each averages a whole held-out set."""
KEPT = MANY
BLOCK, BLOCKS = 10, 5
"""Logs in a block and blocks in a moving average: the second scale, for slow drifts."""
Z, Z_BEST = 4.0, 5.0
"""Standard errors a change from the start, and one from the best, must exceed. Every log is another
chance for a false alarm, and the highest of many windows is high by luck as well. At 4 and 4, some
of 60 simulated healthy runs of 600 logs raised one (tests/test_train_health.py, `noisy_run`)."""
LEAST_CHANGE = 0.02
"""And the share of the level it must exceed: a tiny drift of a quiet metric is none."""

MEMORY = 50
"""Logs over which scatter is averaged: a spike is forgotten, the noise of a batch is not."""
LARGEST = 1e60
"""Values are clamped to this: sums and squares of a diverging run must not overflow."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the watch must know of a run beside its metrics."""

    method: str
    learning_rate: float = 0.0
    max_completion_length: int | None = None
    """In tokens; None where nothing is generated."""
    beta: float = 0.0
    """Weight of the KL penalty."""
    epsilon: float = 0.2
    """Clip range of the probability ratio."""
    reward_names: tuple[str, ...] = ()
    reward_weights: tuple[float, ...] = ()
    temperature: float = 1.0
    max_steps: int = 0
    """0 or less where the length of the run is unknown."""
    tags_prefilled: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """A symptom that is present now."""

    why: str
    stop: bool
    since: int
    """The step at which it began, as far as the metrics tell."""


@dataclass(frozen=True, slots=True)
class Window:
    """The mean of some consecutive logs of one metric."""

    mean: float
    error: float
    """Standard error of the mean, from differences between neighbours, since a trend is no noise:
    those of the window, or the usual ones where they are larger."""
    since: int
    """Step of its first log."""
    until: int


@dataclass(frozen=True, slots=True)
class Change:
    """A difference between two windows that is beyond noise."""

    by: float
    """Positive, whatever the direction."""
    before: Window
    after: Window
    since: int
    """The step after which it began."""


@dataclass(slots=True)
class Series:
    """One metric; `add` takes finite numbers in the order they were logged.

    Changes are looked for at two scales: in windows of single logs, and, once a run is long, in
    windows of blocks of logs, which see slow drifts in noisy metrics.
    """

    window: int = WINDOW
    block: int = BLOCK
    """Logs in a block; 0 for a series of blocks itself."""
    count: int = 0
    first: list[float] = field(default_factory=list)
    start: Window | None = None
    """The first full window."""
    highest: Window | None = None
    lowest: Window | None = None
    peak_until: int = 0
    """The last step at which the moving average was at its highest, to one standard error."""
    trough_until: int = 0
    """The same for its lowest."""
    least: float = math.inf
    """The smallest single value so far."""
    recent: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=KEPT))
    blocks: "Series | None" = None
    part: list[float] = field(default_factory=list)
    """The block that is being filled."""
    variance: float = 0.0
    """Of single values around the trend, a moving average: ten equal logs by luck prove nothing."""

    def add(self, step: int, value: float) -> None:
        if self.recent:
            square = (value - self.recent[-1][1]) ** 2 / 2
            self.variance += (square - self.variance) / min(self.count, MEMORY)
        self.count += 1
        self.recent.append((step, value))
        self.least = min(self.least, value)
        if len(self.first) < self.window:
            self.first.append(value)
        if self.block:
            self._fill_block(step, value)
        now = self.now
        if now is None:
            return
        self.start = self.start or now
        if self.highest is None or now.mean > self.highest.mean:
            self.highest = now
        if self.lowest is None or now.mean < self.lowest.mean:
            self.lowest = now
        if self.highest.mean - now.mean <= math.hypot(self.highest.error, now.error):
            self.peak_until = step
        if now.mean - self.lowest.mean <= math.hypot(self.lowest.error, now.error):
            self.trough_until = step

    @property
    def now(self) -> Window | None:
        """The latest full window."""
        return self.last(self.window)

    def last(self, logs: int) -> Window | None:
        """The latest `logs` values as a window; None where there are fewer."""
        if len(self.recent) < logs:
            return None
        part = [self.recent[i] for i in range(-logs, 0)]
        values = [value for _, value in part]
        here = sum((b - a) ** 2 for a, b in pairwise(values)) / (2 * max(1, logs - 1))
        error = math.sqrt(max(here, self.variance) / logs)
        return Window(sum(values) / logs, error, part[0][0], part[-1][0])

    def values(self, logs: int) -> list[float] | None:
        """The latest `logs` values; None where there are fewer."""
        kept = [value for _, value in self.recent]
        return kept[-logs:] if len(kept) >= logs else None

    def middle(self, logs: int, before: int = 0) -> float | None:
        """Median of `logs` values, those `before` the latest ones left out: blind to a spike."""
        kept = [value for _, value in self.recent]
        part = kept[-logs - before : len(kept) - before]
        return statistics.median(part) if len(part) == logs else None

    def rose(self) -> Change | None:
        """The latest window lies above the first."""
        change = _change(self.start, self.now, Z, self.start.until if self.start else 0)
        return (change if self._apart else None) or (self.blocks and self.blocks.rose())

    def fell(self) -> Change | None:
        """The latest window lies below the highest one."""
        change = _change(self.now, self.highest, Z_BEST, self.peak_until)
        return (change if self._apart else None) or (self.blocks and self.blocks.fell())

    def rebounded(self) -> Change | None:
        """The latest window lies above the lowest one."""
        change = _change(self.lowest, self.now, Z_BEST, self.trough_until)
        return (change if self._apart else None) or (self.blocks and self.blocks.rebounded())

    @property
    def _apart(self) -> bool:
        """Whether there are enough logs for two windows that share none."""
        return self.count >= 2 * self.window

    def forget_recent(self) -> None:
        """Windows fill anew; the start and the best stay."""
        self.recent.clear()
        self.part.clear()
        if self.blocks:
            self.blocks.forget_recent()

    def _fill_block(self, step: int, value: float) -> None:
        self.part.append(value)
        if len(self.part) == self.block:
            self.blocks = self.blocks or Series(BLOCKS, 0)
            self.blocks.add(step, sum(self.part) / self.block)
            self.part.clear()


def _change(low: Window | None, high: Window | None, z: float, since: int) -> Change | None:
    if low is None or high is None:
        return None
    by = high.mean - low.mean
    least = LEAST_CHANGE * max(abs(high.mean), abs(low.mean))
    if by <= max(z * math.hypot(high.error, low.error), least):
        return None
    earlier, later = sorted((low, high), key=lambda window: window.until)
    return Change(by, earlier, later, since)


class History:
    """All metrics of a run so far."""

    def __init__(self, facts: RunFacts) -> None:
        self.facts = facts
        self.step = 0
        self.latest: dict[str, float] = {}
        """The row logged last, non-finite values included."""
        self._series: dict[str, Series] = {}
        self._not_finite: Counter[str] = Counter()

    def add(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Take one log; None counts as not a number."""
        self.step = step
        self.latest = {k: math.nan if v is None else float(v) for k, v in metrics.items()}
        for name, value in self.latest.items():
            if not math.isfinite(value):
                self._not_finite[name] += 1
            else:
                self._not_finite[name] = 0
                self._of(name).add(step, max(-LARGEST, min(value, LARGEST)))

    def forget_recent(self) -> None:
        """After a resume with changed keys, what came before must not count against it: windows
        fill anew, while the start and the best stay for comparison."""
        for series in self._series.values():
            series.forget_recent()

    def get(self, *names: str) -> Series:
        """The first of `names` that was ever logged; an empty series where none was."""
        return next((self._series[name] for name in names if name in self._series), Series())

    def last(self, logs: int, *names: str) -> Window | None:
        """Shorthand for `get(*names).last(logs)`."""
        return self.get(*names).last(logs)

    def not_finite(self, name: str) -> int:
        """How many times in a row `name` was logged as NaN, infinite or None, up to now."""
        return self._not_finite[name]

    def has(self, *names: str) -> bool:
        """Whether every one of `names` was ever logged."""
        return all(name in self._series for name in names)

    @property
    def share_done(self) -> float:
        """How much of the run is over, 0 where its length is unknown."""
        return self.step / self.facts.max_steps if self.facts.max_steps > 0 else 0.0

    def weighted(self, names: Iterable[str]) -> list[str]:
        """Those of `names` that are rewards with a weight other than 0."""
        weights = dict(zip(self.facts.reward_names, self.facts.reward_weights, strict=False))
        return [n for n in names if n in self.facts.reward_names and weights.get(n, 1.0)]

    def _of(self, name: str) -> Series:
        if name not in self._series:
            held_out = name.startswith("eval_")
            self._series[name] = Series(EVAL_WINDOW, 0) if held_out else Series()
        return self._series[name]
