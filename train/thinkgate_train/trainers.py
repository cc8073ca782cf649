"""The trainer of each method, built from a recipe's parts.

Only place that knows which class trains what: TRL's where TRL has one, `ppo.py` where not.
"""

import contextlib
import traceback
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from thinkgate.errors import ConfigError, DataError, TrainingError, explain_os_error
from thinkgate_train.data import Rows, training_set
from thinkgate_train.dynamic_sampling import with_dynamic_sampling
from thinkgate_train.models import Start
from thinkgate_train.recipe import RL_METHODS, Peft, Recipe
from thinkgate_train.rewards import RewardFunction
from thinkgate_train.rollouts import with_rollouts

__all__ = ["Parts", "build_trainer", "explained"]


DISK_FULL = (
    "No space left",
    "Disk quota exceeded",
    "File too large",
    "iostream error",
    "unexpected pos",
)
"""What safetensors and torch.save say then; neither raises OSError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a trainer is made of."""

    start: Start
    rows: Rows
    config: Any
    rewards: Sequence[RewardFunction]
    callbacks: Sequence[Any]


def build_trainer(recipe: Recipe, parts: Parts) -> Any:
    """A `transformers.Trainer` for the recipe's method, ready to train; ConfigError for what its
    class refuses, DataError when it takes none of the rows."""
    from transformers import PrinterCallback

    tokenizer = parts.start.tokenizer
    options: dict[str, Any] = {
        "model": parts.start.model,
        "args": parts.config,
        "processing_class": tokenizer,
        "callbacks": list(parts.callbacks),
        "peft_config": _lora(recipe.peft, recipe.method) if recipe.peft else None,
        "train_dataset": training_set(recipe, parts.rows.train, tokenizer),
    }
    if parts.rows.held_out and parts.config.eval_strategy != "no":
        options["eval_dataset"] = training_set(recipe, parts.rows.held_out, tokenizer)
    if recipe.method in RL_METHODS:
        options["reward_funcs"] = list(parts.rewards)
    with explained(recipe):
        trainer = _trainer_class(recipe)(**options)
    if not len(trainer.train_dataset):
        raise DataError(
            f"{recipe.name}: no row has a token to learn from once it is cut to trl.max_length "
            f"({parts.config.max_length}); raise it"
        )
    trainer.remove_callback(PrinterCallback)  # the meter shows the numbers
    return trainer


@contextlib.contextmanager
def explained(recipe: Recipe, trainer: Any = None) -> Generator[None]:
    """What libraries refuse before the first step is done is a mistake in the recipe, and becomes
    a ConfigError with their words; a GPU that is too small and a disk that is full are a
    TrainingError with the way out.

    Without a trainer it is being built. Mistakes of ours keep their traceback.
    """
    import torch
    from safetensors import SafetensorError

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(_too_large(recipe, trainer)) from error
    except (RuntimeError, SafetensorError) as error:
        if not any(words in str(error) for words in DISK_FULL):
            raise
        raise TrainingError(
            f"{recipe.name}: the disk is full ({' '.join(str(error).split())}); free some space "
            "and start again, with --resume where a state was saved, or save less: raise "
            "trl.save_steps, or set trl.save_total_limit=1"
        ) from error
    except (ValueError, ArithmeticError, ImportError, OSError) as error:
        begun = trainer is not None and trainer.state.global_step > 0
        full_disk = isinstance(error, OSError) and explain_os_error(error) is not None
        if begun or full_disk or _ours(error):
            raise
        words = " ".join(str(error).split())
        raise ConfigError(f"{recipe.name}: trl: {type(error).__name__}: {words[:400]}") from error


def _ours(error: Exception) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("thinkgate")


def _too_large(recipe: Recipe, trainer: Any) -> str:
    step = trainer.state.global_step if trainer is not None else 0
    return (
        f"{recipe.name}: the GPU ran out of memory after step {step}; lower "
        "trl.per_device_train_batch_size and raise trl.gradient_accumulation_steps as much, set "
        "trl.gradient_checkpointing=true, or lower trl.max_completion_length; --check names a "
        "setting that fits"
    )


def _trainer_class(recipe: Recipe) -> Any:
    import trl

    if recipe.method == "ppo":
        from thinkgate_train.ppo import PPOTrainer

        return with_rollouts(PPOTrainer)
    if recipe.method in ("grpo", "rloo"):
        kind = with_rollouts({"grpo": trl.GRPOTrainer, "rloo": trl.RLOOTrainer}[recipe.method])
        rounds = recipe.prepare.dynamic_sampling
        return with_dynamic_sampling(kind, rounds) if rounds else kind
    return {
        "sft": trl.SFTTrainer,
        "dpo": trl.DPOTrainer,
        "reward_model": trl.RewardTrainer,
    }[recipe.method]


def _lora(wanted: Peft, method: str) -> Any:
    from peft import LoraConfig

    reward_model = method == "reward_model"
    return LoraConfig(
        r=wanted.r,
        lora_alpha=wanted.alpha,
        lora_dropout=wanted.dropout,
        target_modules=wanted.target_modules,
        task_type="SEQ_CLS" if reward_model else "CAUSAL_LM",
        # Its new output is random, so it must be trained whole and saved with the adapter.
        modules_to_save=["score"] if reward_model else None,
    )
