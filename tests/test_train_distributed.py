"""Two processes under `accelerate launch`, on CPU: one checkpoint, written once."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_MODEL

from thinkgate.checkpoint import load_checkpoint

CONFIGS = Path(__file__).parent.parent / "train" / "accelerate"
CONFIG = CONFIGS / "cpu.yaml"
TINY = [
    *TINY_MODEL,
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


def understood(name: str) -> Any:
    """What `accelerate launch` makes of one of our configs."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    words = ["--config_file", str(CONFIGS / f"{name}.yaml"), "-m", "thinkgate", "train", "r1"]
    return _validate_launch_command(launch_command_parser().parse_args(words))[0]


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("cpu", "multi_gpu"),
        ("ddp", "multi_gpu"),
        ("fsdp", "use_fsdp"),
        ("zero2", "use_deepspeed"),
        ("zero3", "use_deepspeed"),
    ],
)
def test_accelerates_own_launcher_takes_every_config(name: str, chosen: str) -> None:
    """As far as it goes without GPUs: unknown keys are refused, and this is what it would start."""
    args = understood(name)
    ways = ("multi_gpu", "use_fsdp", "use_deepspeed")
    assert [way for way in ways if getattr(args, way)] == [chosen]
    assert args.num_processes == (2 if name == "cpu" else 8)
    assert args.mixed_precision == ("no" if name == "cpu" else "bf16")
    if name.startswith("zero"):
        assert args.zero_stage == int(name[-1])


def test_the_fsdp_options_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    for key, value in prepare_multi_gpu_env(understood("fsdp")).items():
        if key.startswith("FSDP_"):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()  # raises for what FSDP2 does not have
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward


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
