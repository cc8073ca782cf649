"""`thinkgate eval compare` and `thinkgate gate --records` on files of any tool."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_checkpoint import make_checkpoint, record_decision
from scripted_endpoint import Says, ScriptedEndpoint, prompt_of

from thinkgate.answers import Verdict
from thinkgate.checkpoint import Decision, GateVerdict, gated, load_checkpoint
from thinkgate.cli import main
from thinkgate.errors import CheckpointError, DataError
from thinkgate.registry import Registry
from thinkgate_evals.comparison import compare
from thinkgate_evals.record_sets import find_record_sets, load_record_set
from thinkgate_evals.stats import mcnemar


def lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def minimal(path: Path, right: Iterable[object], **more: Any) -> Path:
    """The least a record may be."""
    return lines(path, ({"problem_id": f"p{n}", "correct": r, **more} for n, r in enumerate(right)))


def said(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main([*map(str, arguments)])
    captured = capsys.readouterr()
    return code, " ".join(captured.out.split()), captured.err


def test_two_files_are_paired_by_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = minimal(tmp_path / "base.jsonl", [True] * 60 + [False] * 40)
    new = minimal(tmp_path / "new.jsonl", [False] * 4 + [True] * 76 + [False] * 20)
    code, out, _ = said("eval", "compare", base, new, capsys=capsys)
    assert code == 0
    assert "+16.0 points on the same 100 problems" in out
    assert "20 problems won, 4 lost" in out
    assert f"exact McNemar p = {mcnemar(20, 4):.2g}" in out
    assert "would be found 4 times in 5" in out
    assert "new right 56 20 new wrong 4 20" in out


def test_several_samples_are_clustered_by_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def sampled(name: str, right: int) -> Path:
        rows = [
            {"problem_id": p, "sample": s, "correct": s < right + p % 2}
            for p in range(40)
            for s in range(8)
        ]
        return lines(tmp_path / name, rows)

    code, out, _ = said(
        "eval", "compare", sampled("a.jsonl", 3), sampled("b.jsonl", 4), capsys=capsys
    )
    assert code == 0 and "+12.5 points on the same 40 problems" in out
    assert "sign-flip p = 0.0001" in out and "pass@8" in out


def test_problems_of_one_side_only_are_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = minimal(tmp_path / "base.jsonl", [True] * 10)
    new = minimal(tmp_path / "new.jsonl", [True] * 7)
    _, out, _ = said("eval", "compare", base, new, capsys=capsys)
    assert "on the same 7 problems" in out
    assert "Left out: problems answered 3 only by the base." in out


def test_what_could_not_be_measured_is_no_wrong_answer(tmp_path: Path) -> None:
    found = load_record_set(minimal(tmp_path / "x.jsonl", [True, None, False, 1, 0.0]), "x")
    assert [record.verdict for record in found.records] == [
        Verdict.CORRECT,
        Verdict.ERROR,
        Verdict.WRONG,
        Verdict.CORRECT,
        Verdict.WRONG,
    ]
    pair = compare(found.records, found.records)
    assert len(pair.pairs) == 4


def test_more_fields_are_taken_over_and_unknown_ones_left_alone(tmp_path: Path) -> None:
    row = {
        "problem_id": 7,
        "correct": False,
        "verdict": "no_answer",
        "status": "truncated",
        "reasoning_tokens": 900,
        "subject": "algebra",
        "gold": None,
    }
    [record] = load_record_set(lines(tmp_path / "x.jsonl", [row]), "x").records
    assert (record.problem_id, record.verdict, record.reasoning_tokens) == (
        "7",
        Verdict.NO_ANSWER,
        900,
    )
    assert record.status is not None and record.gold is None and record.repeat == 0


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"correct": True}, "'problem_id' must be a text or a whole number; the line has correct"),
        ({"problem_id": "a"}, "neither 'correct' nor 'verdict'"),
        ({"problem_id": "a", "correct": "yes"}, "'correct' is 'yes'; write true, false or null"),
        ({"problem_id": "a", "correct": 0.5}, "'correct' is 0.5"),
        ({"problem_id": True, "correct": True}, "'problem_id'"),
        ({"problem_id": "a", "verdict": "right"}, "'verdict'"),
        ({"problem_id": "a", "correct": True, "verdict": "wrong"}, "give one of them"),
        ({"problem_id": "a", "correct": True, "sample": 1, "repeat": 2}, "give one of them"),
        ({"problem_id": "a", "correct": True, "sample": "x"}, "'repeat'"),
        ({"problem_id": "a", "correct": True, "sample": -1}, "'repeat'"),
        ({"problem_id": "a", "correct": True, "reasoning_tokens": -1}, "'reasoning_tokens'"),
        ({"problem_id": "a", "correct": True, "answer_tokens": 10**400}, "'answer_tokens'"),
        ({"problem_id": "a", "correct": True, "latency_s": float("nan")}, "'latency_s'"),
    ],
)
def test_what_is_no_record_is_named_with_its_line(
    row: dict[str, Any], words: str, tmp_path: Path
) -> None:
    file = lines(tmp_path / "x.jsonl", [{"problem_id": "0", "correct": True}, row])
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: ") as caught:
        load_record_set(file, "x")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_sample_that_occurs_twice_is_refused_and_the_fix_named(tmp_path: Path) -> None:
    file = lines(tmp_path / "x.jsonl", [{"problem_id": "0", "correct": True}] * 2)
    with pytest.raises(DataError, match=r"occurs twice.*number several answers.*'sample'"):
        load_record_set(file, "x")


def measured(tmp_path: Path, name: str, wrong: int, *options: str) -> Path:
    """A run of ours over 20 problems, `wrong` of them answered wrong."""
    data = lines(tmp_path / "sums.jsonl", ({"prompt": f"{n}+0", "gold": str(n)} for n in range(20)))

    def script(body: dict[str, Any]) -> Says:
        number = int(prompt_of(body).partition("+")[0])
        return Says(str(number + (number < wrong)), "hm")

    with ScriptedEndpoint(script) as endpoint:
        command = ["eval", endpoint.base_url, "--suite", f"jsonl:{data}", *options]
        assert main([*command, "--out", str(tmp_path / name)]) == 0
    return tmp_path / name


def test_our_runs_are_compared_by_folder_file_checkpoint_and_alias(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = measured(tmp_path, "old", 9), measured(tmp_path, "new", 3)
    code, out, _ = said("eval", "compare", old, new, capsys=capsys)
    assert code == 0 and "+30.0 points" in out and "6 problems won, 0 lost" in out
    code, out, _ = said("eval", "compare", old / "sums.jsonl", new, capsys=capsys)
    assert code == 0 and "+30.0 points" in out
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    for file in ("sums.jsonl", "sums.run.json"):
        (checkpoint / "thinkgate" / "evals").mkdir(exist_ok=True)
        (checkpoint / "thinkgate" / "evals" / file).write_bytes((new / file).read_bytes())
    code, out, _ = said("eval", "compare", old, checkpoint, capsys=capsys)
    assert code == 0 and "checkpoint right" in out
    record_decision(checkpoint)
    Registry(tmp_path / "registry").promote("production", checkpoint)
    where = ("--registry", tmp_path / "registry")
    code, out, _ = said("eval", "compare", old, "production", *where, capsys=capsys)
    assert code == 0 and "production right" in out and "+30.0 points" in out


def test_runs_of_another_configuration_are_refused_and_what_differs_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = measured(tmp_path, "old", 9)
    new = measured(tmp_path, "new", 3, "--set", "sampling.temperature=0.3")
    code, _, error = said("eval", "compare", old, new, capsys=capsys)
    assert code == 2 and "differ in sampling.temperature" in error and error.count("\n") == 1


def test_verdicts_that_were_edited_do_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = measured(tmp_path, "a", 9) / "sums.jsonl"
    file.write_text(file.read_text().replace('"verdict":"wrong"', '"verdict":"correct"'))
    found = load_record_set(file, "a")
    assert sum(record.verdict is Verdict.WRONG for record in found.records) == 9
    assert "says of 9 recorded answers otherwise" in capsys.readouterr().err


def test_one_id_for_two_problems_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = minimal(tmp_path / "old.jsonl", [True], prompt="1+1")
    new = minimal(tmp_path / "new.jsonl", [True], prompt="1+2")
    code, _, error = said("eval", "compare", old, new, capsys=capsys)
    assert code == 2 and "problem p0 is '1+2' on one side and '1+1' on the other" in error


def test_compare_writes_every_report(tmp_path: Path) -> None:
    base = minimal(tmp_path / "base.jsonl", [True] * 60 + [False] * 40)
    new = minimal(tmp_path / "new.jsonl", [True] * 76 + [False] * 24)
    out = tmp_path / "out"
    assert main(["eval", "compare", str(base), str(new), "--out", str(out)]) == 0
    assert {file.name for file in out.iterdir()} == {
        "report.html",
        "report.json",
        "summary.md",
        "junit.xml",
    }
    entry = json.loads((out / "report.json").read_text())["suites"]["records"]
    assert entry["comparison"]["wins"] == 16 and entry["comparison"]["test"] == "mcnemar"
    assert entry["comparison"]["difference"]["estimate"] == pytest.approx(0.16)
    assert entry["base"]["summary"]["shares"]["accuracy"]["estimate"] == pytest.approx(0.6)
    assert "60.0% → 76.0%" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.jsonl", "a.jsonl"], "none.jsonl: no such file"),
        (["a.jsonl", "empty"], "has no records; measure with 'thinkgate eval'"),
        (["a.jsonl", "production"], "no alias 'production'"),
        (["a.jsonl", "other.jsonl"], "no problem in common"),
        (["a.jsonl", "a.jsonl", "--suite", "gsm8k"], "a.jsonl has no records of gsm8k"),
        (["two", "one"], "no suite of both"),
        (["a.jsonl", "blank.jsonl"], "blank.jsonl has no records"),
    ],
)
def test_compare_mistakes_are_one_sentence(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    minimal(tmp_path / "a.jsonl", [True])
    lines(tmp_path / "other.jsonl", [{"problem_id": "z", "correct": True}])
    lines(tmp_path / "blank.jsonl", [])
    for name in ("two/x", "two/y", "one/z"):
        minimal(tmp_path / f"{name}.jsonl", [True])
    (tmp_path / "empty").mkdir()
    code, _, error = said("eval", "compare", *arguments, capsys=capsys)
    assert code == 2 and words in error and error.count("\n") == 1


def test_what_fresh_set_aside_is_not_compared(tmp_path: Path) -> None:
    out = measured(tmp_path, "run", 3)
    measured(tmp_path, "run", 5, "--fresh")
    assert set(find_record_sets(out)) == {"sums"}


POLICY = "name: mine\nrules:\n  - {rule: non_inferiority, suite: sums, margin: 0.1}\n"
FLOOR = "name: mine\nrules:\n  - {rule: floor, suite: sums, at_least: 0.5}\n"


def gate(tmp_path: Path, policy: str, *arguments: object) -> tuple[int, Decision]:
    (tmp_path / "policy.yaml").write_text(policy)
    out = tmp_path / "gate"
    command = ["gate", "--policy", str(tmp_path / "policy.yaml"), "--out", str(out)]
    code = main([*command, *map(str, arguments)])
    return code, Decision.model_validate_json((out / "decision.json").read_text())


@pytest.mark.parametrize(
    ("right", "code"), [(800, 0), (600, 1), (705, 3)], ids=["pass", "fail", "inconclusive"]
)
def test_the_gate_takes_records_from_anywhere(right: int, code: int, tmp_path: Path) -> None:
    base = minimal(tmp_path / "base.jsonl", [True] * 800 + [False] * 200)
    new = minimal(tmp_path / "new.jsonl", [True] * right + [False] * (1000 - right))
    found, decision = gate(tmp_path, POLICY, "--records", new, "--against", base)
    assert found == code
    assert decision.candidate.startswith("records:") and decision.incumbent is not None
    assert (tmp_path / "gate" / "junit.xml").is_file()


def test_rules_that_need_what_the_records_lack_are_inconclusive_with_the_reason(
    tmp_path: Path,
) -> None:
    rules = "\n".join(
        f"  - {{rule: {rule}, suite: sums, {bound}}}"
        for rule, bound in (
            ("floor", "at_least: 0.5"),
            ("format_rate", "at_least: 0.5"),
            ("truncation_rate", "at_most: 0.5"),
            ("duplicate_rate", "at_most: 0.5"),
            ("contamination", "at_most: 0.0"),
        )
    )
    new = minimal(tmp_path / "new.jsonl", [True] * 100)
    code, decision = gate(tmp_path, f"name: mine\nrules:\n{rules}\n", "--records", new)
    assert code == 3 and decision.suites == {"sums": "unknown"}
    found = {rule.rule: (rule.verdict, rule.why) for rule in decision.rules}
    assert found["floor"][0] is GateVerdict.PASS
    assert found["error_rate"][0] is GateVerdict.PASS
    for rule, why in (
        ("format_rate", "the records have no 'status'"),
        ("truncation_rate", "the records have no 'status'"),
        ("duplicate_rate", "no problem has two answers to compare"),
        ("contamination", "the records do not say what the model was trained on"),
    ):
        assert found[rule] == (GateVerdict.INCONCLUSIVE, why)


def test_problems_that_were_left_away_cannot_pass(tmp_path: Path) -> None:
    """A candidate that reports only what it got right is not better: it is not measured."""
    base = minimal(tmp_path / "base.jsonl", [True] * 500 + [False] * 500)
    new = minimal(tmp_path / "new.jsonl", [True] * 500)
    code, decision = gate(tmp_path, POLICY, "--records", new, "--against", base)
    assert code == 3
    [errors] = [rule for rule in decision.rules if rule.rule == "error_rate"]
    assert errors.estimate == pytest.approx(0.5)
    assert "500 problems are only on the other side" in errors.why


def test_samples_that_were_left_away_cannot_pass(tmp_path: Path) -> None:
    """Nor is one that reports only the better ones of its answers to a problem."""
    rows = [
        {"problem_id": f"p{n}", "sample": sample, "correct": sample < 2}
        for n in range(200)
        for sample in range(4)
    ]
    base = lines(tmp_path / "base.jsonl", rows)
    new = lines(tmp_path / "new.jsonl", [r for n, r in enumerate(rows) if r["correct"] or n % 5])
    for against in (["--against", base], []):
        policy = POLICY if against else FLOOR
        code, decision = gate(tmp_path, policy, "--records", new, *against)
        assert code == 3
        [errors] = [rule for rule in decision.rules if rule.rule == "error_rate"]
        assert "80 samples that others have are not there" in errors.why
        assert errors.estimate == pytest.approx(0.1)


def test_too_many_unmeasured_records_cannot_pass(tmp_path: Path) -> None:
    new = minimal(tmp_path / "new.jsonl", [True] * 90 + [None] * 10)
    assert gate(tmp_path, FLOOR, "--records", new)[0] == 3


def test_a_folder_has_a_file_for_each_suite_of_the_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = FLOOR + "  - {rule: floor, suite: words, at_least: 0.5}\n"
    for name in ("sums", "words"):
        minimal(tmp_path / "new" / f"{name}.jsonl", [True] * 100)
    assert gate(tmp_path, policy, "--records", tmp_path / "new")[0] == 0
    capsys.readouterr()
    (tmp_path / "policy.yaml").write_text(policy)
    command = ["gate", "--policy", str(tmp_path / "policy.yaml"), "--records"]
    assert main([*command, str(tmp_path / "new" / "sums.jsonl")]) == 2
    assert "asks for words; name a folder with words.jsonl" in capsys.readouterr().err


def test_a_decision_about_records_promotes_nothing(tmp_path: Path) -> None:
    new = minimal(tmp_path / "new.jsonl", [True] * 100)
    _, decision = gate(tmp_path, FLOOR, "--records", new)
    assert decision.verdict is GateVerdict.PASS
    folder = make_checkpoint(tmp_path / "model")
    (folder / "thinkgate" / "decision.json").write_text(decision.model_dump_json())
    with pytest.raises(CheckpointError, match="is about records"):
        gated(load_checkpoint(folder))


def test_two_files_need_no_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of any tool, or ours: nothing is asked but that they are about the same problems."""
    base = minimal(tmp_path / "base.jsonl", [True] * 800 + [False] * 200)
    new = minimal(tmp_path / "new.jsonl", [True] * 800 + [False] * 200)
    assert main(["gate", "--records", str(new), "--against", str(base)]) == 0
    assert "policy records" in capsys.readouterr().out
    minimal(tmp_path / "several" / "a.jsonl", [True])
    minimal(tmp_path / "several" / "b.jsonl", [True])
    command = ["gate", "--records", str(tmp_path / "several"), "--against", str(base)]
    assert main(command) == 2
    assert "are about a, b; name one file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    ["--limit=5", "--data-dir=d", "--fresh", "--cache=c", "--key=k", "--no-sign", "--sequential"],
)
def test_records_refuse_what_would_have_no_effect(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = minimal(tmp_path / "new.jsonl", [True] * 10)
    assert main(["gate", "--records", str(new), "--against", str(new), option]) == 2
    error = capsys.readouterr().err
    assert f"{option.partition('=')[0]} is for measuring" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name one candidate"),
        (["model", "--records", "x.jsonl"], "name one candidate"),
        (["--records", "x.jsonl"], "name one with --against"),
    ],
)
def test_gate_mistakes_are_one_sentence(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "policy.yaml").write_text(POLICY)
    assert main(["gate", "--policy", str(tmp_path / "policy.yaml"), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
