"""The report: one file, nothing fetched, and text from strangers stays text."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from thinkgate.answers import Verdict
from thinkgate.checkpoint import Decision, GateVerdict, RuleResult
from thinkgate.errors import DataError
from thinkgate.format import SplitStatus
from thinkgate_evals.charts import Curve, draw_curve
from thinkgate_evals.measure import records_path
from thinkgate_evals.records import Record
from thinkgate_evals.report import asked_text, estimate_text, write_report

EVIL = '"><img src=x onerror=alert(1)></pre></script><script>alert(2)</script><!-- {{ 7*7 }} \x00'


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def folder(
    path: Path, verdicts: list[Verdict], words: str = "fine", metrics: str | None = None
) -> Path:
    file = records_path(path, "sums")
    file.parent.mkdir(parents=True)
    lines: list[str] = []
    for number, verdict in enumerate(verdicts):
        failed = verdict is Verdict.ERROR
        record = Record(
            problem_id=str(number),
            repeat=0,
            seed=0,
            prompt=f"problem {number} {words}",
            prompt_hash="",
            gold=words,
            verdict=verdict,
            reasoning=None if failed else words,
            answer=None if failed or verdict is Verdict.NO_ANSWER else words,
            status=None if failed else SplitStatus.CLOSED,
            error=words if failed else None,
        )
        lines.append(record.model_dump_json() + "\n")
    file.write_text("".join(lines))
    if metrics is not None:
        (path / "thinkgate" / "metrics.jsonl").write_text(metrics)
    return path


def decision(**changes: Any) -> Decision:
    rule = RuleResult(
        rule="superiority",
        suite="sums",
        metric="accuracy_gain",
        estimate=0.1,
        low=0.05,
        high=0.15,
        n=10,
        threshold=0.08,
        verdict=GateVerdict.PASS,
        why=EVIL,
    )
    return Decision(
        id="d1",
        verdict=GateVerdict.PASS,
        policy=EVIL,
        policy_sha256="",
        candidate="c" * 64,
        incumbent="b" * 64,
        suites={},
        rules=(rule.model_copy(update=changes),),
        created="now",
    )


RIGHT, WRONG, NONE, ERROR = Verdict.CORRECT, Verdict.WRONG, Verdict.NO_ANSWER, Verdict.ERROR


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    base = folder(tmp_path / f"base <b>{'x'}", [WRONG, WRONG, RIGHT, ERROR], EVIL)
    candidate = folder(tmp_path / "cand", [RIGHT, WRONG, NONE, ERROR], EVIL)
    out = tmp_path / "report.html"
    write_report(
        out,
        candidate=candidate,
        base=base,
        decision=decision(),
        suite_name="sums",
        extra={EVIL: EVIL},
    )
    page = Elements(out.read_text())
    assert page.all("img") == [] and len(page.all("script")) == 1
    assert not [a for _, attributes in page.found for a in attributes if a.startswith("on")]
    assert "alert(2)" in page.text and "{{ 7*7 }}" in page.text


def test_nothing_is_fetched_and_only_our_script_may_run(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(out, candidate=folder(tmp_path / "c", [RIGHT]), suite_name="sums")
    text = out.read_text()
    page = Elements(text)
    assert not [a for _, attributes in page.found for a in attributes if a in ("src", "href")]
    assert not re.search(r"https?://|@import|url\(", text)
    [policy] = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy is not None and policy.startswith("default-src 'none'")
    assert re.search(r"script-src 'sha256-[\w+/]{43}='$", policy)


def test_changed_verdicts_come_first_side_by_side(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", [RIGHT, WRONG, RIGHT, WRONG, RIGHT])
    candidate = folder(tmp_path / "cand", [RIGHT, RIGHT, WRONG, WRONG, ERROR])
    out = tmp_path / "report.html"
    write_report(out, candidate=candidate, base=base, suite_name="sums")
    page = Elements(out.read_text())
    groups = [a["data-group"] for a in page.all("article")]
    assert groups == ["wrong → correct", "correct → wrong", "correct", "wrong", "error"]
    buttons = [a["data-show"] for a in page.all("button")]
    assert buttons == ["", *groups]
    assert page.text.index("problem 1 fine") < page.text.index("problem 2 fine")


def test_many_traces_are_cut_to_a_few_of_each_kind_and_long_ones_shortened(tmp_path: Path) -> None:
    candidate = folder(tmp_path / "cand", [RIGHT] * 200 + [WRONG] * 200, "long " * 5000)
    out = tmp_path / "report.html"
    write_report(out, candidate=candidate, suite_name="sums")
    page = Elements(out.read_text())
    assert 2 <= len(page.all("article")) <= 40
    assert "more characters in the records" in page.text
    assert out.stat().st_size < 1_000_000


def test_curves_are_drawn_from_what_the_log_has(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"step": s, "reward": s / 10, "loss": 0.1} for s in range(1, 9)]
    rows[3] |= {"thinking_tokens": 9}
    rows[4] |= {"thinking_tokens": float("nan")}
    rows[5] |= {"thinking_tokens": 12}
    rows.append({"train_runtime": 3.0})
    metrics = "".join(json.dumps(row) + "\n" for row in rows)
    out = tmp_path / "report.html"
    write_report(out, candidate=folder(tmp_path / "c", [RIGHT], metrics=metrics), suite_name="sums")
    labels = [a["aria-label"] for tag, a in Elements(out.read_text()).found if tag == "svg"]
    assert labels == [
        "Mean reward, step 1 to 8: from 0.1 to 0.8",
        "Mean thinking length in tokens, step 4 to 6: from 9 to 12",
    ]


@pytest.mark.parametrize(
    "values", [[0.5, 0.5], [0.0, 0.0], [1.0, 1.0, 1.0], [0.01, 0.99], [-3.0, 1e6], [1e-9, 2e-9]]
)
def test_a_curve_stays_inside_its_frame(values: list[float]) -> None:
    points = list(enumerate(values))
    for percent in {False, max(values) <= 1 and min(values) >= 0}:
        svg = draw_curve(Curve("t", points, percent))
        for line in re.findall(r'points="([^"]*)"/>', svg):
            for pair in line.split():
                x, y = map(float, pair.split(","))
                assert 0 <= x <= 480 and 0 <= y <= 230


def test_nothing_gradable_is_said_and_not_drawn_as_zero(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(out, candidate=folder(tmp_path / "c", [ERROR, ERROR]), suite_name="sums")
    text = Elements(out.read_text()).text
    assert "No sample could be graded" in text and "0.0% (" not in text.split("Could not")[0]


def test_a_torn_training_log_is_one_sentence(tmp_path: Path) -> None:
    candidate = folder(tmp_path / "c", [RIGHT], metrics='{"step": 1}\n{"step"')
    with pytest.raises(DataError, match=r"metrics\.jsonl line 2"):
        write_report(tmp_path / "r.html", candidate=candidate, suite_name="sums")


def test_without_records_there_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sums\.jsonl: no such file"):
        write_report(tmp_path / "r.html", candidate=tmp_path, suite_name="sums")


@pytest.mark.parametrize(
    ("rule", "metric", "threshold", "estimate", "asked"),
    [
        ("superiority", "accuracy_gain", 0.08, "+10.0 points", "≥ +8.0 points, interval > 0"),
        ("superiority", "accuracy_gain", 0.0, "(+5.0 to +15.0)", "interval > 0"),
        ("non_inferiority", "accuracy_gain", -0.03, "+10.0 points", "interval > -3.0 points"),
        ("format_rate", "format_rate", 0.95, "10.0% (5.0% to 15.0%)", "interval ≥ 95.0%"),
        ("truncation_rate", "truncation_rate", 0.05, "10.0%", "interval ≤ 5.0%"),
        ("error_rate", "error_rate", 0.01, "10.0%", "≤ 1.0%"),
        ("contamination", "contamination", 0.0, "10.0%", "≤ 0.0%"),
    ],
)
def test_rules_are_worded(
    rule: str, metric: str, threshold: float, estimate: str, asked: str
) -> None:
    [result] = decision(rule=rule, metric=metric, threshold=threshold).rules
    assert estimate in estimate_text(result) and asked_text(result) == asked
    assert estimate_text(result.model_copy(update={"estimate": None})) == "not measured"
