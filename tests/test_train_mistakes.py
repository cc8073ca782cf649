"""What users get wrong, through the command: one sentence with the value and the fix, exit 2, and
before the hours are spent. Values that transformers or TRL would take, and fail on later or train
nothing with, are mistakes too."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_MODEL

from thinkgate.checkpoint import load_checkpoint
from thinkgate.cli import main
from thinkgate.errors import CheckpointError
from thinkgate_train.pipeline import load_recipe
from thinkgate_train.run_state import RunState

SFT = [
    "quickstart-sft",
    *TINY_MODEL,
    "data.count=64",
    "trl.max_steps=2",
    "trl.warmup_steps=1",
    "preflight.enabled=false",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mistakes") / "base"
    assert main(["train", *SFT, "--out", str(out)]) == 0
    return out


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `thinkgate train` complains about: one line, exit code 2."""
    capsys.readouterr()
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("thinkgate: ") and error.count("\n") == 1 and "Traceback" not in error
    return error


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trl.per_device_train_batch_size=0", "per_device_train_batch_size is 0; 1 is the least"),
        ("trl.gradient_accumulation_steps=0", "gradient_accumulation_steps is 0; 1 is the least"),
        ("trl.learning_rate=-1", "trl.learning_rate is -1; 0 is the least"),
        ("trl.max_steps=0", "trl.max_steps is 0, so nothing would be trained"),
        ("trl.num_train_epochs=0", "trl.num_train_epochs is 0; it must be above 0"),
        (
            "trl.max_length=2",
            "no row has a token to learn from once it is cut to trl.max_length (2",
        ),
        ("trl.adam_beta1=2", "trl: ValueError: Invalid beta parameter at index 0"),
        ("trl.dataloader_num_workers=-1", "trl: ValueError: num_workers option should be"),
        ("trl.save_strategy=best", "trl: ValueError: `args.metric_for_best_model` must be"),
        ("trl.eos_token=zzz", "trl: ValueError: The specified `eos_token` ('zzz') is not found"),
        ("trl.chat_template_path=/nope", "trl: OSError: Repo id must use"),
        ("trl.deepspeed=x.json", "deepspeed"),
        ("trl.push_to_hub=true", "trl.push_to_hub is not an option here: set 'push_to'"),
        ("trl.eval_strategy=steps", "no rows are held out to measure on; set prepare.held_out"),
        ("trl.x=5", "unknown key 'trl.x'; there are "),
        ("learning_rate=1e-3", "'learning_rate' is an option of the trainer: write trl.learning"),
        ("seed=-1", "'seed' is -1: input should be greater than or equal to 0"),
        ("data.count=0", "'data.count' is 0: input should be greater than 0"),
        (
            "model.scratch.kv_heads=4",
            "2 attention heads (hidden_size // head_dim) do not divide among",
        ),
    ],
)
def test_a_value_that_trains_nothing_or_fails_later(
    override: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in said(capsys, *SFT, override, "--out", str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trl.temperature=0", "trl.temperature is 0; it must be above 0"),
        ("trl.beta=-1", "trl.beta is -1; 0 is the least"),
        ("trl.num_iterations=0", "trl.num_iterations is 0; 1 is the least"),
        ("trl.max_completion_length=0", "max_completion_length is 0; 1 is the least"),
        ("trl.loss_type=foo", "trl: ValueError: Unknown loss type: foo"),
        ("trl.scale_rewards=foo", "trl: ValueError: Invalid value for scale_rewards: foo"),
        ("trl.use_vllm=true", "trl.use_vllm needs a CUDA GPU"),
        ("peft.target_modules=[nope]", "Target modules {'nope'} not found"),
        ("rewards=[{name: correctness, weight: .nan}]", "should be a finite number"),
        ("rewards=[{name: correctness, weight: 0}]", "all 'rewards' have weight 0"),
        ("rewards=[]", "quickstart-grpo.yaml: method 'grpo' needs 'rewards'"),
    ],
)
def test_the_same_where_rollouts_are_sampled(
    base: Path, override: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if override == "trl.use_vllm=true" and torch.cuda.is_available():
        pytest.skip("it is no mistake here")
    assert words in said(capsys, *grpo(base, tmp_path), override)


def grpo(base: Path, tmp_path: Path) -> list[str]:
    return [
        "quickstart-grpo",
        f"model.path={base}",
        "trl.max_steps=2",
        "trl.per_device_train_batch_size=8",
        "trl.num_generations=4",
        "trl.max_completion_length=8",
        "data.count=32",
        "preflight.enabled=false",
        "--out",
        str(tmp_path / "out"),
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": 5, "gold": "2"}, "row 1: 'prompt' is 5; it must be text, or a list of"),
        ({"prompt": [{"rol": "user"}], "gold": "2"}, "each have a 'role' and a 'content'"),
        ({"prompt": ["hello"], "gold": "2"}, "'prompt' is ['hello']; it must be text"),
        ({"prompt": "1+1", "gold": ["2"]}, "'gold' is ['2']; it must be text or a number"),
    ],
)
def test_rows_of_another_shape(
    base: Path, row: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{json.dumps(row)}\n" * 16)
    data = f"data={{source: jsonl, path: {file}}}"
    assert words in said(capsys, *grpo(base, tmp_path), data)


def test_golds_of_several_types_are_named(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    rows: list[dict[str, Any]] = [{"prompt": "1+1", "gold": 2}, {"prompt": "1+2", "gold": "three"}]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows * 8))
    data = f"data={{source: jsonl, path: {file}}}"
    assert "values of several types" in said(capsys, *grpo(base, tmp_path), data)


def test_a_reward_may_be_its_name_and_a_column_may_be_called_prompts(
    base: Path, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    row = {"prompt": "1+1", "gold": "2", "prompts": 3, "completion_ids": [1]}
    file.write_text(f"{json.dumps(row)}\n" * 16)
    settings = ["rewards=[correctness]", f"data={{source: jsonl, path: {file}}}"]
    assert main(["train", *grpo(base, tmp_path), *settings]) == 0
    assert load_checkpoint(tmp_path / "out").manifest.config["rewards"][0]["weight"] == 1.0


def test_a_slip_in_the_last_stage_is_said_before_the_first_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slip = "diverse-rl.trl.max_step=3"
    error = said(capsys, "r1", "--toy", slip, "--out", str(tmp_path / "r1"))
    assert "diverse-rl: unknown key 'trl.max_step'; did you mean 'max_steps'?" in error
    assert not (tmp_path / "r1").exists()


def test_flags_that_exclude_each_other_and_a_missing_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert "pass one of them" in said(capsys, *SFT, *out, "--resume", "--force")
    gone = tmp_path / "gone"
    assert f"{gone}: no such folder" in said(capsys, *SFT, *out, "--data-dir", str(gone))


def test_a_folder_in_which_a_run_is_at_work_is_left_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with RunState(out) as state:
        state.begin(load_recipe("quickstart-sft"))
        log = state.folder / "metrics.jsonl"
        log.write_text("of the other run")
        for flags in ([], ["--force"], ["--resume"]):
            error = said(capsys, *SFT, "--out", str(out), *flags)
            assert "is being written by another run; wait for it" in error
        assert log.read_text() == "of the other run"
        with RunState(out) as late, pytest.raises(CheckpointError, match="another run"):
            late.begin(load_recipe("quickstart-sft"))
    assert main(["train", *SFT, "--out", str(out)]) == 0


@pytest.mark.parametrize("room", [60_000, 300_000], ids=["for the weights", "for the optimizer"])
def test_a_disk_that_is_full_when_a_state_is_saved(
    room: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither safetensors nor torch.save raises OSError. No file may grow beyond `room` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    out = str(tmp_path / "out")
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        error = said(capsys, *SFT, "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "quickstart-sft: the disk is full (" in error and "free some space and start" in error
    assert main(["train", *SFT, "--out", out]) == 0


def test_a_gpu_that_is_too_small_is_said_with_the_way_out(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from trl import GRPOTrainer

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(GRPOTrainer, "training_step", full)
    error = said(capsys, *grpo(base, tmp_path))
    assert "the GPU ran out of memory after step 0; lower trl.per_device_train_batch_size" in error
