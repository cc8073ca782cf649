"""A recipe's `trl` section as the trainer's own config object, its mistakes in one sentence each.

Owns the names of older TRL and transformers that tutorials still use, and the batch arithmetic
that would otherwise fail in the middle. Knows no data and no model.
"""

import dataclasses
import os
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from thinkgate.config import nearest
from thinkgate.errors import ConfigError
from thinkgate_train.recipe import RL_METHODS, Recipe
from thinkgate_train.rollouts import refuse_truncated_sampling

if TYPE_CHECKING:
    from transformers import TrainingArguments

__all__ = ["is_option", "trl_config"]

# Keys that mean something else now, and what to write instead. Those whose meaning is clear are
# accepted by `recipe.OLD_KEYS`.
REMOVED = {
    "logging_dir": "drop it; set the environment variable TENSORBOARD_LOGGING_DIR if you must",
    "overwrite_output_dir": "drop it; --force replaces a finished run",
    "output_dir": "use --out on the command line",
    "seed": "set 'seed' at the top of the recipe",
    "resume_from_checkpoint": "use --resume on the command line",
    "reward_weights": "give each of the 'rewards' its weight",
    "model_init_kwargs": "use the 'model' section",
    "push_to_hub": "set 'push_to' at the top of the recipe; the finished checkpoint is uploaded",
}
# With less, nothing would be trained, or the trainer would fail or do the opposite, unasked.
LEAST = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 1,
    "num_iterations": 1,
    "max_completion_length": 1,
    "max_length": 1,
    "learning_rate": 0,
    "beta": 0,
    "epsilon": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
}
ABOVE_0 = ("temperature", "num_train_epochs")
PLAIN = {int, float, bool, str, type(None)}


def trl_config(recipe: Recipe, output_dir: str) -> "TrainingArguments":
    """The config object; ConfigError names an unknown key or what its class says is wrong."""
    import torch

    _require_trackers(recipe)

    kind: Any = _config_class(recipe.method)
    known = _options(kind)
    for key in recipe.trl:
        if key in REMOVED:
            raise ConfigError(f"{recipe.name}: trl.{key} is not an option here: {REMOVED[key]}")
        if key not in known:
            raise ConfigError(f"{recipe.name}: unknown key 'trl.{key}'; {nearest(key, known)}")
    _check_values(recipe, kind)
    if recipe.method in ("grpo", "rloo"):
        _check_groups(recipe, kind)
    if recipe.method in RL_METHODS:
        _check_vllm(recipe)
        refuse_truncated_sampling(recipe.trl, recipe.name, method=recipe.method)
    # Where there is no accelerator, TRL's bf16 default and its device choice would fail later.
    defaults: dict[str, Any] = {} if torch.cuda.is_available() else {"use_cpu": True, "bf16": False}
    # Ten states a run, of which the last two are kept: what --resume goes on from.
    saved = {"save_strategy": "steps", "save_steps": 0.1, "save_total_limit": 2}
    # A tracker would call the run after its hidden folder.
    quiet = {"report_to": "none", "logging_steps": 1, "run_name": recipe.name}
    fixed: dict[str, Any] = {"output_dir": output_dir, "seed": recipe.seed, "disable_tqdm": True}
    if recipe.method in RL_METHODS:
        fixed["reward_weights"] = [reward.weight for reward in recipe.rewards]
    try:
        config = kind(**{**defaults, **saved, **quiet, **recipe.trl, **fixed})
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"{recipe.name}: trl: {' '.join(str(error).split())}") from error
    if config.eval_strategy != "no" and not recipe.prepare.held_out:
        raise ConfigError(
            f"{recipe.name}: trl.eval_strategy is {recipe.trl['eval_strategy']}, and no rows are "
            "held out to measure on; set prepare.held_out, for example to 64"
        )
    if recipe.model.scratch is not None and getattr(config, "beta", 0) != 0:
        raise ConfigError(
            f"{recipe.name}: trl.beta is {config.beta:g}, so a reference model is loaded from "
            "model.path, and a model from scratch has none; set trl.beta=0, or train it first"
        )
    return config


def is_option(key: str, method: str) -> bool:
    """Whether the config class of a method that trains has an option of that name."""
    return key in _options(_config_class(method))


def _options(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind) if field.init}


def _config_class(method: str) -> type:
    import trl

    if method == "ppo":
        from thinkgate_train.ppo import PPOConfig

        return PPOConfig
    return {
        "sft": trl.SFTConfig,
        "grpo": trl.GRPOConfig,
        "rloo": trl.RLOOConfig,
        "dpo": trl.DPOConfig,
        "reward_model": trl.RewardConfig,
    }[method]


def _check_values(recipe: Recipe, kind: type) -> None:
    """Numbers where numbers belong, and not too small: transformers does not look, and fails later
    in the middle."""
    hints = get_type_hints(kind)
    for key, value in recipe.trl.items():
        allowed = set(get_args(hints[key])) or {hints[key]}
        if not allowed <= PLAIN:
            continue
        accepted = allowed | ({int} if float in allowed else set())
        if not isinstance(value, tuple(accepted)):
            names = " or ".join(sorted(t.__name__ for t in allowed - {type(None)}))
            raise ConfigError(f"{recipe.name}: trl.{key} is {value!r}; it must be {names}")
        if value is None:
            continue
        if value < LEAST.get(key, value):
            raise ConfigError(f"{recipe.name}: trl.{key} is {value}; {LEAST[key]} is the least")
        if key in ABOVE_0 and value <= 0:
            raise ConfigError(f"{recipe.name}: trl.{key} is {value}; it must be above 0")
        if key == "max_steps" and value == 0:
            raise ConfigError(
                f"{recipe.name}: trl.max_steps is 0, so nothing would be trained; give a number, "
                "or leave it out and set trl.num_train_epochs"
            )


def _check_groups(recipe: Recipe, kind: Any) -> None:
    """GRPO and RLOO compare the rollouts of one prompt, so a batch must hold whole groups."""
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    group = recipe.trl.get("num_generations", fields["num_generations"])
    batch = recipe.trl.get("generation_batch_size") or (
        recipe.trl.get("per_device_train_batch_size", fields["per_device_train_batch_size"])
        * recipe.trl.get("gradient_accumulation_steps", 1)
        * _processes()
    )
    if not (isinstance(group, int) and isinstance(batch, int)) or group < 2:
        raise ConfigError(
            f"{recipe.name}: trl.num_generations is {group!r}; use a whole number, 2 or more"
        )
    if batch % group:
        raise ConfigError(
            f"{recipe.name}: a batch of {batch} rollouts cannot be divided into groups of "
            f"{group}; set trl.per_device_train_batch_size to a multiple of "
            f"trl.num_generations, for example {max(group, batch // group * group)}"
        )
    if recipe.prepare.dynamic_sampling and batch // _processes() % group:
        raise ConfigError(
            f"{recipe.name}: prepare.dynamic_sampling exchanges whole groups within a process, and "
            f"groups of {group} do not divide the {batch // _processes()} rollouts of each; set "
            "trl.per_device_train_batch_size to a multiple of trl.num_generations"
        )


def _check_vllm(recipe: Recipe) -> None:
    """vLLM's CPU backend packs its weights when it loads them and takes no new ones after a step;
    without a server to talk to, TRL would wait for minutes."""
    import torch

    if recipe.trl.get("use_vllm") and not torch.cuda.is_available():
        raise ConfigError(
            f"{recipe.name}: trl.use_vllm needs a CUDA GPU, since vLLM on a CPU cannot take the "
            "weights of the next step; drop it, and rollouts are sampled in this process"
        )


def _require_trackers(recipe: Recipe) -> None:
    """ConfigError for a tracker in trl.report_to that does not exist or is not installed."""
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    asked = recipe.trl.get("report_to") or ()
    for name in [asked] if isinstance(asked, str) else asked:
        if name in ("all", "none"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            known = nearest(str(name), INTEGRATION_TO_CALLBACK)
            raise ConfigError(
                f"{recipe.name}: trl.report_to: there is no tracker '{name}'; {known}"
            )
        if name not in get_available_reporting_integrations():
            raise ConfigError(
                f"{recipe.name}: trl.report_to: {name} is not installed; pip install {name}, or "
                "drop the key"
            )


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
