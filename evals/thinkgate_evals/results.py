"""Results: what was found out, ready to be written down in any form.

Owns which runs belong together: one suite, one model or two, compared where there are two. How
they are worded is `wording.py`'s; pages and files are made by `report.py`, `report_json.py` and
`ci_reports.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from thinkgate.checkpoint import Decision
from thinkgate_evals.comparison import Comparison, compare
from thinkgate_evals.measure import Measurement
from thinkgate_evals.metrics import Summary, summarise
from thinkgate_evals.record_sets import RecordSet
from thinkgate_evals.records import Record

__all__ = ["Result", "Results", "Run", "run_of", "run_of_set"]


@dataclass(frozen=True, slots=True)
class Run:
    """One model on one suite."""

    name: str
    """Of the model, as a reader knows it."""

    model: str
    """Its digest where it has one."""

    records: Sequence[Record]
    summary: Summary
    path: Path
    """Of the records."""

    fingerprint: str | None
    """Of the suite, where the records say."""


@dataclass(frozen=True)
class Result:
    """One suite: a model, and perhaps the one it is compared with."""

    suite: str
    candidate: Run
    base: Run | None = None

    @cached_property
    def comparison(self) -> Comparison | None:
        """Candidate against base."""
        return compare(self.candidate.records, self.base.records) if self.base else None


@dataclass(frozen=True, kw_only=True)
class Results:
    """All suites of one evaluation, comparison or gate decision."""

    suites: Sequence[Result]
    decision: Decision | None = None
    training_log: Path | None = None
    """`metrics.jsonl` of the candidate's training, for curves."""

    facts: Mapping[str, str] = field(default_factory=dict)
    """What else a reader may want to know, by label."""

    @property
    def candidate(self) -> str:
        """The name of the model all this is about."""
        return self.suites[0].candidate.name


def run_of(measured: Measurement, name: str) -> Run:
    """A measurement of ours."""
    return Run(
        name,
        measured.model,
        measured.records,
        measured.summary,
        measured.path,
        measured.fingerprint,
    )


def run_of_set(found: RecordSet) -> Run:
    """Records from anywhere."""
    return Run(
        name=found.name,
        model=found.digest,
        records=found.records,
        summary=summarise(found.records, found.sessions),
        path=found.path,
        fingerprint=found.header.fingerprint if found.header else None,
    )
