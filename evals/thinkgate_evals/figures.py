"""The drawings about an evaluation: accuracy against thinking length, and every problem at once.

Inline SVG that follows the page's colours; knows records and pairs, nothing of the page. What
training draws over its steps is in `thinkgate.charts`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from markupsafe import Markup, escape

from thinkgate_evals.comparison import Comparison, Pair
from thinkgate_evals.metrics import SHARES, interval_of
from thinkgate_evals.records import Record
from thinkgate_evals.stats import Interval

__all__ = ["Bin", "bins_by_length", "draw_lengths", "draw_problems"]

WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 16, 44
MOST_BINS = 8
LEAST_IN_BIN = 20
"""Samples a bin has at least; fewer say nothing about accuracy."""

SQUARE = 11
"""Side of a problem's square, gap included."""

MOST_SQUARES = 4000
LONGEST_ROW = 56


@dataclass(frozen=True, slots=True)
class Bin:
    """The graded samples whose thoughts have between `low` and `high` tokens."""

    low: float
    high: float
    middle: float
    """The median length inside."""

    samples: int
    accuracy: Interval


def bins_by_length(records: Sequence[Record]) -> list[Bin]:
    """About equally many samples in each bin; samples of one length are never in two.

    Empty where lengths are not known, or where there are too few samples for two bins.
    """
    known = [
        (r.reasoning_tokens, r) for r in records if r.graded and r.reasoning_tokens is not None
    ]
    known.sort(key=lambda pair: pair[0])
    size = max(LEAST_IN_BIN, math.ceil(len(known) / MOST_BINS))
    cuts = [0]
    for index in range(1, len(known)):
        new_length = known[index][0] != known[index - 1][0]
        if new_length and index - cuts[-1] >= size and len(known) - index >= LEAST_IN_BIN:
            cuts.append(index)
    if len(known) < 2 * LEAST_IN_BIN:
        return []
    return [_bin(known[start:end]) for start, end in pairwise([*cuts, len(known)])]


def _bin(inside: Sequence[tuple[int, Record]]) -> Bin:
    accuracy = interval_of([record for _, record in inside], SHARES["accuracy"])
    assert accuracy is not None  # all are graded
    lengths = [tokens for tokens, _ in inside]
    return Bin(lengths[0], lengths[-1], median(lengths), len(inside), accuracy)


def draw_lengths(runs: Sequence[tuple[str, Sequence[Record]]]) -> Markup | None:
    """Accuracy in each bin with its interval, one series for each (name, records); None where
    nothing has two bins."""
    series = [(name, bins) for name, records in runs if (bins := bins_by_length(records))]
    if all(len(bins) < 2 for _, bins in series):
        return None
    lengths = [bin.middle for _, bins in series for bin in bins]
    # Thoughts differ by orders of magnitude; +1 because there may be empty ones.
    low, high = (math.log(edge + 1) for edge in (min(lengths), max(lengths)))
    span = (high - low) or 1.0
    inner = WIDTH - LEFT - RIGHT - 24

    def x_of(tokens: float) -> float:
        return LEFT + 12 + (math.log(tokens + 1) - low) / span * inner

    def y_of(share: float) -> float:
        return TOP + (1 - share) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<path class="grid" d="M{LEFT} {y_of(share):.1f}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 6}" y="{y_of(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    parts += [
        f'<text x="{x_of(tokens):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">'
        f"{tokens:,g}</text>"
        for tokens in _ticks(min(lengths), max(lengths))
    ]
    parts.append(
        f'<text x="{(WIDTH + LEFT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
        "thinking tokens</text>"
    )
    said: list[str] = []
    for index, (name, bins) in enumerate(series):
        total = sum(b.samples for b in bins)
        kind = "ours" if index == len(series) - 1 else "theirs"
        dots = [(x_of(b.middle), y_of(b.accuracy.estimate), b) for b in bins]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in dots)
        parts.append(f'<polyline class="{kind}" points="{line}"/>')
        for x, y, b in dots:
            radius = 2 + 7 * math.sqrt(b.samples / total)
            title = escape(f"{name}, {_range(b)} tokens: {_share(b.accuracy)}, {b.samples} samples")
            parts.append(
                f'<g class="{kind}"><title>{title}</title>'
                f'<path d="M{x:.1f} {y_of(b.accuracy.low):.1f}V{y_of(b.accuracy.high):.1f}"/>'
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/></g>'
            )
        ends = f"{_share(bins[0].accuracy)} at {_range(bins[0])}"
        said.append(f"{name}: {ends}, {_share(bins[-1].accuracy)} at {_range(bins[-1])} tokens")
    label = escape(f"Accuracy against thinking length; {'; '.join(said)}")
    return Markup(
        f'<svg class="lengths" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def draw_problems(pair: Comparison) -> Markup:
    """One square for each problem, wins first, then losses, then both right, then both wrong; a
    paler one where several answers disagree among themselves."""
    per_row = min(LONGEST_ROW, max(20, math.ceil(math.sqrt(3 * len(pair.pairs)))))
    order = {"won": 0, "lost": 1, "right": 2, "wrong": 3}
    cells = [(_kind(p.difference, p.candidate), p) for p in pair.pairs[:MOST_SQUARES]]
    cells.sort(key=lambda cell: (order[cell[0]], -abs(cell[1].difference)))
    squares = "".join(
        f'<rect class="{kind}" x="{SQUARE * (i % per_row)}" y="{SQUARE * (i // per_row)}" '
        f'width="{SQUARE - 2}" height="{SQUARE - 2}" fill-opacity="{_certainty(kind, p):.2f}" '
        f'data-problem="{escape(p.problem_id)}"><title>{escape(_title(p))}</title></rect>'
        for i, (kind, p) in enumerate(cells)
    )
    rows = math.ceil(len(cells) / per_row)
    both, ours, theirs, neither = pair.agreement()
    label = (
        f"{len(cells)} problems: {both} both right, {ours} only the candidate, {theirs} only the "
        f"base, {neither} neither"
    )
    return Markup(
        f'<svg class="problems" viewBox="0 0 {SQUARE * per_row} {SQUARE * rows}" role="img" '
        f'aria-label="{label}">{squares}</svg>'
    )


def _kind(difference: float, candidate: tuple[int, int]) -> str:
    if difference:
        return "won" if difference > 0 else "lost"
    return "right" if candidate[0] * 2 >= candidate[1] else "wrong"


def _certainty(kind: str, pair: Pair) -> float:
    if kind in ("won", "lost"):
        return 0.35 + 0.65 * abs(pair.difference)
    share = pair.candidate[0] / pair.candidate[1]
    return 0.35 + 0.65 * abs(2 * share - 1)


def _title(pair: Pair) -> str:
    (ours, n), (theirs, m) = pair.candidate, pair.base
    return f"problem {pair.problem_id}: base {theirs} of {m} right, candidate {ours} of {n}"


def _ticks(low: float, high: float) -> list[int]:
    """Round numbers of tokens inside the data: 1, 2, 5, 10 … thinned to six at most."""
    found = [m * 10**e for e in range(7) for m in (1, 2, 5) if low <= m * 10**e <= high]
    if len(found) < 2:
        found = sorted({round(low), round(high)})
    return found[:: math.ceil(len(found) / 6)]


def _range(b: Bin) -> str:
    return f"{b.low:,.0f}" if b.low == b.high else f"{b.low:,.0f} to {b.high:,.0f}"


def _share(interval: Interval) -> str:
    return f"{interval.estimate:.0%}"
