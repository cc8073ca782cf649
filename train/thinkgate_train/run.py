"""The main path of training: recipe → model and data → TRL trainer → checkpoint folder.

Does not know how a checkpoint is measured or served; it ends with a manifest on disk.
"""

import functools
import json
import logging
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinkgate.checkpoint import (
    META,
    Checkpoint,
    Manifest,
    TemplateFingerprint,
    load_checkpoint,
    model_digest,
    now,
    package_versions,
    require_space,
    write_manifest,
    writing_checkpoint,
)
from thinkgate.console import progress
from thinkgate.errors import CheckpointError, MissingDependencyError
from thinkgate.format import prefilled_by, split
from thinkgate.problems import load
from thinkgate_train.data import cold_start_rows, fingerprint, grpo_rows
from thinkgate_train.recipe import Recipe, trl_config
from thinkgate_train.rewards import REWARDS
from thinkgate_train.scratch import build_model, build_tokenizer
from thinkgate_train.watch import metrics_callback, observed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["METRICS", "train"]

METRICS = "metrics.jsonl"
RECORDED_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "thinkgate")


@dataclass(frozen=True, slots=True)
class Start:
    """What training starts from."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    parent: Checkpoint | None


def train(recipe: Recipe, out: Path) -> Checkpoint:
    """Run `recipe` and leave a complete checkpoint at `out`; an interrupted run leaves none.

    Raises ConfigError, DataError, CheckpointError or TrainingError, each before or instead of
    touching an existing `out`.
    """
    _require_packages()
    require_space(out, recipe.disk_mib)
    problems = load(recipe.data)
    data_print, keys = fingerprint(recipe.data.source, problems)
    import torch
    from transformers import PrinterCallback, set_seed

    _quiet()
    set_seed(recipe.seed)
    scratch = out.with_name(f".{out.name}.trainer")
    config = trl_config(recipe, str(scratch))
    start = _start(recipe)
    inherited = start.parent.seen_prompts() if start.parent else frozenset[str]()
    prefilled = prefilled_by(start.tokenizer, tags=recipe.tags)
    splitter = functools.partial(split, prefilled=prefilled, tags=recipe.tags)
    with writing_checkpoint(out) as folder:
        metrics = folder / META / METRICS
        metrics.touch()
        with progress(recipe.name) as meter:
            common: dict[str, Any] = {
                "model": start.model,
                "args": config,
                "processing_class": start.tokenizer,
                "callbacks": [metrics_callback(metrics, meter)],
                "peft_config": _lora(recipe),
            }
            trainer = _trainer(recipe, problems, splitter, common)
            trainer.remove_callback(PrinterCallback)  # the meter shows the numbers
            trainer.train()
        model: Any = trainer.accelerator.unwrap_model(trainer.model)
        if recipe.peft is not None:
            model = model.merge_and_unload()
        model.to(torch.float32 if recipe.model.dtype == "float32" else model.dtype)
        model.save_pretrained(folder)
        start.tokenizer.save_pretrained(folder)
        write_manifest(
            folder,
            Manifest(
                name=recipe.name,
                method=recipe.method,
                recipe=recipe.name,
                config=recipe.model_dump(mode="json"),
                data=(*(start.parent.manifest.data if start.parent else ()), data_print),
                template=_template(recipe, start.tokenizer, prefilled, config),
                packages=package_versions(*RECORDED_PACKAGES),
                seed=recipe.seed,
                parent=start.parent.digest if start.parent else None,
                metrics=_last_metrics(metrics),
                model_digest=model_digest(folder),
                created=now(),
            ),
            keys | inherited,
        )
    shutil.rmtree(scratch, ignore_errors=True)
    return load_checkpoint(out)


def _trainer(recipe: Recipe, problems: list[Any], splitter: Any, common: dict[str, Any]) -> Any:
    from trl import GRPOTrainer, SFTTrainer

    if recipe.method == "sft":
        assert recipe.cold_start is not None  # Recipe checks it
        rows = cold_start_rows(
            problems,
            recipe.prompt,
            recipe.cold_start,
            common["processing_class"],
            recipe.tags,
            recipe.seed,
        )
        return SFTTrainer(train_dataset=rows, **common)
    first, *others = [REWARDS[reward.name](splitter, **reward.args) for reward in recipe.rewards]
    rewards: list[Any] = [observed(first, splitter, common["processing_class"]), *others]
    common["args"].reward_weights = [reward.weight for reward in recipe.rewards]
    return GRPOTrainer(
        train_dataset=grpo_rows(problems, recipe.prompt), reward_funcs=rewards, **common
    )


def _start(recipe: Recipe) -> Start:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if recipe.model.scratch is not None:
        tokenizer = build_tokenizer()
        return Start(build_model(tokenizer, recipe.model.scratch), tokenizer, None)
    source = str(recipe.model.path)
    if not Path(source).is_dir() and (source.count("/") != 1 or source.startswith((".", "/", "~"))):
        raise CheckpointError(
            f"model.path '{source}': no such folder, and not the id of a Hub model"
        )
    # A folder must be one of our finished checkpoints or a plain model folder; never half of one.
    parent = load_checkpoint(Path(source)) if (Path(source) / META).is_dir() else None
    pinned: dict[str, Any] = {"revision": recipe.model.revision} if recipe.model.revision else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **pinned)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=recipe.model.dtype, **pinned)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"model.path '{source}': cannot load it: {reason}; give a checkpoint folder, or the id "
            "of a Hub model where the Hub can be reached"
        ) from error
    return Start(model, tokenizer, parent)


def _lora(recipe: Recipe) -> Any:
    if recipe.peft is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=recipe.peft.r,
        lora_alpha=int(recipe.peft.alpha),
        lora_dropout=recipe.peft.dropout,
        target_modules=recipe.peft.target_modules,
        task_type="CAUSAL_LM",
    )


def _template(recipe: Recipe, tokenizer: Any, prefilled: bool, config: Any) -> TemplateFingerprint:
    import hashlib

    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return TemplateFingerprint(
        chat_template_sha256=hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest(),
        open_tag=recipe.tags.open,
        close_tag=recipe.tags.close,
        prefilled=prefilled,
        sampling={n: getattr(config, n) for n in names if getattr(config, n, None) is not None},
    )


def _last_metrics(file: Path) -> dict[str, float]:
    """Of each metric the last value logged."""
    last: dict[str, float] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        last |= json.loads(line)
    return last


def _require_packages() -> None:
    try:
        import peft  # noqa: F401
        import trl  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"training needs {error.name}, which is not installed; pip install 'thinkgate[train]'"
        ) from error


def _quiet() -> None:
    """What libraries print about themselves on every run hides what matters; errors stay."""
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("trl").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|transformers|trl|peft|accelerate)\b.*")
