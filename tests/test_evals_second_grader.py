"""A second grader: what it says is listed and, where a policy asks for it, must agree."""

import json
from pathlib import Path
from typing import Any

import pytest
from scripted_endpoint import Says, ScriptedEndpoint, prompt_of

from thinkgate.answers import Verdict
from thinkgate.checkpoint import Decision, GateVerdict
from thinkgate.cli import main
from thinkgate_evals.records import Record, read_records
from thinkgate_evals.second_grader import SecondGrader, disagreements, grade_again, under_second

RIGHT, WRONG = Verdict.CORRECT, Verdict.WRONG


def record(number: int, verdict: Verdict, second: Verdict | None = None, **more: Any) -> Record:
    fields = {"problem_id": str(number), "verdict": verdict, "second_verdict": second}
    return Record.model_validate(fields | more)


def test_both_verdicts_are_kept_and_nothing_is_graded_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records = [
        record(0, RIGHT, gold="1/2", answer=r"\boxed{0.5}"),
        record(1, WRONG, gold="7", answer="It is 8."),
        record(2, RIGHT, gold="Lima", answer="Lima"),
        record(3, RIGHT, gold="46 from [3, 7, 25]", answer="25+7*3"),
        record(4, Verdict.ERROR, gold="7"),
    ]
    graded = grade_again(records, SecondGrader.MATH_VERIFY)
    assert [r.second_verdict for r in graded] == [
        RIGHT,
        WRONG,
        Verdict.BAD_GOLD,
        Verdict.BAD_GOLD,
        None,
    ]
    assert [r.verdict for r in graded] == [r.verdict for r in records]
    monkeypatch.setattr("thinkgate_evals.second_grader.second_opinion", pytest.fail)
    assert grade_again(graded, SecondGrader.MATH_VERIFY) == graded


def test_a_disagreement_is_about_right_or_not() -> None:
    records = [
        record(0, RIGHT, WRONG),
        record(1, WRONG, RIGHT),
        record(2, WRONG, Verdict.NO_ANSWER),  # not right, both say
        record(3, RIGHT, Verdict.BAD_GOLD),  # the second does not say
        record(4, RIGHT, RIGHT),
        record(5, RIGHT),
    ]
    assert [r.problem_id for r in disagreements(records)] == ["0", "1"]
    assert [r.verdict for r in under_second(records)] == [
        WRONG,
        RIGHT,
        Verdict.NO_ANSWER,
        Verdict.BAD_GOLD,
        RIGHT,
        Verdict.ERROR,
    ]


def test_eval_lists_where_the_graders_disagree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "sums.jsonl"
    rows = ({"prompt": f"{n}+0", "gold": str(n)} for n in range(6))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # A second grader that calls 3 wrong, whatever was answered.
    monkeypatch.setattr(
        "thinkgate_evals.second_grader.second_opinion",
        lambda _, gold: WRONG if gold == "3" else RIGHT,
    )
    with ScriptedEndpoint(lambda body: Says(prompt_of(body).partition("+")[0], "hm")) as server:
        command = [
            "eval",
            server.base_url,
            "--suite",
            f"jsonl:{data}",
            "--out",
            str(tmp_path / "o"),
        ]
        assert main(command) == 0
        assert "disagree" not in capsys.readouterr().out
        # Later, on what is recorded: nothing is asked again.
        asked = len(server.requests)
        assert main([*command, "--second-grader", "math-verify"]) == 0
        assert len(server.requests) == asked
    shown = capsys.readouterr().out
    assert "the graders disagree on 1 answers" in shown and "second accuracy" in shown
    records = read_records(tmp_path / "o" / "sums.jsonl")
    assert {r.problem_id: r.second_verdict for r in records}["3"] is WRONG
    assert all(r.verdict is RIGHT for r in records)
    shares = json.loads((tmp_path / "o" / "report.json").read_text())["suites"]["sums"]["summary"]
    assert shares["shares"]["second_accuracy"]["estimate"] == pytest.approx(5 / 6)
    assert shares["shares"]["disagreement"]["estimate"] == pytest.approx(1 / 6)
    assert "Where the graders disagree" in (tmp_path / "o" / "report.html").read_text()


POLICY = """name: both
second_grader: math-verify
rules:
  - {rule: floor, suite: sums, at_least: 0.5}
  - {rule: format_rate, suite: sums, at_least: 0.5}
"""


def gate(tmp_path: Path, seconds: list[Verdict | None]) -> Decision:
    """Of a candidate that is right by the verifier and `seconds` by the second grader."""
    (tmp_path / "policy.yaml").write_text(POLICY)
    rows = (
        record(n, RIGHT, second, status="closed").model_dump_json()
        for n, second in enumerate(seconds)
    )
    (tmp_path / "sums.jsonl").write_text("".join(f"{row}\n" for row in rows))
    out = tmp_path / "gate"
    command = ["gate", "--policy", str(tmp_path / "policy.yaml"), "--out", str(out)]
    main([*command, "--records", str(tmp_path / "sums.jsonl")])
    return Decision.model_validate_json((out / "decision.json").read_text())


@pytest.mark.parametrize(
    ("seconds", "verdict", "why"),
    [
        ([RIGHT] * 100, GateVerdict.PASS, "math-verify says PASS, 100.0%"),
        ([WRONG] * 100, GateVerdict.INCONCLUSIVE, "math-verify says FAIL, 0.0%"),
        ([RIGHT, WRONG] * 50, GateVerdict.INCONCLUSIVE, "math-verify says INCONCLUSIVE"),
        ([None] * 100, GateVerdict.INCONCLUSIVE, "not measured"),
        ([RIGHT] * 90 + [Verdict.BAD_GOLD] * 10, GateVerdict.INCONCLUSIVE, "failed to say"),
    ],
    ids=["agrees", "says the opposite", "cannot tell", "was not asked", "could not grade"],
)
def test_a_policy_can_demand_both_graders(
    seconds: list[Verdict | None], verdict: GateVerdict, why: str, tmp_path: Path
) -> None:
    decision = gate(tmp_path, seconds)
    floor, form, *_ = decision.rules
    assert floor.verdict is verdict and why in floor.why
    # Rules about anything but accuracy have nothing to do with graders.
    assert form.verdict is GateVerdict.PASS
    assert decision.verdict is verdict
