"""The trainer of each method, built from a recipe's parts.

Only place that knows which class trains what: TRL's where TRL has one, `ppo.py` where not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thinkgate_train.data import Rows, training_set
from thinkgate_train.dynamic_sampling import with_dynamic_sampling
from thinkgate_train.models import Start
from thinkgate_train.recipe import RL_METHODS, Peft, Recipe
from thinkgate_train.rewards import RewardFunction
from thinkgate_train.rollouts import with_rollouts

__all__ = ["Parts", "build_trainer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a trainer is made of."""

    start: Start
    rows: Rows
    config: Any
    rewards: Sequence[RewardFunction]
    callbacks: Sequence[Any]


def build_trainer(recipe: Recipe, parts: Parts) -> Any:
    """A `transformers.Trainer` for the recipe's method, ready to train."""
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
    trainer = _trainer_class(recipe)(**options)
    trainer.remove_callback(PrinterCallback)  # the meter shows the numbers
    return trainer


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
        lora_alpha=int(wanted.alpha),
        lora_dropout=wanted.dropout,
        target_modules=wanted.target_modules,
        task_type="SEQ_CLS" if reward_model else "CAUSAL_LM",
        # Its new output is random, so it must be trained whole and saved with the adapter.
        modules_to_save=["score"] if reward_model else None,
    )
