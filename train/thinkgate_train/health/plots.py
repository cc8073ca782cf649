"""`plots.html`: every metric of a run with how it should behave, what the health watch found, and
the rollouts to read; one file that fetches nothing.

Owns which curves and rollouts are shown. Rollouts are text from strangers: all of it is escaped,
and the page's policy lets no script run but its own.
"""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinkgate.checkpoint import HealthFinding, HealthRecord, now, write_atomic
from thinkgate_train.health.metric_guide import GROUPS, Guide, guide

if TYPE_CHECKING:
    from markupsafe import Markup

    from thinkgate.charts import Mark

__all__ = ["write_plots"]

MOST_POINTS = 400
"""Points of a curve; of a longer run means over neighbours are drawn."""
MOST_STEPS, MOST_ROLLOUTS = 25, 200
"""Rollouts on the page; `completions.jsonl` has more."""
LONGEST_TEXT = 4000
"""Characters of a prompt, thought or answer that are shown."""
MOST_BANDS = 6
"""Different rewards offered as filter before they are cut into ranges."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric as the template shows it."""

    name: str
    guide: Guide
    chart: "Markup"


@dataclass(frozen=True, slots=True)
class Section:
    name: str
    figures: Sequence[Figure]
    still: Sequence[str]
    """Metrics that kept one value, in words."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion as the template shows it."""

    row: Mapping[str, Any]
    band: int


@dataclass(slots=True)
class Step:
    """The rollouts of one step, those of one prompt together."""

    number: int
    groups: dict[str, list[Rollout]] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        """Mean reward of the rollouts on the page."""
        rewards = [r.row.get("reward") for group in self.groups.values() for r in group]
        known = [reward for reward in rewards if reward is not None]
        return sum(known) / len(known) if known else None


def write_plots(
    path: Path,
    *,
    title: str,
    metrics: Sequence[Mapping[str, Any]],
    completions: Sequence[Mapping[str, Any]],
    health: HealthRecord | None,
    method: str,
) -> None:
    """Write the page. Rows are those of `metrics.jsonl` and `completions.jsonl`; both may be empty,
    and a metric may be missing from any row. `health` None: nothing was watched."""
    findings = health.findings if health else ()
    bands = _bands([row.get("reward") for row in completions])
    shown = [Rollout(row, _band(row.get("reward"), bands)) for row in _chosen(completions)]
    page = {
        "title": title,
        "method": method,
        "health": health,
        "findings": findings,
        "last_step": max((row.get("step", 0) for row in metrics), default=0),
        "headline": _headline(metrics),
        "sections": _sections(metrics, findings),
        "steps": _steps(shown),
        "bands": [(i, text) for i, (_, text) in enumerate(bands)],
        "left_out": len(completions) - len(shown),
        "created": now(),
    }
    write_atomic(path, _render(page))


def _render(page: Mapping[str, Any]) -> str:
    import jinja2

    from thinkgate.charts import CHART_SCRIPT, CHART_STYLE

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clip": _clip, "figure": _figure, "plain": _plain}
    script = (Path(__file__).parent / "plots.js").read_text(encoding="utf-8") + CHART_SCRIPT
    digest = hashlib.sha256(script.encode()).digest()
    return environment.get_template("plots.html.jinja").render(
        **page,
        chart_style=CHART_STYLE,
        script=script,
        script_hash=base64.b64encode(digest).decode(),
    )


def _sections(
    metrics: Sequence[Mapping[str, Any]], findings: Sequence[HealthFinding]
) -> list[Section]:
    from thinkgate.charts import Curve, draw_curve

    marks = _marks(findings)
    figures: dict[str, list[Figure]] = {group: [] for group in GROUPS}
    still: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name, points in _series(metrics).items():
        known = guide(name)
        if known is None:
            continue
        values = {value for _, value in points}
        if len(values) == 1:
            still[known.group].append(f"{known.title} ({name}): {_figure(values.pop())}")
            continue
        chart = draw_curve(Curve(known.title, _thinned(points), known.percent, marks))
        figures[known.group].append(Figure(name, known, chart))
    return [Section(g, figures[g], still[g]) for g in GROUPS if figures[g] or still[g]]


def _marks(findings: Sequence[HealthFinding]) -> "list[Mark]":
    from thinkgate.charts import Mark

    steps: dict[int, list[tuple[int, HealthFinding]]] = {}
    for number, finding in enumerate(findings, 1):
        steps.setdefault(finding.step, []).append((number, finding))
    return [
        Mark(
            step,
            ",".join(str(number) for number, _ in found),
            f"step {step}: {', '.join(_plain(f.symptom) for _, f in found)}",
            any(f.stop for _, f in found),
        )
        for step, found in steps.items()
    ]


def _series(metrics: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Each metric's (step, value) pairs, finite ones only, in the guide's order of importance."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in metrics:
        for name, value in row.items():
            if isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, []).append((row.get("step", 0), value))
    first = ("reward", "accuracy", "loss", "kl", "format", "thinking_tokens")
    return {n: found[n] for n in (*[f for f in first if f in found], *found) if n in found}


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    size = math.ceil(len(points) / MOST_POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], sum(v for _, v in part) / len(part)) for part in parts]


def _headline(metrics: Sequence[Mapping[str, Any]]) -> tuple[Guide, float, float] | None:
    """The number the run is about, and its first and last values, each a mean over a tenth of the
    run."""
    series = _series(metrics)
    for name in ("accuracy", "reward", "rewards/accuracies", "loss"):
        values = [value for _, value in series.get(name, [])]
        known = guide(name)
        if len(values) > 1 and known is not None:
            part = max(1, len(values) // 10)
            return known, sum(values[:part]) / part, sum(values[-part:]) / part
    return None


def _chosen(completions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """All rows of some steps, spread evenly from the first to the last."""
    steps = sorted({row.get("step", 0) for row in completions})
    last = len(steps) - 1
    picked = {steps[round(i * last / (MOST_STEPS - 1))] for i in range(MOST_STEPS)} if steps else ()
    per_step = max(1, MOST_ROLLOUTS // max(1, len(picked)))
    taken: dict[float, int] = {}
    rows: list[Mapping[str, Any]] = []
    for row in completions:
        step = row.get("step", 0)
        taken[step] = taken.get(step, 0) + 1
        if step in picked and taken[step] <= per_step:
            rows.append(row)
    return rows


def _steps(rollouts: Sequence[Rollout]) -> list[Step]:
    steps: dict[int, Step] = {}
    for rollout in rollouts:
        step = steps.setdefault(rollout.row.get("step", 0), Step(rollout.row.get("step", 0)))
        step.groups.setdefault(str(rollout.row.get("prompt", "")), []).append(rollout)
    return [steps[number] for number in sorted(steps)]


def _bands(rewards: Sequence[float | None]) -> list[tuple[float, str]]:
    """Upper ends and names of the reward ranges to choose from: the values themselves where they
    are few, quarters of the rollouts where they are many."""
    values = sorted(r for r in rewards if r is not None and math.isfinite(r))
    distinct = sorted(set(values))
    if len(distinct) <= MOST_BANDS:
        return [(value, f"reward {_figure(value)}") for value in distinct]
    ends = sorted({values[(len(values) - 1) * quarter // 4] for quarter in (1, 2, 3, 4)})
    starts = [values[0], *ends]
    return [
        (end, f"reward {_figure(start)} to {_figure(end)}")
        for start, end in zip(starts, ends, strict=False)
    ]


def _band(reward: float | None, bands: Sequence[tuple[float, str]]) -> int:
    if reward is None:
        return -1
    return next((i for i, (end, _) in enumerate(bands) if reward <= end), -1)


def _clip(text: object) -> str:
    """Texts are cut in the middle: beginnings and ends are what one looks at."""
    text = str(text)
    if len(text) <= LONGEST_TEXT:
        return text
    half = LONGEST_TEXT // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half:,} characters …]\n{text[-half:]}"


def _figure(value: float | None, percent: bool = False) -> str:
    if value is None:
        return "not measured"
    return f"{value:.1%}" if percent else f"{value:.3g}"


def _plain(name: str) -> str:
    return name.replace("_", " ")
