"""`report.json`: the numbers for programs. Its fields are in `docs/records.md`.

Owns the file and its version; the numbers are `metrics.py`'s. The version rises when a field goes
or changes its meaning, not when one is added.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from thinkgate.checkpoint import now, write_atomic
from thinkgate.errors import DataError
from thinkgate_evals.comparison import Comparison
from thinkgate_evals.results import Result, Results

__all__ = ["SCHEMA_VERSION", "write_report_json"]

SCHEMA_VERSION = 1


def write_report_json(path: Path, results: Results) -> None:
    """Bring the file up to date: suites in `results` replace their entry, others stay.

    Entries about another model are dropped: one file speaks about one model.
    """
    model = results.suites[0].candidate.model
    old = _read(path)
    same = old.get("model") == model
    suites: dict[str, Any] = dict(old.get("suites", {})) if same else {}
    for result in results.suites:
        suites[result.suite] = _suite(result, path.parent)
    kept = old.get("decision") if same else None
    decision = results.decision
    content = {
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "created": now(),
        "suites": suites,
        "decision": decision.model_dump(mode="json") if decision else kept,
    }
    write_atomic(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _suite(result: Result, folder: Path) -> dict[str, Any]:
    run, base = result.candidate, result.base
    entry: dict[str, Any] = {
        "fingerprint": run.fingerprint,
        "records": os.path.relpath(run.path, folder),
        "summary": run.summary.as_json(),
    }
    if base is not None and result.comparison is not None:
        entry["base"] = {
            "model": base.model,
            "records": os.path.relpath(base.path, folder),
            "summary": base.summary.as_json(),
        }
        entry["comparison"] = _comparison(result.comparison)
    return entry


def _comparison(pair: Comparison) -> dict[str, Any]:
    interval = pair.interval()
    both, ours, theirs, neither = pair.agreement()
    return {
        "difference": dataclasses.asdict(interval) if interval else None,
        "test": "mcnemar" if pair.single else "sign_flip",
        "p_value": pair.p_value,
        "detectable": pair.detectable,
        "wins": pair.wins,
        "losses": pair.losses,
        "both_right": both,
        "candidate_right": ours,
        "base_right": theirs,
        "neither_right": neither,
        "candidate_only": pair.candidate_only,
        "base_only": pair.base_only,
    }


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not a report: {error}; delete it to start a new one") from error
