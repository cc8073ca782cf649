"""The report: everything known about a candidate on one self-contained page.

Owns what is shown and in which order; results come ready from `results.py`, words from
`wording.py`. Prompts and completions are text from strangers: all of it is escaped, and the page's
policy lets no script run but its own.
"""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thinkgate.answers import Verdict
from thinkgate.charts import CHART_SCRIPT, CHART_STYLE, Curve, draw_curve, draw_interval
from thinkgate.checkpoint import RuleResult, now, write_atomic
from thinkgate.records import read_records as read_rows
from thinkgate_evals.figures import draw_lengths, draw_problems
from thinkgate_evals.records import Record
from thinkgate_evals.results import Result, Results
from thinkgate_evals.second_grader import disagreements
from thinkgate_evals.wording import (
    COUNTED,
    agreement_rows,
    asked_text,
    comparison_text,
    estimate_text,
    points,
    reasons_text,
    saved_text,
    share_text,
    summary_rows,
)

__all__ = ["write_report"]

CURVES = (
    ("reward", "Mean reward", False),
    ("accuracy", "Share of correct rollouts", True),
    ("thinking_tokens", "Mean thinking length in tokens", False),
    ("step_share", "Share of step-by-step answers", True),
)
TRACES_PER_GROUP = 12
MOST_DISPUTES = 50
LONGEST_TRACE = 6000
"""Characters of a reasoning or answer that are shown."""

LONGEST_LINE = 300
"""Characters of what stands in a line or in a cell of a table."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One sample as the template shows it, with the base's where there is one."""

    group: str
    candidate: Record
    base: Record | None


@dataclass(frozen=True, slots=True)
class Section:
    """One suite as the template shows it."""

    result: Result
    rows: Sequence[tuple[str, Sequence[str]]]
    lengths: str | None
    problems: str | None
    agreement: Sequence[Sequence[str]] | None
    traces: Sequence[Trace]
    disputes: Sequence[Record]
    """Answers on which the graders disagree."""

    groups: Mapping[str, int]
    """Verdicts and changes of verdict, with how many samples there are of each."""


def write_report(path: Path, results: Results) -> None:
    """Write the page; DataError when the candidate's training log cannot be read."""
    write_atomic(path, _render(results))


def _render(results: Results) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "share": share_text,
        "mark": _mark,
        "estimate": estimate_text,
        "asked": asked_text,
        "clip": _clip,
        "points": points,
        "comparison": comparison_text,
        "saved": saved_text,
        "reasons": reasons_text,
    }
    script = (Path(__file__).parent / "report.js").read_text(encoding="utf-8") + CHART_SCRIPT
    digest = hashlib.sha256(script.encode()).digest()
    curves = _curves(results.training_log) if results.training_log else []
    return environment.get_template("report.html.jinja").render(
        results=results,
        created=now(),
        script=script,
        short=LONGEST_LINE,
        script_hash=base64.b64encode(digest).decode(),
        chart_style=CHART_STYLE,
        charts=[(curve.title, draw_curve(curve)) for curve in curves],
        sections=[_section(result) for result in results.suites],
    )


def _section(result: Result) -> Section:
    runs = [run for run in (result.base, result.candidate) if run is not None]
    traces = _traces(result)
    counts: dict[str, int] = {}
    for trace in traces:
        counts[trace.group] = counts.get(trace.group, 0) + 1
    pair = result.comparison
    return Section(
        result=result,
        rows=summary_rows([run.summary for run in runs]),
        lengths=draw_lengths([(run.name, run.records) for run in runs]),
        problems=draw_problems(pair) if pair and pair.pairs else None,
        agreement=agreement_rows(pair) if pair and pair.pairs else None,
        traces=[
            trace
            for group in sorted(counts, key=_GROUPS.index)
            for trace in [t for t in traces if t.group == group][:TRACES_PER_GROUP]
        ],
        disputes=disagreements(result.candidate.records)[:MOST_DISPUTES],
        groups={group: counts[group] for group in sorted(counts, key=_GROUPS.index)},
    )


def _traces(result: Result) -> list[Trace]:
    theirs = {record.key: record for record in result.base.records} if result.base else {}
    readable = [r for r in result.candidate.records if r.status is not None or r.error]
    return [Trace(_group(r, theirs.get(r.key)), r, theirs.get(r.key)) for r in readable]


_GROUPS = ["wrong → correct", "correct → wrong", *(verdict.value for verdict in Verdict)]


def _group(record: Record, base: Record | None) -> str:
    if base is not None and record.graded and base.graded:
        correct, before = (r.verdict is Verdict.CORRECT for r in (record, base))
        if correct != before:
            return _GROUPS[0] if correct else _GROUPS[1]
    return record.verdict.value


def _curves(metrics: Path) -> list[Curve]:
    """What the training log holds of the curves that are shown; keys it lacks are left out."""
    if not metrics.is_file():
        return []
    rows = [row for _, row in read_rows(metrics)]
    curves: list[Curve] = []
    for key, title, percent in CURVES:
        found = [(row["step"], row[key]) for row in rows if _finite(row, "step", key)]
        if len(found) > 1:
            curves.append(Curve(title, found, percent))
    return curves


def _finite(row: Mapping[str, Any], *keys: str) -> bool:
    values = [row.get(key) for key in keys]
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _mark(rule: RuleResult) -> str:
    counted = rule.metric in COUNTED
    if rule.estimate is None or rule.low is None or rule.high is None or counted:
        return ""
    line = 0.0 if rule.rule == "superiority" else rule.threshold
    return draw_interval(rule.low, rule.high, rule.estimate, line)


def _clip(text: str, longest: int = LONGEST_TRACE) -> str:
    if len(text) <= longest:
        return text
    left = len(text) - longest
    return f"{text[:longest]}\n… {left:,} more characters in the records"
