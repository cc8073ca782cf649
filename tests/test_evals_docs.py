"""`docs/records.md` names every field there is, and no other."""

import dataclasses
import json
import re
from pathlib import Path
from typing import get_args

from thinkgate.answers import Verdict
from thinkgate.checkpoint import Decision, RuleResult, SequentialRun
from thinkgate.format import SplitStatus
from thinkgate_evals.metrics import SHARES, Spread, Summary, summarise
from thinkgate_evals.policy import Rule
from thinkgate_evals.record_sets import load_record_set
from thinkgate_evals.records import Header, Record
from thinkgate_evals.report_json import SCHEMA_VERSION, write_report_json
from thinkgate_evals.results import Result, Results, Run
from thinkgate_evals.stats import Interval

TEXT = (Path(__file__).parent.parent / "docs" / "records.md").read_text()
LM_EVAL = {"lm_eval"}
"""Added by `lm_scores.record_scores`, for lm-eval tasks only."""


def fields(heading: str, text: str = TEXT) -> set[str]:
    """The names in the first table after `heading`."""
    table = text.split(heading, 1)[1].partition("\n|---")[2].partition("\n\n")[0]
    return set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))


def run(name: str, right: int) -> Run:
    records = [
        Record(
            problem_id=str(n),
            verdict=Verdict.CORRECT if n < right else Verdict.WRONG,
            reasoning_tokens=n,
        )
        for n in range(4)
    ]
    return Run(name, name, records, summarise(records), Path(f"{name}.jsonl"), None)


def test_records_and_headers() -> None:
    assert fields("one record a line") == set(Record.model_fields)
    assert fields("what the records belong to") == set(Header.model_fields)
    assert f"Version {Header.model_fields['schema_version'].default}." in TEXT
    for verdict in Verdict:
        assert f"`{verdict}`" in TEXT
    for status in SplitStatus:
        assert f"`{status}`" in TEXT


def test_the_report(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report_json(path, Results(suites=[Result("sums", run("new", 3), run("old", 1))]))
    report = json.loads(path.read_text())
    assert report["schema_version"] == SCHEMA_VERSION
    assert f"## `report.json`\n\nVersion {SCHEMA_VERSION}." in TEXT
    assert set(report) == fields("## `report.json`")
    entry = report["suites"]["sums"]
    assert set(entry) == fields("Each suite:") - LM_EVAL
    assert set(entry["summary"]) == fields("A summary:")
    assert set(entry["comparison"]) == fields("A comparison:")
    assert {field.name for field in dataclasses.fields(Summary)} == fields("A summary:")
    for name in SHARES:
        assert f"`{name}`" in TEXT
    words = TEXT.partition("An interval is ")[2].partition("A comparison")[0]
    named = set(re.findall(r"`(\w+)`", words))
    parts = {field.name for kind in (Interval, Spread) for field in dataclasses.fields(kind)}
    assert named == parts


def test_the_least_a_record_may_be_is_one(tmp_path: Path) -> None:
    [example] = re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "x.jsonl").write_text(example)
    [record] = load_record_set(tmp_path / "x.jsonl", "x").records
    assert (record.problem_id, record.verdict) == ("17", Verdict.CORRECT)


GATES = (Path(__file__).parent.parent / "docs" / "gates.md").read_text()


def test_decisions_and_rules() -> None:
    assert fields("## decision.json", GATES) == set(Decision.model_fields)
    assert fields("Each rule:", GATES) == set(RuleResult.model_fields)
    assert f"Version {Decision.model_fields['schema_version'].default}" in GATES
    for name in SequentialRun.model_fields:
        assert f"`{name}`" in GATES
    kinds = {get_args(kind.model_fields["rule"].annotation)[0] for kind in get_args(Rule)}
    assert fields("## Rules", GATES) == kinds
    shipped = (Path(__file__).parent.parent / "evals" / "gates").glob("*.yaml")
    assert set(re.findall(r"^\*\*`(\w+)`\*\*", GATES, re.MULTILINE)) == {f.stem for f in shipped}
