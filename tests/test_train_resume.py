"""Interrupted runs: Ctrl-C saves, kill -9 loses a few steps at most, and --resume ends up where
the run would have ended."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_MODEL

from thinkgate.checkpoint import Checkpoint, load_checkpoint
from thinkgate.cli import main
from thinkgate_train import run
from thinkgate_train.run_state import RunState

TINY = [
    *TINY_MODEL,
    "data.count=256",
]
GRPO = [
    "trl.max_steps=8",
    "trl.per_device_train_batch_size=8",
    "trl.num_generations=4",
    "trl.max_completion_length=16",
    "trl.save_steps=2",
    "data.count=6",  # three steps are an epoch, whose order of prompts must be found again
    "preflight.enabled=false",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("resume") / "base"
    settings = ["trl.max_steps=30", "trl.warmup_steps=3"]
    assert main(["train", "quickstart-sft", *TINY, *settings, "--out", str(out)]) == 0
    return out


def rewards(checkpoint: Checkpoint) -> list[tuple[int, float]]:
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in checkpoint.meta("metrics.jsonl").read_text().splitlines()
    ]
    return [(row["step"], row["reward"]) for row in rows if "reward" in row]


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "thinkgate", *arguments])


def wait_for_step(out: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while RunState(out).latest() < step:
        assert process.poll() is None, "the run ended before it could be interrupted"
        assert time.monotonic() < deadline, f"no state of step {step} after four minutes"
        time.sleep(0.02)


@pytest.mark.slow
def test_killed_and_resumed_it_ends_as_if_uninterrupted(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "quickstart-grpo", f"model.path={base}", *GRPO]
    whole = tmp_path / "whole"
    assert main([*command, "--out", str(whole)]) == 0
    broken = tmp_path / "broken"
    process = start([*command, "--out", str(broken)])
    wait_for_step(broken, 4, process)
    process.kill()
    process.wait()
    assert not broken.exists()
    assert main([*command, "--out", str(broken)]) == 2
    assert "an interrupted run has reached step" in capsys.readouterr().err
    assert main([*command, "--out", str(broken), "seed=1", "--resume"]) == 2
    assert "had another seed" in capsys.readouterr().err
    assert main([*command, "--out", str(broken), "--resume"]) == 0
    resumed = load_checkpoint(broken)
    # The random states are saved with the weights, so the same rollouts are drawn again; the
    # engine's log-probabilities and the trainer's agree as they did.
    assert rewards(resumed) == rewards(load_checkpoint(whole))
    assert resumed.digest == load_checkpoint(whole).digest
    assert not RunState(broken).folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_says_how_to_go_on(
    base: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    command = ["train", "quickstart-grpo", f"model.path={base}", *GRPO, "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "thinkgate", *command, "trl.max_steps=500", "trl.save_steps=400"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    metrics = RunState(out).folder / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    printed, said = process.communicate(timeout=120)
    assert process.returncode == 130
    step = RunState(out).latest()
    assert step >= 2
    assert f"step {step} is saved; --resume goes on from it" in printed
    assert "Traceback" not in said
    settings = [f"trl.max_steps={step + 1}", "trl.save_steps=400"]
    assert main([*command, *settings, "--resume"]) == 0
    assert [number for number, _ in rewards(load_checkpoint(out))] == list(range(1, step + 2))


def test_nothing_to_resume_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "quickstart-sft", *TINY, "--out", str(tmp_path / "out"), "--resume"]
    assert main(arguments) == 2
    assert "there is no interrupted run to resume; start it without" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_a_torn_state_is_passed_over_for_the_one_before(
    file: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = ["train", "quickstart-sft", *TINY, "trl.max_steps=3", "trl.warmup_steps=1"]
    command += ["trl.save_steps=1", "preflight.enabled=false"]
    assert main([*command, "--out", str(whole)]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(run, "_finish", interrupted)
        assert main([*command, "--out", str(out)]) == 130
    state = RunState(out)
    assert state.latest() == 3
    torn = state.checkpoint(3) / file
    os.truncate(torn, torn.stat().st_size * 2 // 3)
    assert state.latest() == 2
    assert main([*command, "--out", str(out), "--resume"]) == 0
    assert load_checkpoint(out).digest == load_checkpoint(whole).digest
    # Transformers divides what was lost since the resumption by all steps.
    assert "train_loss" in load_checkpoint(whole).manifest.metrics
    assert "train_loss" not in load_checkpoint(out).manifest.metrics


def interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_state_whose_recipe_is_lost_is_not_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = RunState(tmp_path / "out")
    state.checkpoint(3).mkdir(parents=True)
    (state.checkpoint(3) / "trainer_state.json").write_text("{}")
    (state.folder / "recipe.json").write_text("{")
    command = ["train", "quickstart-sft", *TINY, "--out", str(tmp_path / "out"), "--resume"]
    assert main(command) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.slow
def test_a_new_learning_rate_counts_after_resuming(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["train", "quickstart-grpo", f"model.path={base}", *GRPO, "--out", str(out)]
    process = start(command)
    wait_for_step(out, 2, process)
    process.kill()
    process.wait()
    assert main([*command, "--resume", "trl.learning_rate=1e-6"]) == 0
    rows = [
        json.loads(line)
        for line in load_checkpoint(out).meta("metrics.jsonl").read_text().splitlines()
    ]
    rates = {row["step"]: row["learning_rate"] for row in rows if "learning_rate" in row}
    assert rates[1] == pytest.approx(5e-4) and rates[8] == pytest.approx(1e-6)
