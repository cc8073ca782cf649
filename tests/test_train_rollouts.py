"""Trainers that generate with `sample`: real TRL runs, the canary, and what is refused."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import set_seed
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from thinkgate.errors import ConfigError
from thinkgate_train.rollouts import refuse_truncated_sampling, with_rollouts
from thinkgate_train.scratch import Scratch, build_model, build_tokenizer

TRAINERS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}
GAP = "rollout/logp_gap"
ESCAPE = "THINKGATE_GENERATION"


def digits(completions: list[Any], **_: Any) -> list[float]:
    """Share of characters that are digits: something a few steps can move."""
    texts = [completion[0]["content"] for completion in completions]
    return [sum(c.isdigit() for c in text) / max(1, len(text)) for text in texts]


def build(kind: Any, config: Any, folder: Path, lora: bool = False, **changes: Any) -> Any:
    """A trainer of a tiny model on eight prompts of different lengths."""
    tokenizer: Any = build_tokenizer()
    set_seed(0)
    size = Scratch(hidden_size=64, intermediate_size=128, layers=1, kv_heads=1, max_length=64)
    model = build_model(tokenizer, size)
    prompts = [[{"role": "user", "content": "7+8" * (1 + i % 3)}] for i in range(8)]
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "max_steps": 2,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 8,
        "learning_rate": 1e-3,
        "beta": 0.0,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }
    adapter = None
    if lora:
        from peft import LoraConfig

        adapter = LoraConfig(r=4, lora_dropout=0.3, target_modules="all-linear")
    rows = Dataset.from_list([{"prompt": prompt} for prompt in prompts])
    return kind(
        model=model,
        args=config(**{**settings, **changes}),
        processing_class=tokenizer,
        train_dataset=rows,
        eval_dataset=rows,
        reward_funcs=[digits],
        peft_config=adapter,
    )


def logged(trainer: Any, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


@pytest.mark.parametrize("method", TRAINERS)
def test_trl_trains_and_evaluates_on_our_rollouts(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, config = TRAINERS[method]
    trainer = build(with_rollouts(kind), config, tmp_path, num_generations_eval=2)
    monkeypatch.setattr(type(trainer.model), "generate", None)  # TRL's way would fail
    assert trainer.own_generation_obstacle() is None
    trainer.train()
    trainer.evaluate()
    assert trainer.model.training is False  # as TRL's own evaluation leaves it
    for name in (GAP, f"{GAP}_max"):
        gaps = logged(trainer, name)
        assert len(gaps) == 2 and max(gaps) < 1e-4
    assert 0 <= logged(trainer, f"eval_{GAP}")[0] < 1e-4
    assert all(1 <= length <= 8 for length in logged(trainer, "completions/mean_length"))
    assert len(logged(trainer, "eval_reward")) == 1
    assert type(trainer).__name__ == kind.__name__


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": True},
        {"gradient_checkpointing": True, "temperature": 0.7},
        {"bf16": True},
        {"gradient_accumulation_steps": 2, "num_iterations": 2, "per_device_train_batch_size": 8},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_gap_is_rounding_in_every_way_of_training(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    trainer = build(with_rollouts(GRPOTrainer), GRPOConfig, tmp_path, **changes)
    trainer.train()
    gaps = logged(trainer, GAP)
    assert gaps and max(gaps) < (3e-2 if "bf16" in changes else 1e-4)
    assert trainer.model.training


def test_stale_rollout_weights_show_as_a_growing_gap(tmp_path: Path) -> None:
    """The injected fault: an engine that keeps the weights of the start."""

    class Stale(with_rollouts(GRPOTrainer)):
        old: Any = None

        @contextlib.contextmanager
        def _generating_model(self) -> Iterator[Any]:
            with super()._generating_model() as model:
                if self.old is None:
                    # Not a deep copy: TRL's patched forward would lead back to the live model.
                    self.old = type(model)(model.config)
                    self.old.load_state_dict(model.state_dict())
                yield self.old

    settings = {"max_steps": 5, "lr_scheduler_type": "constant"}
    trainer = build(Stale, GRPOConfig, tmp_path, **settings)
    trainer.train()
    first, second, *_, before, last = logged(trainer, GAP)
    assert first < 1e-4  # in step at the start
    assert second > 0.005 and (before + last) / 2 > 1.3 * second  # batches differ: two of them


def test_the_escape_leaves_generation_to_trl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ESCAPE, "trl")
    trainer = build(with_rollouts(GRPOTrainer), GRPOConfig, tmp_path, max_steps=1)
    assert trainer.own_generation_obstacle() == f"{ESCAPE}=trl is set"
    trainer.train()
    assert logged(trainer, "reward") and not logged(trainer, GAP)
    monkeypatch.setenv(ESCAPE, "vllm")
    with pytest.raises(ConfigError, match="THINKGATE_GENERATION=vllm: set it to trl"):
        with_rollouts(GRPOTrainer)


@pytest.mark.parametrize(
    "option",
    [{"top_p": 0.9}, {"generation_kwargs": {"no_repeat_ngram_size": 2}}, {"min_p": 0.1}],
    ids=str,
)
def test_options_of_transformers_are_left_to_transformers(
    option: dict[str, Any], tmp_path: Path
) -> None:
    trainer = build(with_rollouts(GRPOTrainer), GRPOConfig, tmp_path, max_steps=1, **option)
    assert "generation options of transformers" in trainer.own_generation_obstacle()
    trainer.train()
    assert logged(trainer, "reward") and not logged(trainer, GAP)


def test_log_probabilities_of_another_engine_are_compared_too(tmp_path: Path) -> None:
    """What vLLM gives TRL: a log-probability per token, None where it was not a number."""

    class Engine(GRPOTrainer):
        claimed: float | None = None

        def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
            return [[5, 6]] * len(prompt_ids), [[None, self.claimed]] * len(prompt_ids)

    trainer = build(with_rollouts(Engine), GRPOConfig, tmp_path, top_k=5)
    trainer.claimed = 0.0
    trainer._generate_single_turn([[3, 4]], None, {}, 4)
    exact = trainer._metrics["train"][GAP][-1]  # |log p - 0|
    trainer.claimed = -exact
    trainer._generate_single_turn([[3, 4]], None, {}, 4)
    assert trainer._metrics["train"][GAP][-1] < 1e-6 < exact
    trainer.claimed = None
    trainer._generate_single_turn([[3, 4]], None, {}, 4)
    assert len(trainer._metrics["train"][GAP]) == 2  # nothing measured, nothing logged


@pytest.mark.parametrize(
    ("section", "shown"),
    [
        ({"top_p": 0.95}, "trl.top_p=0.95"),
        ({"top_k": 20, "min_p": 0.05}, "trl.top_k=20, trl.min_p=0.05"),
        ({"repetition_penalty": 1.1}, "trl.repetition_penalty=1.1"),
        ({"generation_kwargs": {"top_p": 0.5}}, "trl.top_p=0.5"),
        ({"top_p": 0.9, "use_vllm": True, "vllm_importance_sampling_correction": False}, "top_p"),
        (
            {
                "top_p": 0.9,
                "use_vllm": True,
                "vllm_importance_sampling_mode": "token_truncate",
                "loss_type": "vespo",
            },
            "top_p",
        ),
    ],
)
def test_truncated_sampling_is_refused(section: dict[str, Any], shown: str) -> None:
    with pytest.raises(ConfigError, match=r"my-recipe: .*; remove it, and use") as caught:
        refuse_truncated_sampling(section, "my-recipe")
    assert shown in str(caught.value)


@pytest.mark.parametrize("method", ["grpo", "ppo", "rloo"])
def test_importance_weights_per_token_correct_it_but_not_in_rloo(method: str) -> None:
    section = {"use_vllm": True, "top_p": 0.95, "vllm_importance_sampling_mode": "token_mask"}
    if method == "rloo":
        with pytest.raises(ConfigError, match="nothing corrects for it"):
            refuse_truncated_sampling(section, "r", method=method)
    else:
        refuse_truncated_sampling(section, "r", method=method)


def test_importance_weights_per_sequence_do_not() -> None:
    with pytest.raises(ConfigError, match=r"sequence_mask\) vanish .* or set .*token_truncate"):
        refuse_truncated_sampling({"use_vllm": True, "top_k": 50}, "r")


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"temperature": 0.6},
        {"top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0},
        {"top_p": 1, "top_k": -1, "min_p": 0, "generation_kwargs": None},
    ],
)
def test_the_whole_distribution_is_accepted(section: dict[str, Any]) -> None:
    refuse_truncated_sampling(section, "r")
