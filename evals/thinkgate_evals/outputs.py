"""The files a run leaves beside its records, for people, for programs and for CI.

Owns their names and that all of them say the same.

    report.json   numbers                 report.html   the page
    summary.md    for a comment           junit.xml     for the list of checks
"""

from pathlib import Path

from thinkgate.checkpoint import write_atomic
from thinkgate_evals.ci_reports import junit, markdown
from thinkgate_evals.report import write_report
from thinkgate_evals.report_json import write_report_json
from thinkgate_evals.results import Results

__all__ = ["REPORT_JSON", "write_outputs"]

REPORT_JSON = "report.json"


def write_outputs(folder: Path, results: Results) -> Path:
    """Write all of them; the path of the page."""
    page = folder / "report.html"
    write_report_json(folder / REPORT_JSON, results)
    write_atomic(folder / "summary.md", markdown(results))
    write_atomic(folder / "junit.xml", junit(results))
    write_report(page, results)
    return page
