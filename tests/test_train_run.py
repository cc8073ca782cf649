"""Real training with real TRL at toy size: SFT, then GRPO from its checkpoint, on CPU."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_MODEL

from thinkgate.checkpoint import ADAPTER, Checkpoint, load_checkpoint, model_digest
from thinkgate.cli import main
from thinkgate.errors import CheckpointError
from thinkgate.problems import Arithmetic, load, prompt_key
from thinkgate_train.scratch import Scratch, build_model, build_tokenizer

TINY = [
    *TINY_MODEL,
    "data.count=256",
]


@pytest.fixture(scope="module")
def cold_start(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    out = tmp_path_factory.mktemp("train") / "base"
    assert (
        main(
            [
                "train",
                "quickstart-sft",
                "trl.max_steps=40",
                *TINY,
                "trl.warmup_steps=5",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    return load_checkpoint(out)


def metrics(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    text = checkpoint.meta("metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_sft_learns_and_leaves_a_complete_checkpoint(cold_start: Checkpoint) -> None:
    losses = [row["loss"] for row in metrics(cold_start) if "loss" in row]
    assert losses[-1] < 0.7 * losses[0]
    manifest = cold_start.manifest
    assert (manifest.method, manifest.parent, manifest.seed) == ("sft", None, 0)
    assert manifest.config["trl"]["max_steps"] == 40
    assert manifest.packages["trl"].startswith("1.16")
    problems = load(Arithmetic(**manifest.config["data"]))
    assert cold_start.seen_prompts() == {prompt_key(p.prompt) for p in problems}
    assert not list(cold_start.path.parent.glob(".*"))  # nothing half-made is left


@pytest.mark.slow
def test_grpo_goes_on_from_the_cold_start(cold_start: Checkpoint, tmp_path: Path) -> None:
    out = tmp_path / "grpo"
    small = ["trl.max_steps=2", "trl.per_device_train_batch_size=16", "data.count=32"]
    small.append("trl.report_to=tensorboard")
    arguments = ["train", "quickstart-grpo", f"model.path={cold_start.path}", *small]
    assert main([*arguments, "--out", str(out)]) == 0
    checkpoint = load_checkpoint(out)
    assert checkpoint.manifest.parent == cold_start.digest
    assert checkpoint.digest != cold_start.digest
    assert checkpoint.seen_prompts() > cold_start.seen_prompts()
    assert [d.count for d in checkpoint.manifest.data] == [256, 32]
    row = metrics(checkpoint)[0]
    assert {"reward", "accuracy", "format", "thinking_tokens", "step_share", "truncated"} <= set(
        row
    )
    assert list((tmp_path / "tensorboard" / "grpo").glob("events.out.tfevents.*"))
    assert not list(out.glob("adapter*"))  # merged: any loader takes it
    assert checkpoint.manifest.adapter_digest == model_digest(checkpoint.meta(ADAPTER))

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert len(tokenizer) == model.config.vocab_size


@pytest.mark.slow
def test_a_seed_repeats_a_run_exactly(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        out = tmp_path / name
        arguments = ["train", "quickstart-sft", "trl.max_steps=5", *TINY, "--out", str(out)]
        assert main(arguments) == 0
        digests.add(load_checkpoint(out).digest)
    assert len(digests) == 1


@pytest.mark.slow
def test_a_diverging_run_is_stopped_and_leaves_no_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    wild = [
        "trl.learning_rate=1e30",
        "trl.max_grad_norm=0",
        "trl.max_steps=30",
        "trl.warmup_steps=0",
    ]
    arguments = ["train", "quickstart-sft", *TINY, *wild, "trl.logging_steps=1"]
    assert main([*arguments, "--out", str(out)]) == 2
    assert "is NaN; lower trl.learning_rate (now 1e+30)" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        load_checkpoint(out)


def test_any_text_survives_the_tokenizer() -> None:
    tokenizer: Any = build_tokenizer()
    for text in ("7+8=15", "é 漢字 🙂\r\n\t", "<think>a</think>b", "\x00\x7f"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_earlier_turns_lose_their_thoughts() -> None:
    tokenizer: Any = build_tokenizer()
    turns = [
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": "<think>easy</think>2"},
        {"role": "user", "content": "2+2"},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>1+1<|assistant|>2<|end|><|user|>2+2<|assistant|>"


def test_the_default_model_is_about_a_million_parameters() -> None:
    tokenizer = build_tokenizer()
    count = sum(p.numel() for p in build_model(tokenizer, Scratch()).parameters())
    assert 500_000 < count < 1_500_000


SYSTEM = 'Think, then "answer" 🙂.\nBriefly.'


@pytest.mark.slow
def test_a_system_prompt_stays_with_the_model_and_the_base_is_asked_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Suites, pages and users need not know it: the chat template brings it."""
    tokenizer = build_tokenizer()
    build_model(tokenizer, Scratch(layers=1)).save_pretrained(tmp_path / "hub")
    tokenizer.save_pretrained(tmp_path / "hub")
    recipe = tmp_path / "polite.yaml"
    recipe.write_text(
        json.dumps(
            {
                "name": "polite",
                "method": "sft",
                "model": {"path": str(tmp_path / "hub")},
                "data": {"source": "arithmetic", "half": "train", "seed": 0, "count": 64},
                "cold_start": {},
                "prompt": {"system": SYSTEM},
                "trl": {"max_steps": 1, "per_device_train_batch_size": 8},
            },
            ensure_ascii=False,
        ),
        encoding="utf-8",
    )
    trained, base = tmp_path / "polite", tmp_path / "polite-base"
    assert main(["train", str(recipe), "--out", str(trained)]) == 0
    assert main(["train", str(recipe), "--base", "--out", str(base)]) == 0
    assert load_checkpoint(base).manifest.method == "base"
    assert load_checkpoint(base).digest != load_checkpoint(trained).digest
    assert load_checkpoint(base).manifest.template == load_checkpoint(trained).manifest.template

    from transformers import AutoTokenizer

    loaded: Any = AutoTokenizer.from_pretrained(trained)
    asked = {"role": "user", "content": "1+1"}

    def prompt(*turns: dict[str, str]) -> str:
        return loaded.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    assert prompt(asked) == f"<|system|>{SYSTEM}<|user|>1+1<|assistant|>"
    own = {"role": "system", "content": "Mine."}
    assert prompt(own, asked) == "<|system|>Mine.<|user|>1+1<|assistant|>"

    again = ["train", str(recipe), "--base", f"model.path={trained}"]
    assert main([*again, "--out", str(tmp_path / "again")]) == 2
    assert "is a checkpoint already" in capsys.readouterr().err
    assert main(["train", "r1", "--base"]) == 2
    assert "--base needs a single recipe" in capsys.readouterr().err
