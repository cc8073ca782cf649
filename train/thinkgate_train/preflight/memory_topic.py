"""Whether a run fits its device, and what to change when it does not.

Owns reading the sizes off a recipe, a model and TRL's config; the arithmetic is `memory.py`'s.
"""

import os
import re
from collections.abc import Sequence
from typing import Any

from thinkgate.errors import ConfigError, TrainingError
from thinkgate_train.data import render
from thinkgate_train.models import Start
from thinkgate_train.preflight.memory import (
    MARGIN,
    Memory,
    ModelSize,
    Setup,
    estimate,
    fitting,
    room,
    size_of,
)
from thinkgate_train.preflight.report import Topic
from thinkgate_train.preflight.trial import prompt_ids, some
from thinkgate_train.recipe import RL_METHODS, Recipe
from thinkgate_train.rewards.function import text_of
from thinkgate_train.sources import Row

__all__ = ["adapter_parameters", "memory_topic"]

HOPELESS = 1.5
"""An estimate so many times the free memory is no matter of rounding: the run is refused."""
MEASURED = 256
"""Rows whose length is looked at."""


def memory_topic(recipe: Recipe, start: Start, rows: Sequence[Row], config: Any) -> Topic:
    """What the run needs beside what there is."""
    size, free = size_of(start.model), room(config.device)
    if size is None or free is None:
        what = "this kind of model" if size is None else f"a device of type {config.device.type}"
        return Topic(name="memory", summary=f"not estimated: nothing is known about {what}")
    setup = _setup(recipe, start, rows, config)
    need = estimate(size, setup)
    # What is loaded on the device already is in use there, and is counted in the estimate.
    here = [p for p in start.model.parameters() if p.device.type == config.device.type]
    available = free + sum(p.numel() * p.element_size() for p in here)
    text = _advice(recipe, config, size, setup, need, available)
    tight = need.peak * MARGIN > available
    return Topic(
        name="memory",
        summary=f"about {_gib(need.peak)} of {_gib(available)} free: {_largest(need)}",
        details=(
            f"{_gib(need.training)} to train on {setup.batch * setup.sequences} x {setup.length} "
            f"tokens at once"
            + (f", {_gib(need.generating)} to sample {setup.rollouts}" if setup.rollouts else ""),
        ),
        warnings=(text,) if tight else (),
        refusal=TrainingError(f"{recipe.name}: {text}")
        if need.peak > HOPELESS * available
        else None,
    )


def adapter_parameters(recipe: Recipe, model: Any) -> int | None:
    """Parameters of the recipe's adapter, None without one; ConfigError when it fits no layer."""
    if recipe.peft is None:
        return None
    layers = dict(_linear_layers(model))
    wanted = recipe.peft.target_modules
    if wanted == "all-linear":
        chosen = list(layers)
    elif isinstance(wanted, str):
        chosen = [name for name in layers if re.fullmatch(wanted, name)]
    else:
        chosen = [n for n in layers if any(n == w or n.endswith(f".{w}") for w in wanted)]
    if not chosen:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
        raise ConfigError(
            f"{recipe.name}: peft.target_modules {wanted!r} is no layer of this model, so nothing "
            f"would be trained; it has {known}, or write all-linear"
        )
    return recipe.peft.r * sum(sum(layers[name]) for name in chosen)


def _linear_layers(model: Any) -> list[tuple[str, tuple[int, int]]]:
    """Name and sizes of what LoRA can adapt: not the layer that writes the vocabulary, nor a
    reward model's new output."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    found: list[tuple[str, tuple[int, int]]] = []
    for name, module in model.named_modules():
        if module is head or name == "score":
            continue
        if isinstance(module, torch.nn.Linear):
            found.append((name, (module.in_features, module.out_features)))
        elif isinstance(module, Conv1D):
            found.append((name, (module.nx, module.nf)))
    return found


def _setup(recipe: Recipe, start: Start, rows: Sequence[Row], config: Any) -> Setup:
    adapter = adapter_parameters(recipe, start.model)
    samples = recipe.method in RL_METHODS
    vllm = samples and bool(config.use_vllm)
    batch: int = config.per_device_train_batch_size
    weight_shards, state_shards = _shards(config)
    states, state_item = _states(str(getattr(config.optim, "value", config.optim)))
    return Setup(
        batch=batch,
        accumulation=config.gradient_accumulation_steps,
        sequences=2 if recipe.method in ("dpo", "reward_model") else 1,
        length=_length(recipe, start, rows, config),
        checkpointing=bool(config.gradient_checkpointing),
        mixed=bool(config.bf16 or config.fp16),
        adapter=adapter,
        # PEFT keeps adapters in float32; TRL turns those of quantised models to bfloat16.
        adapter_item=2 if recipe.model.quantization else 4,
        states=states,
        state_item=state_item,
        reference=recipe.peft is None and _compares(recipe, config),
        head=recipe.method != "reward_model",
        rollouts=batch * config.steps_per_generation if samples and not vllm else 0,
        group=getattr(config, "num_generations", None) or 1,
        weight_shards=weight_shards,
        state_shards=state_shards,
        reserved=_vllm_bytes(config) if vllm else 0,
    )


def _compares(recipe: Recipe, config: Any) -> bool:
    """Whether the loss asks a frozen copy of the starting model."""
    if recipe.method == "dpo":
        return not config.precompute_ref_log_probs
    return bool(getattr(config, "kl_coef" if recipe.method == "ppo" else "beta", 0.0)) and (
        recipe.method in RL_METHODS
    )


def _states(optimiser: str) -> tuple[float, int | None]:
    """How many states a parameter has, and the bytes of one where they are not the parameter's."""
    if "8bit" in optimiser:
        return (1.0 if "lion" in optimiser else 2.0), 1
    if optimiser in ("sgd", "adafactor", "lomo", "adalomo"):  # adafactor: a row and a column each
        return 0.0, None
    if "lion" in optimiser or optimiser in ("adagrad", "rmsprop"):
        return 1.0, None
    return 2.0, None


def _shards(config: Any) -> tuple[int, int]:
    """Processes over which weights, and gradients and states, are spread."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" or getattr(config, "fsdp", None):
        return processes, processes
    plugin = getattr(config, "deepspeed_plugin", None)
    stage = plugin.zero_stage if plugin is not None else 0
    return (processes if stage == 3 else 1), (processes if stage >= 2 else 1)


def _vllm_bytes(config: Any) -> int:
    """What vLLM takes of the same GPU."""
    import torch

    if config.vllm_mode != "colocate" or config.device.type != "cuda":
        return 0
    total = torch.cuda.mem_get_info(config.device)[1]
    return int(config.vllm_gpu_memory_utilization * total)


def _length(recipe: Recipe, start: Start, rows: Sequence[Row], config: Any) -> int:
    """Tokens of the longest row, as far as looked at, prompt and completion."""
    tokenizer: Any = start.tokenizer
    chosen = some(rows, MEASURED)
    if recipe.method in RL_METHODS:
        prompts = prompt_ids(tokenizer, chosen)
        return max(map(len, prompts)) + config.max_completion_length
    texts: list[str] = []
    for row in chosen:
        asked = render(tokenizer, row["prompt"]) if "prompt" in row else ""
        said = [row[key] for key in ("completion", "chosen", "rejected") if row.get(key)]
        said = said or ["\n".join(map(str, row.get("steps") or ())) + str(row.get("gold") or "")]
        texts += [asked + text_of(answer, recipe.tags) for answer in said]
    ids: Any = tokenizer(texts, add_special_tokens=False)["input_ids"]
    longest = max(map(len, ids)) + len(recipe.tags.open) + len(recipe.tags.close)
    limit = getattr(config, "max_length", None)
    return min(longest, limit) if limit else longest


def _advice(
    recipe: Recipe, config: Any, size: ModelSize, setup: Setup, need: Memory, available: int
) -> str:
    cuda = config.device.type == "cuda"
    keys = fitting(
        size,
        setup,
        int(available),
        adapt=recipe.model.scratch is None,
        quantize=cuda and recipe.model.quantization is None,
    )
    shown = f"it needs about {_gib(need.peak)} and {_gib(available)} are free"
    if keys is None:
        return f"{shown}; no setting makes it fit: take a smaller model, shorter texts or more GPUs"
    return f"{shown}; {' '.join(f'{key}={value}' for key, value in keys.items())} would fit"


def _largest(need: Memory) -> str:
    """The two largest parts."""
    sampling = need.generating > need.training
    parts = {
        "weights": need.weights + need.reference,
        "optimiser": need.states,
        **(
            {"cache": need.cache}
            if sampling
            else {
                "gradients": need.gradients,
                "activations": need.activations,
                "logits": need.logits,
            }
        ),
        "vLLM": need.reserved,
    }
    largest = sorted(parts.items(), key=lambda part: -part[1])[:2]
    return ", ".join(f"{name} {_gib(size)}" for name, size in largest if size >= 2**19)


def _gib(size: float) -> str:
    if size >= 10 * 2**30:
        return f"{size / 2**30:,.0f} GiB"
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:,.0f} MiB"
