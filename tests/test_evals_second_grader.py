"""A second grader: what it says is listed and, where a policy asks for it, must agree."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from scripted_endpoint import Fails, Says, ScriptedEndpoint, prompt_of

from thinkgate.answers import Verdict
from thinkgate.checkpoint import Decision, GateVerdict
from thinkgate.cli import main
from thinkgate_evals.records import Record, read_records
from thinkgate_evals.second_grader import (
    AnswerJudge,
    SecondGrader,
    disagreements,
    grade_again,
    under_second,
)

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
    assert [r.verdict for r in under_second(records, SecondGrader.MATH_VERIFY)] == [
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
        (
            [RIGHT] * 90 + [Verdict.BAD_GOLD] * 10,
            GateVerdict.INCONCLUSIVE,
            "failed, first with: grading",
        ),
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


# A language model as the second grader


def judging(body: dict[str, Any]) -> Says | Fails:
    """A judge that compares letter by letter, and fails where the answer says so."""
    _, question, gold, answer, _ = re.split(r"===== .* =====", prompt_of(body))
    if "break" in answer:
        return Fails(500)
    if "hm" in answer:
        return Says('{"score": 0.5}')
    assert question.strip()
    return Says(json.dumps({"score": int(gold.strip() in answer)}))


def judge(server: ScriptedEndpoint, **more: Any) -> AnswerJudge:
    return AnswerJudge(base_url=server.base_url, model="judge", retries=0, **more)


def test_a_judge_grades_what_can_be_graded_and_its_failures_are_no_verdict(tmp_path: Path) -> None:
    records = [
        record(0, RIGHT, prompt="q", gold="7", answer="It is 7."),
        record(1, RIGHT, prompt="q", gold="7", answer="seven"),
        record(2, RIGHT, prompt="q", gold="7", answer="7, break"),
        record(3, RIGHT, prompt="q", gold="7", answer="hm 7"),
        record(4, Verdict.NO_ANSWER, prompt="q", gold="7"),
        record(5, WRONG, prompt="q", answer="7"),
        record(6, RIGHT, prompt="q", gold="46 from [3, 7, 25]", answer="25+7*3"),
        record(7, Verdict.ERROR, gold="7"),
    ]
    with ScriptedEndpoint(judging) as server:
        graded = grade_again(records, judge(server), tmp_path)
        seconds = [r.second_verdict for r in graded]
        assert seconds[:6] == [RIGHT, WRONG, None, None, Verdict.NO_ANSWER, Verdict.BAD_GOLD]
        assert seconds[6:] == [WRONG, None]
        asked = [prompt_of(body) for body in server.requests]
        assert len(asked) == 5
        assert any("comes to 46, made from the numbers 3, 7, 25" in text for text in asked)
        assert {r.second_grader for r in graded if r.second_verdict} == {judge(server).identity()}
        # A failed request is made again, what was said is not, be it undecided.
        server.script = lambda _: Says("1")
        again = grade_again(graded, judge(server), tmp_path)
        assert [r.second_verdict for r in again[2:4]] == [RIGHT, None]
        assert len(server.requests) == 6
        fresh = judge(server, timeout=59)
        assert grade_again(records, fresh, tmp_path) == again
        assert len(server.requests) == 6
    assert [r.problem_id for r in disagreements(again)] == ["1", "6"]


def test_another_grader_grades_anew_and_does_not_count_for_this_one() -> None:
    [by_rule] = grade_again([record(0, RIGHT, gold="7", answer="7")], SecondGrader.MATH_VERIFY)
    assert (by_rule.second_verdict, by_rule.second_grader) == (RIGHT, "math-verify")
    with ScriptedEndpoint(lambda _: Says("0")) as server:
        strict = judge(server)
        assert [r.verdict for r in under_second([by_rule], strict)] == [Verdict.ERROR]
        [judged] = grade_again([by_rule], strict)
        assert (judged.second_verdict, judged.second_grader) == (WRONG, strict.identity())
        assert [r.verdict for r in under_second([judged], strict)] == [WRONG]
        assert strict.identity() != judge(server, rubric="Be kind.").identity()


def test_eval_and_gate_take_a_judge_from_a_file_and_a_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "sums.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": f"{n}+0", "gold": str(n)}) + "\n" for n in range(9))
    )
    with (
        ScriptedEndpoint(lambda body: Says(prompt_of(body).partition("+")[0], "hm")) as server,
        ScriptedEndpoint(
            lambda body: Says("01"["GRADE =====\n3\n" not in prompt_of(body)])
        ) as other,
    ):
        settings = f"{{base_url: {other.base_url}, model: judge, requests_per_minute: 60000}}"
        (tmp_path / "judge.yaml").write_text(settings)
        command = [
            "eval",
            server.base_url,
            "--suite",
            f"jsonl:{data}",
            "--out",
            str(tmp_path / "o"),
        ]
        command += ["--second-grader", str(tmp_path / "judge.yaml")]
        assert main(command) == 0
        assert main(command) == 0
        assert len(other.requests) == 9
        shown = capsys.readouterr()
        assert "the graders disagree on 1 answers" in shown.out and not shown.err
        other.script = lambda _: Fails(500)
        settings = settings.replace("60000", "60000, retries: 0, rubric: Be strict.")
        (tmp_path / "judge.yaml").write_text(settings)
        assert main(command) == 0
        assert "gave no verdict on 9 of 9 answers" in capsys.readouterr().err
        other.script = lambda _: Says("1")
        assert main(command) == 0
    (tmp_path / "policy.yaml").write_text(
        f"name: both\nsecond_grader: {settings}\n"
        "rules: [{rule: floor, suite: sums, at_least: 0.2}]\n"
    )
    gated = ["gate", "--policy", str(tmp_path / "policy.yaml"), "--records", str(tmp_path / "o")]
    assert main(gated) == 0
    (tmp_path / "policy.yaml").write_text(POLICY)  # math-verify was not asked
    assert main(gated) == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nobody", "there is math-verify, or a .yaml file"),
        ("missing.yaml", "missing.yaml: no such file"),
        ("model: m", "'base_url' is missing"),
        ("{base_url: 'http://x', model: m, modle: y}", "did you mean 'model'"),
    ],
)
def test_a_wrong_grader_is_one_sentence(
    given: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if ":" in given:
        (tmp_path / "judge.yaml").write_text(given)
        given = str(tmp_path / "judge.yaml")
    (tmp_path / "p.jsonl").write_text('{"prompt": "1", "gold": "1"}\n')
    command = ["eval", "http://127.0.0.1:9", "--suite", f"jsonl:{tmp_path / 'p.jsonl'}"]
    assert main([*command, "--second-grader", given]) == 2
    assert said in capsys.readouterr().err


def test_a_judge_nobody_can_reach_stops_with_one_sentence_and_keeps_the_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "judge.yaml").write_text("{base_url: 'http://127.0.0.1:9', model: m, retries: 0}")
    (tmp_path / "p.jsonl").write_text('{"prompt": "1", "gold": "1"}\n')
    with ScriptedEndpoint(lambda _: Says("1")) as server:
        command = ["eval", server.base_url, "--suite", f"jsonl:{tmp_path / 'p.jsonl'}"]
        command += ["--out", str(tmp_path / "o"), "--second-grader", str(tmp_path / "judge.yaml")]
        assert main(command) == 2
        assert len(read_records(tmp_path / "o" / "p.jsonl")) == 1
    assert "cannot reach http://127.0.0.1:9/v1" in capsys.readouterr().err


def test_options_that_would_be_ignored_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            ["eval", "http://127.0.0.1:9", "--suite", "lm:gsm8k", "--second-grader", "math-verify"]
        )
        == 2
    )
    assert "lm:gsm8k is scored by lm-eval" in capsys.readouterr().err
    assert main(["gate", "--records", str(tmp_path), "--second-grader", "math-verify"]) == 2
    assert "--second-grader is for measuring" in capsys.readouterr().err
