"""lm-eval's own numbers about a task: read from its results, shown, and kept.

Owns what is kept of them and how they are worded. Our verdicts and intervals about the same answers
are records and metrics as for any suite.
"""

import dataclasses
import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from thinkgate.checkpoint import write_atomic
from thinkgate_evals.measure import Measurement

__all__ = [
    "LmMeasurement",
    "Score",
    "add_scores",
    "cells",
    "record_scores",
    "scores_in",
    "write_log",
]


@dataclass(frozen=True, slots=True)
class Score:
    """One of lm-eval's numbers."""

    name: str
    """Metric and filter, such as `exact_match,strict-match`."""

    value: float
    stderr: float | None
    """Standard error, where lm-eval has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LmMeasurement(Measurement):
    """Our measurement of an lm-eval task, with lm-eval's own numbers about the same answers."""

    scores: tuple[Score, ...]


def scores_in(numbers: Mapping[str, Any]) -> Generator[Score]:
    """The scores among lm-eval's `metric,filter` and `metric_stderr,filter` entries."""
    for key, value in numbers.items():
        metric, comma, name = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            stderr = numbers.get(f"{metric}_stderr,{name}")
            known = float(stderr) if isinstance(stderr, int | float) else None
            yield Score(key, float(value), known)


def cells(score: Score) -> tuple[str, str, str]:
    """A score as a row of the table that is printed."""
    metric, _, name = score.name.partition(",")
    label = f"lm-eval {metric.replace('_', ' ')}" + (f" ({name})" if name != "none" else "")
    style = ".1%" if 0 <= score.value <= 1 else ".4g"
    error = f"standard error {score.stderr:{style}}" if score.stderr is not None else ""
    return label, f"{score.value:{style}}", error


def add_scores(table: Table, measured: Measurement) -> None:
    """Add lm-eval's numbers to the table about a measurement, if it has any."""
    for score in measured.scores if isinstance(measured, LmMeasurement) else ():
        table.add_row(*cells(score))


def record_scores(report: Path, measurements: Iterable[Measurement]) -> None:
    """Add lm-eval's numbers to the entries that `report.json` has about these measurements."""
    scored = [m for m in measurements if isinstance(m, LmMeasurement)]
    if not scored:
        return
    content = json.loads(report.read_text(encoding="utf-8"))
    for measured in scored:
        entry = content["suites"][measured.loaded.name]
        entry["lm_eval"] = [dataclasses.asdict(score) for score in measured.scores]
    write_atomic(report, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_log(
    path: Path,
    task: str,
    results: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
) -> None:
    """Keep what lm-eval says about a task; prompts and answers are in the records already."""
    kept = {
        "task": task,
        "lm_eval_version": results["lm_eval_version"],
        "version": results["versions"][task],
        "num_fewshot": results["n-shot"][task],
        "config": results["configs"][task],
        "results": results["results"][task],
        "groups": results.get("groups", {}),
        "samples": samples,
    }
    write_atomic(path, json.dumps(kept, indent=1, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """numpy's numbers as Python's; what else JSON does not know, as text."""
    return value.item() if hasattr(value, "item") else str(value)
