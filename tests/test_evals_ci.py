"""What CI reads: Markdown that stays a table and XML that stays XML, whatever things are called."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkgate.answers import Verdict
from thinkgate.checkpoint import Decision, GateVerdict, RuleResult
from thinkgate_evals.ci_reports import junit, markdown
from thinkgate_evals.metrics import summarise
from thinkgate_evals.records import Record
from thinkgate_evals.results import Result, Results, Run

RIGHT, WRONG, ERROR = Verdict.CORRECT, Verdict.WRONG, Verdict.ERROR
EVIL = "</testcase>|`x`\n# *b* <img src=x> @all [a](http://x) \x00\x1b[31m"


def run(name: str, *verdicts: Verdict, error: str | None = None) -> Run:
    records = [
        Record(problem_id=str(n), verdict=v, error=error if v is ERROR else None)
        for n, v in enumerate(verdicts)
    ]
    return Run(name, "m" * 64, records, summarise(records), Path("x.jsonl"), None)


def rule(verdict: GateVerdict, name: str = "floor", why: str = "because") -> RuleResult:
    fields: dict[str, Any] = {"estimate": 0.5, "low": 0.4, "high": 0.6, "n": 10, "threshold": 0.3}
    return RuleResult(
        rule=name, suite="sums", metric="accuracy", verdict=verdict, why=why, **fields
    )


def decision(verdict: GateVerdict, *rules: RuleResult) -> Decision:
    return Decision(
        id="d1",
        verdict=verdict,
        policy="mine",
        policy_sha256="",
        candidate="c" * 64,
        incumbent=None,
        suites={},
        rules=rules,
        created="now",
    )


def results(name: str = "new", **more: Any) -> Results:
    base = run("old", *[WRONG] * 5, *[RIGHT] * 5)
    return Results(suites=[Result("sums", run(name, *[RIGHT] * 10), base)], **more)


def test_markdown_says_the_verdict_the_rules_and_the_comparison() -> None:
    made = decision(GateVerdict.FAIL, rule(GateVerdict.FAIL), rule(GateVerdict.PASS, "format_rate"))
    text = markdown(results(decision=made))
    assert text.startswith("## ❌ FAIL: new\n")
    assert (
        "| ❌ fail | floor | sums | 50.0% (40.0% to 60.0%) | interval ≥ 30.0% | because |" in text
    )
    assert r"| ✅ pass | format\_rate |" in text
    assert "**50.0% → 100.0%**: +50.0 points on the same 10 problems" in text
    assert "| new right | 5 | 5 |\n| new wrong | 0 | 0 |" in text


def test_each_rule_is_a_test_case_and_what_is_not_known_is_not_green() -> None:
    made = decision(
        GateVerdict.INCONCLUSIVE,
        rule(GateVerdict.PASS, "floor"),
        rule(GateVerdict.FAIL, "format_rate", "too low"),
        rule(GateVerdict.INCONCLUSIVE, "truncation_rate", "too few"),
    )
    root = ElementTree.fromstring(junit(results(decision=made)))
    assert root.attrib == {"tests": "3", "failures": "1", "errors": "1"}
    cases = {case.get("name"): case for case in root.iter("testcase")}
    assert set(cases) == {"floor", "format_rate", "truncation_rate"}
    assert [child.tag for child in cases["floor"]] == ["system-out"]
    failure, error = cases["format_rate"].find("failure"), cases["truncation_rate"].find("error")
    assert failure is not None and "too low" in (failure.get("message") or "")
    assert error is not None and error.get("type") == "inconclusive"


def test_without_a_decision_each_suite_is_one_and_an_unmeasured_one_an_error() -> None:
    made = Results(
        suites=[
            Result("sums", run("new", RIGHT, WRONG)),
            Result("words", run("new", ERROR, error="server failed")),
        ]
    )
    root = ElementTree.fromstring(junit(made))
    assert root.attrib == {"tests": "2", "failures": "0", "errors": "1"}
    [error] = root.iter("error")
    assert error.get("message") == "server failed"
    assert "accuracy 50.0%" in (root.findtext(".//system-out") or "")


@given(st.text(), st.text())
def test_any_text_is_valid_xml(name: str, why: str) -> None:
    made = decision(GateVerdict.FAIL, rule(GateVerdict.FAIL, why=why))
    root = ElementTree.fromstring(junit(results(name, decision=made)).encode("utf-8", "replace"))
    assert len(list(root.iter("testcase"))) == 1


@pytest.mark.parametrize("text", [EVIL, "a|b", "line\nbreak", "<script>", "--- |"])
def test_hostile_names_do_not_break_the_markdown(text: str) -> None:
    made = decision(GateVerdict.FAIL, rule(GateVerdict.FAIL, why=text))
    page = markdown(results(text, decision=made))
    for line in page.splitlines():
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line.strip("|"))
            assert len(cells) in (3, 6), line
        assert not re.search(r"(?<!\\)[<\[`](?!d1`)", line.replace("`d1`", "")), line
        assert line.count("#") == 0 or line.startswith(("## ", "### ")) or r"\#" in line
