"""The report: one file, nothing fetched, and text from strangers stays text."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from thinkgate.answers import Verdict
from thinkgate.charts import Curve, draw_curve
from thinkgate.checkpoint import Decision, GateVerdict, RuleResult
from thinkgate.errors import DataError
from thinkgate.format import SplitStatus
from thinkgate_evals.comparison import compare
from thinkgate_evals.figures import bins_by_length, draw_lengths, draw_problems
from thinkgate_evals.metrics import summarise
from thinkgate_evals.records import Record
from thinkgate_evals.report import write_report
from thinkgate_evals.results import Result, Results, Run
from thinkgate_evals.wording import asked_text, estimate_text

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


def model(name: str, verdicts: list[Verdict], words: str = "fine", **more: Any) -> Run:
    """A run whose samples got these verdicts."""
    records: list[Record] = []
    for number, verdict in enumerate(verdicts):
        failed = verdict is Verdict.ERROR
        fields: dict[str, Any] = {
            "problem_id": str(number),
            "prompt": f"problem {number} {words}",
            "gold": words,
            "verdict": verdict,
            "reasoning": None if failed else words,
            "answer": None if failed or verdict is Verdict.NO_ANSWER else words,
            "status": None if failed else SplitStatus.CLOSED,
            "error": words if failed else None,
        }
        records.append(Record.model_validate(fields | more))
    return Run(name, "m" * 64, records, summarise(records), Path("x.jsonl"), None)


def written(path: Path, candidate: Run, base: Run | None = None, **more: Any) -> str:
    """The text of the page about one suite."""
    results = Results(suites=[Result("sums", candidate, base)], **more)
    write_report(path / "report.html", results)
    return (path / "report.html").read_text()


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
    evil = {"problem_id": EVIL, "prompt": EVIL}
    base = model(f"base {EVIL}", [WRONG, WRONG, RIGHT, ERROR], EVIL, **evil)
    candidate = model(EVIL, [RIGHT, WRONG, NONE, ERROR], EVIL, **evil)
    results = Results(
        suites=[Result(EVIL, candidate, base), Result(f"{EVIL}2", candidate)],
        decision=decision(),
        facts={EVIL: EVIL},
    )
    write_report(tmp_path / "report.html", results)
    page = Elements((tmp_path / "report.html").read_text())
    assert page.all("img") == [] and len(page.all("script")) == 1
    assert not [a for _, attributes in page.found for a in attributes if a.startswith("on")]
    assert "alert(2)" in page.text and "{{ 7*7 }}" in page.text


def test_nothing_is_fetched_and_only_our_script_may_run(tmp_path: Path) -> None:
    text = written(tmp_path, model("c", [RIGHT]))
    page = Elements(text)
    assert not [a for _, attributes in page.found for a in attributes if a in ("src", "href")]
    assert not re.search(r"https?://|@import|url\(", text)
    [policy] = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy is not None and policy.startswith("default-src 'none'")
    assert re.search(r"script-src 'sha256-[\w+/]{43}='$", policy)


def test_changed_verdicts_come_first_side_by_side(tmp_path: Path) -> None:
    base = model("base", [RIGHT, WRONG, RIGHT, WRONG, RIGHT])
    candidate = model("cand", [RIGHT, RIGHT, WRONG, WRONG, ERROR])
    page = Elements(written(tmp_path, candidate, base))
    groups = [a["data-group"] for a in page.all("article")]
    assert groups == ["wrong → correct", "correct → wrong", "correct", "wrong", "error"]
    buttons = [a["data-show"] for a in page.all("button")]
    assert buttons == ["", *groups]
    assert page.text.index("problem 1 fine") < page.text.index("problem 2 fine")


def test_filters_say_how_many_there_are_and_traces_know_their_problem(tmp_path: Path) -> None:
    page = Elements(written(tmp_path, model("c", [RIGHT] * 30 + [WRONG] * 7)))
    assert re.search(r"correct\s+30", page.text) and re.search(r"wrong\s+7", page.text)
    ids = [a["data-id"] for a in page.all("article")]
    assert ids[0] == "0" and ids[-1] == "36" and len(ids) < 30


def test_many_traces_are_cut_to_a_few_of_each_kind_and_long_ones_shortened(tmp_path: Path) -> None:
    text = written(tmp_path, model("cand", [RIGHT] * 200 + [WRONG] * 200, "long " * 5000))
    page = Elements(text)
    assert 2 <= len(page.all("article")) <= 40
    assert "more characters in the records" in page.text
    assert len(text) < 1_000_000


def test_every_problem_is_a_square_that_says_how_it_went(tmp_path: Path) -> None:
    base = model("base", [RIGHT, WRONG, RIGHT, WRONG])
    candidate = model("cand", [RIGHT, RIGHT, WRONG, WRONG])
    text = written(tmp_path, candidate, base)
    squares = Elements(text).all("rect")
    assert [(s["class"], s["data-problem"]) for s in squares] == [
        ("won", "1"),
        ("lost", "2"),
        ("right", "0"),
        ("wrong", "3"),
    ]
    assert "problem 1: base 0 of 1 right, candidate 1 of 1" in text
    drawn = draw_problems(compare(candidate.records, base.records))
    assert "1 both right, 1 only the candidate, 1 only the base, 1 neither" in drawn


def test_accuracy_is_drawn_against_length_where_lengths_are_known(tmp_path: Path) -> None:
    records = [
        record.model_copy(update={"reasoning_tokens": 5 + index})
        for index, record in enumerate(model("c", [RIGHT] * 40 + [WRONG] * 40).records)
    ]
    bins = bins_by_length(records)
    assert sum(b.samples for b in bins) == 80 and len(bins) == 4
    assert [b.accuracy.estimate for b in bins] == [1.0, 1.0, 0.0, 0.0]
    drawn = draw_lengths([("old", records), ("new", records)])
    assert drawn is not None and drawn.count("<circle") == 8
    assert "new: 100% at 5 to 24, 0% at 65 to 84 tokens" in drawn
    assert draw_lengths([("c", model("c", [RIGHT] * 80).records)]) is None


def test_equal_lengths_stay_together_and_few_samples_make_no_bins() -> None:
    same = [
        record.model_copy(update={"reasoning_tokens": 0 if index < 60 else 9})
        for index, record in enumerate(model("c", [RIGHT] * 100).records)
    ]
    assert [(b.low, b.high, b.samples) for b in bins_by_length(same)] == [(0, 0, 60), (9, 9, 40)]
    assert [b.samples for b in bins_by_length(same[:60])] == [60]
    assert bins_by_length(same[:30]) == []


def test_curves_are_drawn_from_what_the_log_has(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"step": s, "reward": s / 10, "loss": 0.1} for s in range(1, 9)]
    rows[3] |= {"thinking_tokens": 9}
    rows[4] |= {"thinking_tokens": float("nan")}
    rows[5] |= {"thinking_tokens": 12}
    rows.append({"train_runtime": 3.0})
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = written(tmp_path, model("c", [RIGHT]), training_log=log)
    labels = [a["aria-label"] for tag, a in Elements(text).found if tag == "svg"]
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
    text = Elements(written(tmp_path, model("c", [ERROR, ERROR]))).text
    assert "No sample could be graded" in text and "0.0% (" not in text.split("Could not")[0]


def test_a_torn_training_log_is_one_sentence(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1}\n{"step"')
    with pytest.raises(DataError, match=r"metrics\.jsonl line 2"):
        written(tmp_path, model("c", [RIGHT]), training_log=log)


def test_records_without_texts_make_a_page_without_traces(tmp_path: Path) -> None:
    bare = [Record(problem_id=str(n), verdict=RIGHT if n else WRONG) for n in range(9)]
    run = Run("bare", "records:0", bare, summarise(bare), Path("x.jsonl"), None)
    page = Elements(written(tmp_path, run))
    assert page.all("article") == [] and "88.9%" in page.text


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
