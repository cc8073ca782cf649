"""The main path of training: recipe → model and rows → trainer → checkpoint folder.

What a run has reached lies in a hidden folder beside `out` (trainer states, metrics, rollouts)
until the checkpoint is complete, so that an interrupted run can go on. Does not know how a
checkpoint is measured or served; it ends with a manifest on disk.
"""

import functools
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thinkgate.checkpoint import (
    ADAPTER,
    META,
    Checkpoint,
    HealthRecord,
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
from thinkgate.console import console, progress
from thinkgate.errors import ConfigError
from thinkgate.format import prefilled_by, split
from thinkgate.hub import prepare, push
from thinkgate_train.curriculum import by_pass_rate
from thinkgate_train.data import Rows, fingerprint, opens_thought, prepare_rows
from thinkgate_train.health.plots import write_plots
from thinkgate_train.health.verdict import RunFacts
from thinkgate_train.health.watch import Watch
from thinkgate_train.interrupt import Interruption
from thinkgate_train.models import Start, load_start, merged_model, prepare_libraries
from thinkgate_train.preflight import preflight, require_chat_template
from thinkgate_train.recipe import Recipe
from thinkgate_train.rewards import build
from thinkgate_train.rewards.function import RewardFunction, Splitter
from thinkgate_train.run_state import COMPLETIONS, METRICS, RunState
from thinkgate_train.trainers import Parts, build_trainer, explained
from thinkgate_train.trl_options import trl_config

__all__ = ["main_process", "train", "write_base"]

RESULT = "result"
"""Folder, in the run's own, of what the trainer saves at the end."""
RECORDED_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "thinkgate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a recipe comes to, before it is trained."""

    recipe: Recipe
    start: Start
    rows: Rows
    config: Any
    """TRL's config object."""
    splitter: Splitter
    prefilled: bool
    """The prompt opens the thought."""
    rewards: list[RewardFunction]
    """The recipe's, then those that only look on."""
    facts: RunFacts


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    restart: bool = False,
    check_only: bool = False,
    data_dir: Path | None = None,
) -> Checkpoint | None:
    """Run `recipe` and leave a complete checkpoint at `out`; None when only checked.

    An interrupted run leaves its state beside `out`; `resume` goes on from there, `restart` throws
    it away. Raises ConfigError, DataError, CheckpointError or TrainingError, each before or instead
    of touching an existing `out`.
    """
    prepare_libraries()
    require_space(out, recipe.disk_mib)
    writes = main_process() and not check_only
    with RunState(out) as state:
        if writes:
            state.hold()
        step = 0 if check_only else state.step_to_go_on_from(recipe, resume=resume, restart=restart)
        run = _prepare(recipe, state.folder, data_dir)
        # A run that goes on was looked at when it began.
        if main_process() and (check_only or (recipe.preflight.enabled and not resume)):
            preflight(
                recipe,
                run.start,
                run.rows,
                run.rewards[: len(recipe.rewards)],
                run.splitter,
                run.config,
                data_dir,
                detailed=check_only,
            )
        if check_only:
            return None
        if writes and not step:
            state.begin(recipe)
        trainer, health = _fit(run, out, state, step)
        with explained(recipe, trainer):
            # By all processes: sharded weights are gathered here.
            trainer.save_model(str(state.folder / RESULT))
            if writes:
                _finish(run, out, state, health)
        if writes and recipe.push_to is not None:
            upload = prepare(out, recipe.push_to, allow_ungated=True)
            console.print(f"  pushed to {push(upload)}", soft_wrap=True)
        trainer.accelerator.wait_for_everyone()
    return load_checkpoint(out)


def _prepare(recipe: Recipe, folder: Path, data_dir: Path | None) -> Prepared:
    """Everything that can be wrong with a recipe, its model and its data is found here."""
    from transformers import set_seed

    set_seed(recipe.seed)
    watched = recipe.watched()
    config: Any = trl_config(watched, str(folder))
    start = load_start(recipe)
    require_chat_template(recipe, start.tokenizer)
    rows = prepare_rows(recipe, start.tokenizer, data_dir)
    prefilled = opens_thought(recipe, rows, start.tokenizer)
    splitter = functools.partial(split, prefilled=prefilled, tags=recipe.tags)
    if recipe.prepare.curriculum is not None:
        rows = by_pass_rate(recipe, start, rows, splitter, config)
    for note in rows.notes:
        console.print(f"  {note}", soft_wrap=True)
    return Prepared(
        recipe=recipe,
        start=start,
        rows=rows,
        config=config,
        splitter=splitter,
        prefilled=prefilled,
        rewards=[build(reward.name, splitter, reward.args) for reward in watched.rewards],
        facts=_facts(watched, config, prefilled),
    )


def _fit(run: Prepared, out: Path, state: RunState, step: int) -> tuple[Any, HealthRecord | None]:
    """Train from `step` on: the trainer and what the watch found. KeyboardInterrupt when stopped
    by a signal, after the step was saved."""
    with progress(run.recipe.name) as meter:
        watch = Watch(
            folder=state.folder,
            meter=meter,
            facts=run.facts,
            mode=run.recipe.health,
            main=main_process(),
            hang_after=run.recipe.hang_after,
        )
        if step:
            watch.resume(step)
        interruption = Interruption()
        trainer = build_trainer(
            run.recipe,
            Parts(
                start=run.start,
                rows=run.rows,
                config=run.config,
                rewards=watch.observe(run.rewards, run.splitter, run.start.tokenizer),
                callbacks=[
                    watch.callback(),
                    interruption.callback(learning_rate=run.config.learning_rate),
                ],
            ),
        )
        _keep_tensorboard(trainer, out)
        try:
            with interruption.watching(), explained(run.recipe, trainer):
                trainer.train(resume_from_checkpoint=str(state.checkpoint(step)) if step else None)
        finally:
            watch.close()
    if interruption.happened:
        console.print(f"  step {trainer.state.global_step} is saved; --resume goes on from it")
        raise KeyboardInterrupt
    return trainer, watch.record()


def write_base(recipe: Recipe, out: Path) -> Checkpoint:
    """The model `recipe` starts from, untrained, as the checkpoint at `out`: with the template and
    the system prompt of the trained one, so that a gate can compare the two."""
    prepare_libraries()
    require_space(out, recipe.disk_mib)
    whole = recipe.model.model_copy(update={"quantization": None})
    start = load_start(recipe.model_copy(update={"model": whole}))
    if start.parent is not None:
        raise ConfigError(f"{start.parent.path} is a checkpoint already; compare with it as it is")
    require_chat_template(recipe, start.tokenizer)
    prefilled = recipe.prompt.chat and prefilled_by(start.tokenizer, tags=recipe.tags)
    config = trl_config(recipe, str(out))
    with writing_checkpoint(out) as folder:
        start.model.save_pretrained(folder)
        start.tokenizer.save_pretrained(folder)
        manifest = Manifest(
            name=f"{recipe.name}-base",
            method="base",
            recipe=recipe.name,
            config=recipe.model_dump(mode="json"),
            template=_template(recipe, start, prefilled, config),
            packages=package_versions(*RECORDED_PACKAGES),
            seed=recipe.seed,
            model_digest=model_digest(folder),
            created=now(),
        )
        write_manifest(folder, manifest, frozenset())
    return load_checkpoint(out)


def main_process() -> bool:
    """Whether this process prints and writes; under `accelerate launch` one does."""
    return os.environ.get("RANK", "0") == "0"


def _finish(run: Prepared, out: Path, state: RunState, health: HealthRecord | None) -> None:
    """The checkpoint folder from what training left, its manifest last."""
    recipe, start, rows = run.recipe, run.start, run.rows
    result = state.folder / RESULT
    metrics = state.read(METRICS)
    data_print, keys = fingerprint(recipe.data.source, rows)
    inherited = start.parent.seen_prompts() if start.parent else frozenset[str]()
    with writing_checkpoint(out) as folder:
        if recipe.peft is not None:
            merged_model(recipe, result).save_pretrained(folder)
            adapter = folder / META / ADAPTER
            shutil.copytree(result, adapter, ignore=_only_adapter)
        else:
            adapter = None
            for file in result.iterdir():
                if file.suffix not in (".bin", ".pt", ".pth"):  # pickles: nothing loads them
                    shutil.move(file, folder / file.name)
        start.tokenizer.save_pretrained(folder)
        for name in (METRICS, COMPLETIONS):
            if (state.folder / name).is_file():
                shutil.copyfile(state.folder / name, folder / META / name)
        write_plots(
            folder / META / "plots.html",
            title=recipe.name,
            metrics=metrics,
            completions=state.read(COMPLETIONS),
            health=health,
            method=recipe.method,
        )
        write_manifest(
            folder,
            Manifest(
                name=recipe.name,
                method=recipe.method,
                recipe=recipe.name,
                config=recipe.model_dump(mode="json"),
                data=(*(start.parent.manifest.data if start.parent else ()), data_print),
                template=_template(recipe, start, run.prefilled, run.config),
                packages=package_versions(*RECORDED_PACKAGES),
                seed=recipe.seed,
                parent=start.parent.digest if start.parent else None,
                adapter_digest=model_digest(adapter) if adapter else None,
                metrics=functools.reduce(lambda last, row: last | row, metrics, {}),
                health=health,
                model_digest=model_digest(folder),
                created=now(),
            ),
            keys | inherited,
        )
    shutil.rmtree(state.folder, ignore_errors=True)


def _keep_tensorboard(trainer: Any, out: Path) -> None:
    """Beside the result: by default its logs lie in the hidden folder and go with it in the end."""
    from transformers.integrations import TensorBoardCallback

    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(out.parent / "tensorboard" / out.name)


def _only_adapter(_: str, names: list[str]) -> set[str]:
    """What of the trainer's result is not the adapter: the tokenizer is in the checkpoint."""
    return {name for name in names if not name.startswith("adapter_")}


def _facts(recipe: Recipe, config: Any, prefilled: bool) -> RunFacts:
    return RunFacts(
        method=recipe.method,
        learning_rate=config.learning_rate,
        max_completion_length=getattr(config, "max_completion_length", None),
        beta=getattr(config, "beta", 0.0),
        epsilon=getattr(config, "epsilon", 0.2),
        reward_names=tuple(reward.name for reward in recipe.rewards),
        reward_weights=tuple(reward.weight for reward in recipe.rewards),
        temperature=getattr(config, "temperature", 1.0),
        max_steps=config.max_steps,
        tags_prefilled=prefilled,
    )


def _template(recipe: Recipe, start: Start, prefilled: bool, config: Any) -> TemplateFingerprint:
    import hashlib

    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return TemplateFingerprint(
        chat_template_sha256=hashlib.sha256(
            str(start.tokenizer.chat_template).encode()
        ).hexdigest(),
        open_tag=recipe.tags.open,
        close_tag=recipe.tags.close,
        prefilled=prefilled,
        sampling={n: getattr(config, n) for n in names if getattr(config, n, None) is not None},
    )
