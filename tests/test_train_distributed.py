"""Two processes under `accelerate launch`, on CPU: one checkpoint, written once."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from thinkgate.checkpoint import load_checkpoint

CONFIG = Path(__file__).parent.parent / "train" / "accelerate" / "cpu.yaml"
TINY = [
    "model.scratch.hidden_size=64",
    "model.scratch.intermediate_size=128",
    "model.scratch.layers=1",
    "model.scratch.kv_heads=1",
    "data.count=256",
    "trl.max_steps=10",
    "trl.warmup_steps=2",
]


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG)]
    return subprocess.run(
        [*command, "--main_process_port", "0", "-m", "thinkgate", *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = load_checkpoint(folder).meta("metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_two_processes_train_one_checkpoint_by_sft_and_then_grpo(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "grpo"
    done = launch("train", "quickstart-sft", *TINY, "--out", str(base))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"(digest {load_checkpoint(base).digest[:12]})") == 1
    settings = [
        "trl.max_steps=2",
        "trl.per_device_train_batch_size=8",
        "trl.num_generations=16",  # one group, spread over both processes
        "trl.max_completion_length=16",
        "data.count=32",
    ]
    done = launch("train", "quickstart-grpo", f"model.path={base}", *settings, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in metrics(out) if "reward" in row] == [1, 2]
    assert load_checkpoint(out).manifest.parent == load_checkpoint(base).digest
    # Groups whole in each process, for what exchanges them.
    settings += ["trl.num_generations=4", "prepare.dynamic_sampling=2", "rewards=[{name: random}]"]
    command = ["train", "quickstart-grpo", f"model.path={base}", *settings]
    done = launch(*command, "--out", str(tmp_path / "dynamic"))
    assert done.returncode == 0, done.stderr
    rows = metrics(tmp_path / "dynamic")
    assert all(0 <= row["resampled"] <= 1 for row in rows if "reward" in row)
