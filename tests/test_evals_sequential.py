"""`thinkgate gate --sequential`: on scripted servers over a socket, and on real vLLM."""

import json
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from conftest import LESSONS
from scripted_servers import RANK, Servers, checkpoint

from thinkgate.checkpoint import Decision, GateVerdict, RuleResult, load_checkpoint, read_decision
from thinkgate.cli import main
from thinkgate.problems import prompt_key
from thinkgate_clients.local import LocalServer
from thinkgate_evals.measure import records_folder
from thinkgate_evals.records import Record, read_records
from thinkgate_evals.sequential import FIRST, until_decided

PASS, FAIL, INCONCLUSIVE = GateVerdict.PASS, GateVerdict.FAIL, GateVerdict.INCONCLUSIVE


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Servers:
    servers = Servers()
    monkeypatch.setattr("thinkgate_clients.local.local_server", servers.serve)
    monkeypatch.chdir(tmp_path)
    return servers


@pytest.fixture
def models(servers: Servers, tmp_path: Path) -> dict[str, Path]:
    return {name: checkpoint(tmp_path / name) for name in ("weak", "strong", "same")}


def gate(candidate: Path, incumbent: Path, *options: str, **rule: Any) -> tuple[int, Decision]:
    """Exit code and decision of a sequential gate with one rule about `arithmetic`."""
    rules = [{"suite": "arithmetic", **rule}, {"rule": "contamination", "suite": "arithmetic"}]
    policy = candidate.parent / "policy.yaml"
    policy.write_text(json.dumps({"name": "p", "rules": rules}))
    command = ["gate", str(candidate), "--against", str(incumbent), "--policy", str(policy)]
    code = main([*command, "--sequential", *options])
    decision = read_decision(load_checkpoint(candidate))
    assert decision is not None
    return code, decision


def recorded(model: Path) -> list[Record]:
    return read_records(records_folder(model) / "arithmetic.jsonl")


BETTER = {"rule": "superiority"}


def test_it_stops_as_soon_as_the_policy_is_decided(
    servers: Servers, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code, decision = gate(models["strong"], models["weak"], "--order-seed", "7", **BETTER)
    run = decision.sequential
    assert (code, decision.verdict) == (0, PASS) and run is not None
    assert run.order_seed == 7 and run.planned == 2000 and run.used < 1000
    assert sorted(servers.started) == ["strong", "weak"], "each server starts once"
    ours, theirs = recorded(models["strong"]), recorded(models["weak"])
    assert len(ours) + len(theirs) == run.used and decision.rules[0].n == len(ours)
    assert {r.problem_id for r in ours} == {r.problem_id for r in theirs}
    # A random order: not the first ones of the file.
    assert sorted(RANK[r.prompt or ""] for r in ours) != list(range(len(ours)))
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{run.used:,} of 2,000 planned samples in {run.looks} looks" in shown
    assert "random order of seed 7" in shown
    page = (models["strong"] / "thinkgate" / "report.html").read_text()
    summary = (models["strong"] / "thinkgate" / "summary.md").read_text()
    assert "planned samples" in page and "planned samples" in summary


def test_it_goes_on_where_it_was_killed_and_decides_the_same(
    servers: Servers, models: dict[str, Path]
) -> None:
    asked: list[str] = []
    answer = servers.answer

    def script(name: str, body: dict[str, Any]) -> Any:
        asked.append(name)
        return answer(name, body)

    servers.script = script
    _, first = gate(models["strong"], models["weak"], **BETTER)
    path = records_folder(models["strong"]) / "arithmetic.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:50]) + lines[50][:40])  # what kill -9 leaves
    asked.clear()
    code, again = gate(models["strong"], models["weak"], **BETTER)
    assert code == 0 and again.id == first.id and again.sequential == first.sequential
    assert asked == ["strong"] * (len(lines) - 50)
    # Nothing is missing any more, so nothing is asked.
    asked.clear()
    assert gate(models["strong"], models["weak"], **BETTER)[1].id == first.id and not asked
    # Afresh, once, and not once a look.
    assert gate(models["strong"], models["weak"], "--fresh", **BETTER)[1].id == first.id
    assert first.sequential and len(asked) == first.sequential.used


def test_an_equal_model_is_not_worse_and_not_better(models: dict[str, Path]) -> None:
    rule = {"rule": "non_inferiority", "margin": 0.05}
    code, decision = gate(models["same"], models["weak"], **rule)
    run = decision.sequential
    assert code == 0 and run is not None and run.used < run.planned
    code, decision = gate(models["same"], models["weak"], "--limit", "200", **BETTER)
    run = decision.sequential
    assert (code, decision.verdict) == (3, INCONCLUSIVE), "undecided at the cap"
    assert run is not None and run.used == run.planned == 400


def test_a_worse_model_fails_early(models: dict[str, Path]) -> None:
    rule = {"rule": "non_inferiority", "margin": 0.01}
    code, decision = gate(models["weak"], models["strong"], **rule)
    assert (code, decision.verdict) == (1, FAIL)
    assert decision.sequential is not None and decision.sequential.used < 2000


def test_what_training_tells_costs_no_sample(
    servers: Servers, tmp_path: Path, models: dict[str, Path]
) -> None:
    cheat = checkpoint(tmp_path / "cheat", frozenset({prompt_key(next(iter(RANK)))}))
    code, decision = gate(cheat, models["weak"], **BETTER)
    assert code == 1 and servers.started == []
    assert decision.sequential is not None and decision.sequential.used == 0


def test_a_suite_that_is_decided_is_asked_no_further() -> None:
    seen: list[dict[str, int]] = []

    def look(sizes: Mapping[str, int]) -> list[RuleResult]:
        seen.append(dict(sizes))
        enough = {"a": 100, "b": 10_000}
        return [
            RuleResult(
                rule="floor",
                suite=suite,
                metric="accuracy",
                estimate=None,
                low=None,
                high=None,
                n=size,
                threshold=0.5,
                verdict=PASS if size >= enough[suite] else INCONCLUSIVE,
                why="",
            )
            for suite, size in sizes.items()
        ]

    sizes, looks = until_decided({"a": 500, "b": 500}, look)
    assert sizes == {"a": 2 * FIRST, "b": 500} and looks == len(seen)
    assert seen[0] == {"a": 0, "b": 0}
    assert [s["b"] for s in seen] == sorted({s["b"] for s in seen}), "each look sees more"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--records", "x.jsonl", "--sequential"], "--sequential"),
        (["weak", "--order-seed", "3"], "--order-seed"),
    ],
)
def test_mistakes(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", "--policy", "smoke", *options]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_on_real_vllm(
    served: LocalServer,
    gated_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tiny model knows its lessons by heart; 64 of 400 are enough to see it."""
    model = tmp_path / "model"
    shutil.copytree(gated_checkpoint, model)
    monkeypatch.setattr(
        "thinkgate_clients.local.local_server", lambda *_, **__: nullcontext(served)
    )
    golds = {"closed": "15", "empty": "42"}
    assert golds.keys() <= LESSONS.keys()
    rows = [{"prompt": word, "gold": gold} for word, gold in golds.items()] * 200
    (tmp_path / "lessons.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = {
        "name": "lessons",
        "data": {"source": "jsonl", "path": str(tmp_path / "lessons.jsonl")},
        "sampling": {"temperature": 0, "max_tokens": 64},
    }
    (tmp_path / "suite.yaml").write_text(json.dumps(suite))
    about = {"suite": str(tmp_path / "suite.yaml")}
    rules = [
        {"rule": "floor", "at_least": 0.8, **about},
        {"rule": "tokens_per_correct", "at_most": 60, **about},
    ]
    (tmp_path / "policy.yaml").write_text(json.dumps({"name": "p", "rules": rules}))
    assert (
        main(["gate", str(model), "--policy", str(tmp_path / "policy.yaml"), "--sequential"]) == 0
    )
    decision = read_decision(load_checkpoint(model))
    assert decision is not None and decision.sequential is not None
    assert 0 < decision.sequential.used < decision.sequential.planned == 400
    records = read_records(records_folder(model) / "lessons.jsonl")
    assert len(records) == decision.sequential.used
    assert all(record.model_digest == decision.candidate for record in records)
