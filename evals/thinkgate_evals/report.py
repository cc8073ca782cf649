"""The report: everything known about a candidate on one self-contained page, and `report.json`.

Owns what is shown and in which order; numbers come from `metrics.py`, the verdict from `gate.py`.
Prompts and completions are text from strangers: all of it is escaped, and the page's policy lets
no script run but its own.
"""

import base64
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thinkgate.answers import Verdict
from thinkgate.checkpoint import META, Decision, RuleResult, now, write_atomic
from thinkgate.errors import DataError
from thinkgate.records import read_records as read_rows
from thinkgate_evals.charts import Curve, draw_curve, draw_interval
from thinkgate_evals.measure import Measurement, records_path
from thinkgate_evals.metrics import Spread, Summary, compare, summarise
from thinkgate_evals.records import Record, read_records
from thinkgate_evals.stats import Interval

__all__ = [
    "asked_text",
    "estimate_text",
    "record_summaries",
    "write_measurement_report",
    "write_report",
]

CURVES = (
    ("reward", "Mean reward", False),
    ("accuracy", "Share of correct rollouts", True),
    ("thinking_tokens", "Mean thinking length in tokens", False),
    ("step_share", "Share of step-by-step answers", True),
)
SHARE_NAMES = {
    "accuracy": "Accuracy",
    "step_share": "Step-by-step answers",
    "format_rate": "Closed thought, then answer",
    "truncation_rate": "Cut off while thinking",
    "error_rate": "Could not be measured",
}
TRACES_PER_GROUP = 8
LONGEST_TRACE = 6000
"""Characters of a reasoning or answer that are shown."""


@dataclass(frozen=True, slots=True)
class Run:
    """One model on the suite that the page is about."""

    name: str
    records: Sequence[Record]
    summary: Summary


@dataclass(frozen=True, slots=True)
class Trace:
    """One problem as the template shows it, with the base's sample where there is one."""

    group: str
    candidate: Record
    base: Record | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What the template gets."""

    suite: str
    candidate: Run
    base: Run | None = None
    others: Mapping[str, Summary] = field(default_factory=dict)
    """More suites measured together with this one."""

    decision: Decision | None = None
    curves: Sequence[Curve] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def write_report(
    path: Path,
    *,
    candidate: Path,
    base: Path | None = None,
    decision: Decision | None = None,
    suite_name: str,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write the page about `candidate` from what lies in its folder, and in `base`'s.

    `extra` are labelled facts for the end of the page. DataError when the candidate has no records
    of the suite; a base without records is left out.
    """
    theirs = records_path(base, suite_name) if base else None
    page = Page(
        suite=suite_name,
        candidate=_run(candidate, suite_name),
        base=_run(base, suite_name) if base and theirs and theirs.is_file() else None,
        decision=decision,
        curves=_curves(candidate / META / "metrics.jsonl"),
        facts=dict(extra or {}),
    )
    write_atomic(path, _render(page))


def write_measurement_report(path: Path, measurements: Sequence[Measurement], name: str) -> None:
    """Write the page about measurements of any target, a URL included; the first in detail."""
    first = measurements[0]
    page = Page(
        suite=first.loaded.name,
        candidate=Run(name, first.records, first.summary),
        others={m.loaded.name: m.summary for m in measurements[1:]},
        facts={"Records": str(first.path), "Suite fingerprint": first.fingerprint},
    )
    write_atomic(path, _render(page))


def record_summaries(
    path: Path, measurements: Sequence[Measurement], decision: Decision | None = None
) -> None:
    """Bring `report.json` up to date: suites measured now replace their entry, others stay.

    Entries about another model are dropped: one file speaks about one model.
    """
    model = measurements[0].model
    old = _read_json(path)
    same = old.get("model") == model
    suites: dict[str, Any] = dict(old.get("suites", {})) if same else {}
    for measured in measurements:
        suites[measured.loaded.name] = {
            "fingerprint": measured.fingerprint,
            "records": os.path.relpath(measured.path, path.parent),
            "summary": measured.summary.as_json(),
        }
    kept = old.get("decision") if same else None
    content = {
        "schema_version": 1,
        "model": model,
        "created": now(),
        "suites": suites,
        "decision": decision.model_dump(mode="json") if decision else kept,
    }
    write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not a report: {error}; delete it to start a new one") from error


def _run(folder: Path, suite: str) -> Run:
    records = read_records(records_path(folder, suite))
    return Run(folder.name, records, summarise(records))


def _curves(metrics: Path) -> list[Curve]:
    """What the training log holds of the curves that are shown; keys it lacks are left out."""
    if not metrics.is_file():
        return []
    rows = [row for _, row in read_rows(metrics)]
    curves: list[Curve] = []
    for key, title, percent in CURVES:
        points = [(row["step"], row[key]) for row in rows if _finite(row, "step", key)]
        if len(points) > 1:
            curves.append(Curve(title, points, percent))
    return curves


def _finite(row: Mapping[str, Any], *keys: str) -> bool:
    values = [row.get(key) for key in keys]
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def _render(page: Page) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "share": _share_text,
        "interval": _interval_text,
        "mark": _mark,
        "estimate": estimate_text,
        "asked": asked_text,
        "clip": _clip,
        "points": _points,
    }
    script = (Path(__file__).parent / "report.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    pair = compare(page.candidate.records, page.base.records) if page.base else None
    traces = _traces(page)
    return environment.get_template("report.html.jinja").render(
        page=page,
        created=now(),
        script=script,
        script_hash=base64.b64encode(digest).decode(),
        gain=pair.interval(0.95) if pair else None,
        pair=pair,
        rows=_rows(page),
        others=[(suite, _short_row(summary)) for suite, summary in page.others.items()],
        charts=[(curve.title, draw_curve(curve)) for curve in page.curves],
        traces=traces,
        groups=list(dict.fromkeys(trace.group for trace in traces)),
    )


def _short_row(summary: Summary) -> list[str]:
    names = ("accuracy", "format_rate", "truncation_rate", "error_rate")
    return [f"{summary.samples:,}", *(_interval_text(summary.shares[name]) for name in names)]


def _rows(page: Page) -> list[tuple[str, list[str]]]:
    """Rows of the before/after table: label, then a text for the base (if any) and candidate."""
    runs = [page.base.summary] if page.base else []
    runs.append(page.candidate.summary)
    rows = [
        (label, [_interval_text(run.shares[name]) for run in runs])
        for name, label in SHARE_NAMES.items()
    ]
    spreads = (
        ("Thinking tokens: mean · median · 95th", "reasoning_tokens", ".1f"),
        ("Answer tokens: mean · median · 95th", "answer_tokens", ".1f"),
        ("Seconds per answer: mean · median · 95th", "latency_s", ".2f"),
    )
    for label, name, style in spreads:
        rows.append((label, [_spread_text(getattr(run, name), style) for run in runs]))
    rows.append(("Samples · problems", [f"{r.samples:,} · {r.problems:,}" for r in runs]))
    return [*rows, ("Verdicts", [_counts_text(run.verdicts) for run in runs])]


def _traces(page: Page) -> list[Trace]:
    """A few samples of each group; with a base, those first where the verdict changed."""
    theirs = {record.key: record for record in page.base.records} if page.base else {}
    groups: dict[str, list[Trace]] = {}
    for record in page.candidate.records:
        base = theirs.get(record.key)
        group = _group(record, base)
        groups.setdefault(group, []).append(Trace(group, record, base))
    return [
        trace
        for group in sorted(groups, key=_GROUPS.index)
        for trace in groups[group][:TRACES_PER_GROUP]
    ]


_GROUPS = ["wrong → correct", "correct → wrong", *(verdict.value for verdict in Verdict)]


def _group(record: Record, base: Record | None) -> str:
    if base is not None and record.graded and base.graded:
        correct, before = (r.verdict is Verdict.CORRECT for r in (record, base))
        if correct != before:
            return _GROUPS[0] if correct else _GROUPS[1]
    return record.verdict.value


def estimate_text(rule: RuleResult) -> str:
    """The estimate of a rule and its interval, in points where it is a difference."""
    if rule.estimate is None or rule.low is None or rule.high is None:
        return "not measured"
    if rule.metric == "contamination":  # counted, not sampled
        return _share_text(rule.estimate)
    if rule.metric == "accuracy_gain":
        return f"{_points(rule.estimate)} ({100 * rule.low:+.1f} to {100 * rule.high:+.1f})"
    return f"{rule.estimate:.1%} ({rule.low:.1%} to {rule.high:.1%})"


def asked_text(rule: RuleResult) -> str:
    """What a rule asks, in a few words."""
    match rule.rule:
        case "superiority" if rule.threshold:
            return f"≥ {_points(rule.threshold)}, interval > 0"
        case "superiority":
            return "interval > 0"
        case "non_inferiority":
            return f"interval > {_points(rule.threshold)}"
        case "error_rate" | "contamination":
            return f"≤ {rule.threshold:.1%}"
        case "truncation_rate":
            return f"interval ≤ {rule.threshold:.1%}"
        case _:
            return f"interval ≥ {rule.threshold:.1%}"


def _mark(rule: RuleResult) -> str:
    if rule.estimate is None or rule.low is None or rule.high is None:
        return ""
    line = 0.0 if rule.rule == "superiority" else rule.threshold
    return draw_interval(rule.low, rule.high, rule.estimate, line)


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f} points"


def _share_text(value: float) -> str:
    return f"{value:.1%}"


def _interval_text(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    return f"{interval.estimate:.1%} ({interval.low:.1%} to {interval.high:.1%})"


def _spread_text(spread: Spread | None, style: str) -> str:
    if spread is None:
        return "not reported"
    return " · ".join(format(value, style) for value in (spread.mean, spread.p50, spread.p95))


def _counts_text(verdicts: Mapping[str, int]) -> str:
    return " · ".join(f"{n:,} {verdict.replace('_', ' ')}" for verdict, n in verdicts.items())


def _clip(text: str) -> str:
    if len(text) <= LONGEST_TRACE:
        return text
    left = len(text) - LONGEST_TRACE
    return f"{text[:LONGEST_TRACE]}\n… {left:,} more characters in the records"
