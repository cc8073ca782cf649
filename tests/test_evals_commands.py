"""`thinkgate eval` and `thinkgate gate` from the command line, with a scripted server in the place
of vLLM; the real one is in the end-to-end test."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from scripted_endpoint import Fails, Says, ScriptedEndpoint, prompt_of
from scripted_servers import RANK, Servers, checkpoint

from thinkgate.answers import Verdict
from thinkgate.checkpoint import (
    Decision,
    GateVerdict,
    gated,
    load_checkpoint,
    read_decision,
)
from thinkgate.cli import main
from thinkgate.errors import CheckpointError
from thinkgate.problems import prompt_key
from thinkgate.provenance import verify
from thinkgate.provenance.envelope import open_envelope
from thinkgate.provenance.keys import trusted_keys
from thinkgate.registry import Registry
from thinkgate_evals.measure import records_folder
from thinkgate_evals.policy import load_policy
from thinkgate_evals.power import UNKNOWN, detectable
from thinkgate_evals.records import read_records

SOME = ("--limit", "300")


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Servers:
    servers = Servers()
    monkeypatch.setattr("thinkgate_clients.local.local_server", servers.serve)
    monkeypatch.chdir(tmp_path)
    return servers


def test_eval_leaves_records_and_reports_in_the_checkpoint(
    servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weak = checkpoint(tmp_path / "weak")
    command = ["eval", str(weak), "--suite", "arithmetic", "--limit", "40"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "100.0%" in shown and "91.2% to 100.0%" in shown
    assert "40/40" in shown and "accuracy 100% (91 to" in shown  # as it stood while it ran
    assert len(read_records(weak / "thinkgate/evals/arithmetic.jsonl")) == 40
    report = json.loads((weak / "thinkgate/evals/report.json").read_text())
    assert report["suites"]["arithmetic"]["summary"]["shares"]["accuracy"]["estimate"] == 1.0
    assert report["model"] == load_checkpoint(weak).digest
    assert "<!doctype html>" in (weak / "thinkgate/evals/report.html").read_text()
    # Again: nothing is left to measure, so no server is started.
    assert main(command) == 0
    assert servers.started == ["weak"]
    assert "91.2% to 100.0%" in capsys.readouterr().out


def test_eval_of_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "mine.jsonl"
    data.write_text('{"prompt": "1+1", "gold": "2"}\n')
    models = ({"id": "org/big"}, {"id": "small"})
    with ScriptedEndpoint(lambda _: Says("2", "one, one"), models=models) as endpoint:
        command = ["eval", endpoint.base_url, "--suite", f"jsonl:{data}", "--model", "org/big"]
        assert main([*command, "--samples", "2", "--set", "sampling.temperature=0.2"]) == 0
        assert [(r["model"], r["temperature"]) for r in endpoint.requests] == [("org/big", 0.2)] * 2
    assert len(read_records(tmp_path / "runs/evals/org-big/mine.jsonl")) == 2


def test_the_plan_is_said_before_the_first_sample(
    servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weak, strong = checkpoint(tmp_path / "weak"), checkpoint(tmp_path / "strong")
    answer = servers.script

    def script(name: str, body: dict[str, Any]) -> Says | Fails:
        shown.append(capsys.readouterr().out)
        return answer(name, body)

    shown: list[str] = []
    servers.script = script
    assert main(["eval", str(weak), "--suite", "arithmetic", "--limit", "40"]) == 0
    effect = f"{100 * detectable(40, 1, UNKNOWN):.1f} points"
    assert f"40 problems with 1 answer each find a difference from {effect}" in shown[0]
    shown.clear()
    assert gate(strong, "--policy", "quickstart", "--against", weak, "--limit", "15") == 3
    # The incumbent's 40 recorded answers, all right, say how easy the problems are.
    assert "superiority by 8 points takes" in shown[0] and "planned are too few" in shown[0]
    assert "supposing" not in shown[0]


def test_an_endpoint_that_ignores_seeds_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "mine.jsonl"
    data.write_text('{"prompt": "1+1", "gold": "2"}\n')
    command = ["--suite", f"jsonl:{data}", "--samples", "4", "--fresh"]
    with ScriptedEndpoint(lambda _: Says("2", "one, one")) as endpoint:
        assert main(["eval", endpoint.base_url, *command]) == 0
        warning = capsys.readouterr().err
        assert "ignores seeds" in warning and "4 samples are worth 1" in warning
        assert main(["eval", endpoint.base_url, *command, "--set", "sampling.temperature=0"]) == 0
        assert capsys.readouterr().err == ""
        endpoint.script = lambda body: Says("2", f"{body['seed']}")
        assert main(["eval", endpoint.base_url, *command]) == 0
        assert capsys.readouterr().err == ""


def test_eval_of_several_suites_starts_one_server(servers: Servers, tmp_path: Path) -> None:
    weak = checkpoint(tmp_path / "weak")
    data = tmp_path / "mine.jsonl"
    data.write_text('{"prompt": "1+1", "gold": "2"}\n')
    servers.script = lambda _, body: Says("2")
    command = ["eval", str(weak), "--suite", "arithmetic,countdown", "--suite", f"jsonl:{data}"]
    assert main([*command, "--limit", "3", "--out", str(tmp_path / "out")]) == 0
    assert servers.started == ["weak"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert set(report["suites"]) == {"arithmetic", "countdown", "mine"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<section") == 3 and 'href="#suite-2"' in page


def gate(*arguments: str | Path) -> int:
    return main(["gate", *map(str, arguments)])


def decision_of(folder: Path) -> Decision:
    decision = read_decision(load_checkpoint(folder))
    assert decision is not None
    return decision


def test_a_better_candidate_passes_and_can_be_promoted(
    servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weak, strong = checkpoint(tmp_path / "weak"), checkpoint(tmp_path / "strong")
    assert gate(strong, "--policy", "quickstart", "--against", weak, *SOME) == 0
    assert "PASS" in capsys.readouterr().out
    assert servers.started == ["strong", "weak"]
    decision = decision_of(strong)
    assert decision.candidate == load_checkpoint(strong).digest
    assert decision.incumbent == load_checkpoint(weak).digest
    assert decision.rules[0].estimate == pytest.approx(0.13) and decision.rules[0].n == 300
    assert gated(load_checkpoint(strong)).id == decision.id
    Registry(tmp_path / "registry").promote("production", strong)
    page = (strong / "thinkgate/report.html").read_text()
    assert "70.0% → 83.0%" in page and "wrong → correct" in page
    assert decision.id in page
    report = json.loads((strong / "thinkgate/report.json").read_text())
    assert report["decision"]["id"] == decision.id
    # Everything is recorded: the same decision again, and an alias as the incumbent.
    assert gate(strong, "--policy", "quickstart", "--against", weak, *SOME) == 0
    registry = ("--registry", tmp_path / "registry", *SOME)
    assert gate(weak, "--policy", "quickstart", "--against", "production", *registry) == 1
    assert servers.started == ["strong", "weak"]
    assert decision_of(strong).id == decision.id


@pytest.fixture
def passed(servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A checkpoint that passed, signed."""
    weak, strong = checkpoint(tmp_path / "weak"), checkpoint(tmp_path / "strong")
    assert gate(strong, "--policy", "quickstart", "--against", weak, *SOME) == 0
    assert "signed   by " in capsys.readouterr().out
    verify(strong, trusted_keys()).require()
    servers.started.clear()
    return strong


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_measuring_a_signed_checkpoint_leaves_it_as_it_is(
    servers: Servers, passed: Path, tmp_path: Path
) -> None:
    before = contents(passed)
    measure = ["eval", str(passed), "--suite", "arithmetic", "--limit"]
    assert main([*measure, "300"]) == 0
    assert servers.started == []  # the records inside were taken along
    assert main([*measure, "310"]) == 0
    assert main([*measure, "300", "--second-grader", "math-verify"]) == 0
    assert main([*measure, "20", "--fresh"]) == 0
    beside = records_folder(passed)
    assert beside.parent == tmp_path / "strong.evals"
    assert len(read_records(beside / "arithmetic.old.jsonl")) == 310
    assert (beside / "report.html").is_file()
    weak = tmp_path / "weak"
    assert gate(weak, "--policy", "quickstart", "--against", passed, *SOME) == 1
    assert main(["eval", "compare", str(weak), str(passed)]) == 0
    assert contents(passed) == before
    verify(passed, trusted_keys()).require()


@pytest.mark.parametrize("signed", [True, False])
def test_an_incumbent_in_a_store_that_may_not_be_written(
    signed: bool, servers: Servers, passed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store").mkdir()
    incumbent = passed.rename(tmp_path / "store" / "strong")
    if not signed:
        (incumbent / "thinkgate/signature.json").unlink()
    before, access = contents(tmp_path / "store"), os.access
    # Not by mode: tests may run as root, who may write all the same.
    monkeypatch.setattr(os, "access", lambda p, mode: "store" not in str(p) and access(p, mode))
    for limit in ("300", "310"):
        command = ["--policy", "quickstart", "--against", str(incumbent), "--limit", limit]
        assert gate(tmp_path / "weak", *command) == 1
    assert servers.started == ["weak", "strong"]  # the 300 recorded inside were taken along
    kept = tmp_path / "runs/evals" / load_checkpoint(incumbent).digest[:12] / "arithmetic.jsonl"
    assert len(read_records(kept)) == 310
    assert contents(tmp_path / "store") == before


def test_a_signed_checkpoint_is_judged_again_by_who_can_sign_it(
    servers: Servers,
    passed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = contents(passed)
    again = (passed, "--policy", "smoke", "--limit", "310")
    for no_key in (("--no-sign",), ()):
        monkeypatch.setenv("THINKGATE_KEYS", str(tmp_path / "none"))
        assert gate(*again, *no_key) == 2
        said = capsys.readouterr().err
        assert "is signed" in said and "--key" in said and "--out" in said
    assert gate(*again, "--out", tmp_path / "judged") == 0
    assert (tmp_path / "judged" / "decision.json").is_file()
    assert contents(passed) == before
    monkeypatch.undo()
    monkeypatch.setattr("thinkgate_clients.local.local_server", servers.serve)
    assert gate(*again) == 0
    _, decision, _ = verify(passed, trusted_keys()).require()
    assert decision.policy == "smoke"
    assert len(read_records(passed / "thinkgate/evals/arithmetic.jsonl")) == 310


def test_a_signed_checkpoint_that_fails_later_is_refused_from_then_on(
    servers: Servers, passed: Path, tmp_path: Path
) -> None:
    assert gate(passed, "--policy", "quickstart", "--against", passed, *SOME) == 1
    with pytest.raises(CheckpointError, match="the gate said FAIL"):
        verify(passed, trusted_keys()).require()
    with pytest.raises(CheckpointError, match="the gate said FAIL"):
        Registry(tmp_path / "registry").promote("production", passed)


def test_an_alias_whose_folder_was_trained_into_again_is_no_incumbent(
    servers: Servers, passed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise the new model would be compared with itself, and be no worse."""
    root = tmp_path / "registry"
    Registry(root).promote("production", passed)
    shutil.rmtree(passed)
    shutil.copytree(tmp_path / "weak", passed)
    for command in (
        ["gate", str(passed), "--policy", "quickstart", "--against", "production"],
        ["eval", "production", "--suite", "arithmetic"],
        ["eval", "compare", "production", str(passed)],
    ):
        assert main([*command, "--registry", str(root)]) == 2
        assert "alias 'production' was promoted with digest" in capsys.readouterr().err


def test_an_alias_is_not_a_folder_of_that_name(
    servers: Servers, passed: Path, tmp_path: Path
) -> None:
    """As for `serve` and `show`."""
    Registry(tmp_path / "registry").promote("production", passed)
    checkpoint(tmp_path / "production")
    command = ["--policy", "quickstart", "--against", "production", *SOME, "--out", "judged"]
    assert gate(tmp_path / "weak", *command, "--registry", tmp_path / "registry") == 1
    decision = json.loads((tmp_path / "judged" / "decision.json").read_text())
    assert decision["incumbent"] == load_checkpoint(passed).digest


@pytest.mark.parametrize("place", ["strong", "strong/eval", "strong/thinkgate/evals"])
def test_nothing_is_written_among_the_files_of_a_checkpoint(
    place: str, servers: Servers, passed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(passed)
    few = ["--suite", "arithmetic", "--limit", "3"]
    for command in (
        ["eval", "weak", *few, "--out", place],
        ["eval", "weak", *few, "--cache", f"{place}/answers.sqlite"],
        ["gate", "weak", "--policy", "smoke", "--out", place],
        ["eval", "compare", "weak", "strong", "--out", place],
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "lies in the checkpoint" in error and "choose a place outside" in error
    assert contents(passed) == before
    # What is not signed yet has its records inside.
    assert main(["eval", "weak", *few, "--out", "weak/thinkgate/evals"]) == 0
    assert main(["eval", "weak", *few, "--out", "weak"]) == 2


def test_recorded_answers_have_the_verdicts_of_the_verifier_as_it_is_now(
    servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether an older verifier wrote the record, or somebody with an editor."""
    weak, strong = checkpoint(tmp_path / "weak"), checkpoint(tmp_path / "strong")
    command = ["--policy", "quickstart", "--against", str(strong), *SOME]
    assert gate(weak, *command) == 1
    before = decision_of(weak)
    path = weak / "thinkgate/evals/arithmetic.jsonl"
    path.write_text(path.read_text().replace('"verdict":"wrong"', '"verdict":"correct"'))
    capsys.readouterr()
    assert gate(weak, *command) == 1
    assert "the verifier says of 90 recorded answers otherwise" in capsys.readouterr().err
    assert decision_of(weak).id == before.id
    assert sum(r.verdict is Verdict.WRONG for r in read_records(path)) == 90
    assert gate(weak, *command) == 1
    assert "otherwise" not in capsys.readouterr().err


def test_wherever_a_gate_is_interrupted_nothing_unproven_is_left(
    servers: Servers, passed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It passed, and now it would fail: the old proof holds, or none does."""
    original, before = passed.rename(tmp_path / "original"), contents(tmp_path / "original")
    failing = (passed, "--policy", "quickstart", "--against", passed, *SOME)
    fsync, writes, states = os.fsync, 0, set[bool]()

    def interrupted(file: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        fsync(file)

    monkeypatch.setattr(os, "fsync", interrupted)
    while True:
        left = writes = writes + 1
        shutil.copytree(original, passed)
        if gate(*failing) != 130:
            break
        untouched = contents(passed) == before
        states.add(untouched)
        assert untouched or verify(passed, trusted_keys()).refused
        shutil.rmtree(passed)
    assert writes > 6 and False in states


def test_without_a_key_a_pass_is_unsigned_and_says_so(
    servers: Servers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    strong = checkpoint(tmp_path / "strong")
    with monkeypatch.context() as patch:
        patch.setenv("THINKGATE_KEYS", "")
        assert gate(strong, "--policy", "smoke", "--limit", "60") == 0
    assert f"'thinkgate sign {strong}'" in capsys.readouterr().out.replace("\n", " ")
    with pytest.raises(CheckpointError, match=r"unsigned: no thinkgate/signature\.json"):
        Registry(tmp_path / "registry").promote("production", strong)
    assert main(["sign", str(strong)]) == 0
    Registry(tmp_path / "registry").promote("production", strong)


def test_an_equal_and_a_worse_candidate_fail(servers: Servers, tmp_path: Path) -> None:
    weak, strong = checkpoint(tmp_path / "weak"), checkpoint(tmp_path / "strong")
    same = checkpoint(tmp_path / "same")
    assert gate(same, "--policy", "quickstart", "--against", weak, *SOME) == 1
    assert gate(weak, "--policy", "quickstart", "--against", strong, *SOME) == 1
    for folder in (same, weak):
        assert decision_of(folder).verdict is GateVerdict.FAIL
        sealed = (folder / "thinkgate/decision.intoto.json").read_bytes()
        assert open_envelope(sealed, trusted_keys())[0]["predicate"]["result"] == "FAILED"
        assert not (folder / "thinkgate/signature.json").exists()


def test_too_few_problems_are_inconclusive(
    servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weak, strong = checkpoint(tmp_path / "weak"), checkpoint(tmp_path / "strong")
    assert gate(strong, "--policy", "quickstart", "--against", weak, "--limit", "15") == 3
    assert "INCONCLUSIVE" in capsys.readouterr().out
    assert decision_of(strong).verdict is GateVerdict.INCONCLUSIVE


def test_failed_requests_are_inconclusive(servers: Servers, tmp_path: Path) -> None:
    weak = checkpoint(tmp_path / "weak")
    answer = servers.script

    def script(name: str, body: dict[str, Any]) -> Says | Fails:
        return Fails(400) if RANK[prompt_of(body)] % 20 == 0 else answer(name, body)

    servers.script = script
    assert gate(weak, "--policy", "smoke", "--limit", "60") == 3
    rules = {rule.rule: rule for rule in decision_of(weak).rules}
    assert rules["error_rate"].estimate == pytest.approx(0.05)
    # The server has recovered: what failed is measured again, the rest is not.
    servers.script = answer
    assert gate(weak, "--policy", "smoke", "--limit", "60") == 0


def test_a_candidate_trained_on_the_problems_fails(servers: Servers, tmp_path: Path) -> None:
    seen = frozenset({prompt_key(next(iter(RANK)))})
    strong = checkpoint(tmp_path / "strong", seen)
    assert gate(strong, "--policy", "smoke", "--limit", "60") == 1


def test_the_policys_limit_holds_where_none_is_given(servers: Servers, tmp_path: Path) -> None:
    strong = checkpoint(tmp_path / "strong")
    assert gate(strong, "--policy", "smoke") == 0
    assert decision_of(strong).rules[0].n == 200


def test_no_decision_without_a_report(
    servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strong = checkpoint(tmp_path / "strong")
    (strong / "thinkgate" / "report.html").mkdir()
    assert gate(strong, "--policy", "smoke", "--limit", "60") == 2
    error = capsys.readouterr().err
    assert "report.html" in error and error.count("\n") == 1
    assert read_decision(load_checkpoint(strong)) is None


def test_a_decision_that_was_there_goes_before_a_report_that_cannot_be_written(
    servers: Servers, tmp_path: Path
) -> None:
    strong = checkpoint(tmp_path / "strong")
    assert gate(strong, "--policy", "smoke", "--limit", "60", "--no-sign") == 0
    (strong / "thinkgate" / "report.html").unlink()
    (strong / "thinkgate" / "report.html").mkdir()
    assert gate(strong, "--policy", "smoke", "--limit", "60", "--no-sign") == 2
    with pytest.raises(CheckpointError, match="no gate decision"):
        gated(load_checkpoint(strong))


def test_another_template_than_the_incumbents_is_refused_before_anything_is_asked(
    servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weak = checkpoint(tmp_path / "weak")
    strong = checkpoint(tmp_path / "strong", chat_template="other")
    assert gate(strong, "--policy", "quickstart", "--against", weak, *SOME) == 2
    assert "differ in chat_template_sha256" in capsys.readouterr().err
    assert servers.started == [] and read_decision(load_checkpoint(strong)) is None
    policy = tmp_path / "p.yaml"
    rule = "{rule: superiority, suite: arithmetic}"
    policy.write_text(f"name: p\ntemplate_change: allow\nrules: [{rule}]\n")
    assert gate(strong, "--policy", policy, "--against", weak, *SOME) == 0


def test_records_without_a_suite_of_the_policy_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "other.jsonl").write_text('{"problem_id": 1, "correct": true}\n')
    assert main(["gate", "--records", str(tmp_path / "a"), "--policy", "smoke"]) == 2
    assert "asks for arithmetic" in capsys.readouterr().err


def readme(kind: str) -> list[str]:
    """The code blocks of one kind in the README of this part."""
    text = (Path(__file__).parent.parent / "evals" / "README.md").read_text()
    return re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)


def test_the_commands_of_the_readme_run(
    servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("base", "grpo"):
        checkpoint(tmp_path / "runs" / "quickstart" / name)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "gsm8k_test.jsonl").write_text('{"question": "?", "answer": "#### 1"}\n')
    (tmp_path / "mine.jsonl").write_text('{"prompt": "1+1", "gold": "2"}\n')
    (tmp_path / "train.jsonl").write_text('{"prompt": "Nothing of the kind."}\n')
    records = [{"problem_id": n, "correct": True} for n in range(2000)]
    for name in ("new", "old"):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))
    rule = "{rule: non_inferiority, suite: sums, margin: 0.01}"
    (tmp_path / "mine.yaml").write_text(f"name: mine\nrules: [{rule}]\n")
    monkeypatch.setenv("MY_KEY", "key")
    answer = servers.script

    def script(name: str, body: dict[str, Any]) -> Says | Fails:
        return answer(name, body) if prompt_of(body) in RANK else Says("2")

    servers.script = script
    commands = "".join(readme("sh")).splitlines()
    assert len(commands) == 9
    with ScriptedEndpoint(lambda _: Says("2"), models=({"id": "big"},)) as endpoint:
        for command in commands:
            words = shlex.split(command.replace("http://127.0.0.1:8000/v1", endpoint.base_url))
            assert words[0] == "thinkgate" and main(words[1:]) == 0, command


def test_the_policy_of_the_readme_is_one(tmp_path: Path) -> None:
    [text] = readme("yaml")
    (tmp_path / "mine.yaml").write_text(text)
    assert len({rule.rule for rule in load_policy(str(tmp_path / "mine.yaml")).rules}) == 12


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no suite": (["eval", "weak", "--suite", "arithmetics"], "did you mean 'arithmetic'"),
    "empty suite": (["eval", "weak", "--suite", "gsm8k,"], "empty name"),
    "no folder": (["eval", "runs/none", "--suite", "arithmetic"], "no such checkpoint folder"),
    "no alias": (["eval", "none", "--suite", "arithmetic"], "no alias 'none'"),
    "no manifest": (["eval", "empty", "--suite", "arithmetic"], "manifest.json"),
    "changed weights": (["eval", "changed", "--suite", "arithmetic"], "a file was changed"),
    "limit 0": (["eval", "weak", "--suite", "arithmetic", "--limit", "0"], "--limit is 0"),
    "samples 0": (["eval", "weak", "--suite", "arithmetic", "--samples", "-1"], "--samples is -1"),
    "suite twice": (["eval", "weak", *["--suite", "arithmetic"] * 2], "given twice"),
    "no data": (["eval", "weak", "--suite", "gsm8k", "--data-dir", "."], "gsm8k_test.jsonl"),
    "no problems": (["eval", "weak", "--suite", "jsonl:none.jsonl"], "no such file"),
    "bad override": (
        ["eval", "weak", "--suite", "arithmetic", "--set", "sampling.temperatur=1"],
        "did you mean 'temperature'",
    ),
    "nobody there": (["eval", "http://127.0.0.1:9/v1", "--suite", "arithmetic"], "running?"),
    "no time": (["eval", "http://x/v1", "--suite", "arithmetic", "--timeout", "nan"], "nan"),
    "long name": (["eval", "weak", "--suite", "a" * 5000], "use a shorter name"),
    "no key": (
        ["eval", "http://x/v1", "--suite", "arithmetic", "--api-key-env", "NO_KEY"],
        "NO_KEY",
    ),
    "no policy": (["gate", "weak", "--policy", "quick"], "no shipped one"),
    "no incumbent": (["gate", "weak", "--policy", "quickstart"], "--against"),
    "no such incumbent": (
        ["gate", "weak", "--policy", "quickstart", "--against", "production"],
        "no alias 'production'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_sentence_and_exit_code_2(
    mistake: str, servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(tmp_path / "weak")
    shutil.copytree(checkpoint(tmp_path / "strong"), tmp_path / "changed")
    (tmp_path / "changed" / "config.json").write_text("another model")
    (tmp_path / "empty").mkdir()
    arguments, words = MISTAKES[mistake]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert servers.started == []


def test_a_server_that_dies_is_a_mistake_that_names_its_log(
    servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weak = checkpoint(tmp_path / "weak")
    servers.script = lambda *_: Fails(401, {"message": "gone mad"})
    assert main(["eval", str(weak), "--suite", "arithmetic", "--limit", "5"]) == 2
    error = capsys.readouterr().err
    assert "gone mad" in error and "server.log" in error and error.count("\n") == 1


def test_a_policys_name_is_shown_as_it_is(
    servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "mine.yaml"
    rule = "{rule: error_rate, suite: arithmetic, at_most: 0.1}"
    policy.write_text(f'name: "mine [/x]"\nlimit: 3\nrules: [{rule}]\n')
    assert gate(checkpoint(tmp_path / "weak"), "--policy", policy) == 0
    assert "mine [/x]" in capsys.readouterr().out


def test_nothing_measured_is_a_mistake_and_not_a_result(
    servers: Servers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weak = checkpoint(tmp_path / "weak")
    servers.script = lambda *_: Fails(400, {"message": "prompt too long"})
    assert main(["eval", str(weak), "--suite", "arithmetic", "--limit", "5"]) == 2
    error = capsys.readouterr().err
    assert "none of 5 samples" in error and "prompt too long" in error
