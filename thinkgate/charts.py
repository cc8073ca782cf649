"""Line charts and interval marks as inline SVG, drawn here because they must be small, follow the
page's light and dark colours, and need no file beside the page. Every text is escaped.

`CHART_STYLE` and `CHART_SCRIPT` go into the page once; the script only shows the value under the
pointer. Knows numbers and labels only; needs markupsafe, which comes with Jinja.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["CHART_SCRIPT", "CHART_STYLE", "Curve", "Mark", "draw_curve", "draw_interval"]

WIDTH, HEIGHT = 480, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 58, 12, 26

CHART_STYLE = """
svg.chart { display: block; width: 100%; height: auto; touch-action: pan-y; }
svg polyline { fill: none; stroke: var(--accent); stroke-linejoin: round; }
svg .raw { stroke-width: 1; opacity: .35; } svg .smooth { stroke-width: 2.5; }
svg .grid { stroke: var(--line); } svg .dot, svg .hover { fill: var(--accent); }
svg .mark { stroke: var(--open); stroke-width: 1.5; stroke-dasharray: 4 3; }
svg .mark.bad { stroke: var(--fail); }
svg text { fill: var(--dim); font: 12px system-ui, sans-serif; }
svg .last { fill: var(--ink); font-weight: 600; } svg .readout { fill: var(--ink); }
svg .number { fill: var(--open); font-weight: 600; } svg .number.bad { fill: var(--fail); }
"""
CHART_SCRIPT = """
for (const chart of document.querySelectorAll("svg.chart")) {
  const points = JSON.parse(chart.dataset.points);
  const dot = chart.querySelector(".hover");
  const readout = chart.querySelector(".readout");
  const show = (x, y, text) => {
    dot.setAttribute("cx", x);
    dot.setAttribute("cy", y);
    readout.textContent = text;
  };
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
    const near = points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
    show(...near);
  });
  chart.addEventListener("pointerleave", () => show(-9, -9, ""));
}
"""


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line at a step."""

    step: float
    label: str
    """One or two characters at its top."""
    title: str
    bad: bool = False


@dataclass(frozen=True, slots=True)
class Curve:
    """One number over the steps of a run."""

    title: str
    points: Sequence[tuple[float, float]]
    percent: bool = False
    marks: Sequence[Mark] = ()


def draw_curve(curve: Curve) -> Markup:
    """The points as a thin line, their moving average as a bold one, its end in figures."""
    steps, values = (list(column) for column in zip(*curve.points, strict=True))
    window = max(1, len(values) // 10)
    smooth = _moving_average(values, window)
    ticks = _ticks(min(values), max(values), curve.percent)
    x_of = _scale(steps[0], steps[-1], LEFT, WIDTH - RIGHT)
    y_of = _scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP)

    def line(ys: Sequence[float], kind: str) -> str:
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in zip(steps, ys, strict=True))
        return f'<polyline class="{kind}" points="{path}"/>'

    grid = "".join(
        f'<path class="grid" d="M{LEFT} {y_of(t):.1f}H{WIDTH - RIGHT}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y_of(t) + 4:.1f}" text-anchor="end">'
        f"{_figure(t, curve.percent)}</text>"
        for t in ticks
    )
    feet = "".join(
        f'<text class="tick" x="{x_of(s):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">'
        f"{text}</text>"
        for s, anchor, text in (
            (steps[0], "start", f"step {steps[0]:g}"),
            (steps[-1], "end", f"{steps[-1]:g}"),
        )
    )
    x, y = x_of(steps[-1]), y_of(smooth[-1])
    end = (
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        f'<text class="last" x="{x + 8:.1f}" y="{y + 4:.1f}">'
        f"{_figure(smooth[-1], curve.percent)}</text>"
    )
    data = [
        [round(x_of(s), 1), round(y_of(a), 1), f"step {s:g}: {_figure(a, curve.percent)}"]
        for s, a in zip(steps, smooth, strict=True)
    ]
    first, last = _figure(smooth[0], curve.percent), _figure(smooth[-1], curve.percent)
    label = escape(f"{curve.title}, step {steps[0]:g} to {steps[-1]:g}: from {first} to {last}")
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}" '
        f'data-points="{escape(json.dumps(data))}">{grid}{feet}{_marks(curve, steps, x_of)}'
        f"{line(values, 'raw')}"
        f'{line(smooth, "smooth")}{end}<circle class="hover" r="4" cx="-9" cy="-9"/>'
        f'<text class="readout" x="{WIDTH - RIGHT}" y="{TOP}" text-anchor="end"></text></svg>'
    )


def _marks(curve: Curve, steps: Sequence[float], x_of: Callable[[float], float]) -> str:
    inside = [mark for mark in curve.marks if steps[0] <= mark.step <= steps[-1]]
    return "".join(
        f'<g><title>{escape(mark.title)}</title><path class="mark{" bad" if mark.bad else ""}" '
        f'd="M{x_of(mark.step):.1f} {TOP}V{HEIGHT - BOTTOM}"/><text class="number'
        f'{" bad" if mark.bad else ""}" x="{x_of(mark.step):.1f}" y="{TOP - 2}" '
        f'text-anchor="middle">{escape(mark.label)}</text></g>'
        for mark in inside
    )


def draw_interval(low: float, high: float, estimate: float, threshold: float) -> Markup:
    """An interval with its estimate, against the line it must clear."""
    values = (low, high, estimate, threshold)
    margin = (max(values) - min(values)) * 0.12 or 0.01
    x_of = _scale(min(values) - margin, max(values) + margin, 0, 120)
    return Markup(
        '<svg class="interval" viewBox="0 0 120 20" aria-hidden="true">'
        f'<line class="bar" x1="{x_of(low):.1f}" x2="{x_of(high):.1f}" y1="10" y2="10"/>'
        f'<path class="limit" d="M{x_of(threshold):.1f} 1V19"/>'
        f'<circle class="dot" cx="{x_of(estimate):.1f}" cy="10" r="3.5"/></svg>'
    )


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _moving_average(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values at each step, of fewer at the start."""
    result: list[float] = []
    for index in range(len(values)):
        part = values[max(0, index - window + 1) : index + 1]
        result.append(sum(part) / len(part))
    return result


def _ticks(low: float, high: float, percent: bool) -> list[float]:
    """Three to six round values that enclose the data; shares stay within 0 and 1."""
    if high - low < 1e-9:
        low, high = low - 0.05 * (abs(low) or 1), high + 0.05 * (abs(high) or 1)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [round(index * step, 10) for index in range(first, last + 1)]
    return [t for t in ticks if -1e-9 <= t <= 1 + 1e-9] if percent else ticks


def _figure(value: float, percent: bool) -> str:
    if percent:
        return f"{value:.0%}" if abs(value * 100 - round(value * 100)) < 0.05 else f"{value:.1%}"
    for least, size, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
