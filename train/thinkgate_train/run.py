"""The main path of training: recipe → model and rows → trainer → checkpoint folder.

What a run has reached lies in a hidden folder beside `out` (trainer states, metrics, rollouts)
until the checkpoint is complete, so that an interrupted run can go on. Does not know how a
checkpoint is measured or served; it ends with a manifest on disk.
"""

import functools
import json
import os
import shutil
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
    write_atomic,
    write_manifest,
    writing_checkpoint,
)
from thinkgate.console import console, progress
from thinkgate.errors import ConfigError
from thinkgate.format import prefilled_by, split
from thinkgate.hub import prepare, push
from thinkgate_train.curriculum import by_pass_rate
from thinkgate_train.data import Rows, fingerprint, prepare_rows
from thinkgate_train.health.plots import write_plots
from thinkgate_train.health.verdict import RunFacts
from thinkgate_train.health.watch import Watch
from thinkgate_train.interrupt import Interruption
from thinkgate_train.models import Start, load_start, merged_model, prepare_libraries
from thinkgate_train.preflight import preflight, require_chat_template
from thinkgate_train.recipe import Recipe
from thinkgate_train.rewards import build
from thinkgate_train.trainers import Parts, build_trainer
from thinkgate_train.trl_options import trl_config

__all__ = ["METRICS", "RunState", "main_process", "train", "write_base"]

METRICS = "metrics.jsonl"
COMPLETIONS = "completions.jsonl"
RECORDED_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "thinkgate")
# What may differ between a run and its resumption: how far and how it goes on, not what it is.
RESUMABLE = (
    "trl",
    "health",
    "hang_after",
    "disk_mib",
    "preflight",
    "push_to",
    "hardware",
    "time",
    "moves",
)


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
    from transformers import set_seed

    set_seed(recipe.seed)
    state = RunState(out)
    step = 0 if check_only else state.step_to_go_on_from(recipe, resume=resume, restart=restart)
    watched = recipe.watched()
    config: Any = trl_config(watched, str(state.folder))
    start = load_start(recipe)
    require_chat_template(recipe, start.tokenizer)
    rows = prepare_rows(recipe, start.tokenizer, data_dir)
    # Rows that are conversations already are rendered by the template, whatever 'prompt' says.
    plain = isinstance(rows.train[0].get("prompt", "" if not recipe.prompt.chat else None), str)
    prefilled = not plain and prefilled_by(start.tokenizer, tags=recipe.tags)
    splitter = functools.partial(split, prefilled=prefilled, tags=recipe.tags)
    if recipe.prepare.curriculum is not None:
        rows = by_pass_rate(recipe, start, rows, splitter, config)
    rewards = [build(reward.name, splitter, reward.args) for reward in watched.rewards]
    for note in rows.notes:
        console.print(f"  {note}", soft_wrap=True)
    # A run that goes on was looked at when it began.
    if main_process() and (check_only or (recipe.preflight.enabled and not resume)):
        preflight(
            recipe,
            start,
            rows,
            rewards[: len(recipe.rewards)],
            splitter,
            config,
            data_dir,
            detailed=check_only,
        )
    if check_only:
        return None
    if not step and main_process():
        state.begin(recipe)
    with progress(recipe.name) as meter:
        watch = Watch(
            folder=state.folder,
            meter=meter,
            facts=_facts(watched, config, prefilled),
            mode=recipe.health,
            main=main_process(),
            hang_after=recipe.hang_after,
        )
        if step:
            watch.resume(step)
        interruption = Interruption()
        trainer = build_trainer(
            recipe,
            Parts(
                start=start,
                rows=rows,
                config=config,
                rewards=watch.observe(rewards, splitter, start.tokenizer),
                callbacks=[
                    watch.callback(),
                    interruption.callback(learning_rate=config.learning_rate),
                ],
            ),
        )
        _keep_tensorboard(trainer, out)
        try:
            with interruption.watching():
                trainer.train(resume_from_checkpoint=str(state.checkpoint(step)) if step else None)
        finally:
            watch.close()
    if interruption.happened:
        console.print(f"  step {trainer.state.global_step} is saved; --resume goes on from it")
        raise KeyboardInterrupt
    result = state.folder / "result"
    trainer.save_model(str(result))  # by all processes: sharded weights are gathered here
    if main_process():
        _finish(recipe, out, state, start, rows, _template(recipe, start, prefilled, config), watch)
        if recipe.push_to is not None:
            upload = prepare(out, recipe.push_to, allow_ungated=True)
            console.print(f"  pushed to {push(upload)}", soft_wrap=True)
    trainer.accelerator.wait_for_everyone()
    return load_checkpoint(out)


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


class RunState:
    """The hidden folder of an unfinished run."""

    def __init__(self, out: Path) -> None:
        self.folder = out.with_name(f".{out.name}.training")
        self._out = out

    def step_to_go_on_from(self, recipe: Recipe, *, resume: bool, restart: bool) -> int:
        """0 to begin. ConfigError when a state is there and not asked for, is asked for and not
        there, or belongs to another recipe."""
        latest = self.latest()
        if resume and not latest:
            raise ConfigError(
                f"{self._out}: there is no interrupted run to resume; start it without --resume"
            )
        if latest and not resume and not restart:
            raise ConfigError(
                f"{self._out}: an interrupted run has reached step {latest}; pass --resume to go "
                "on, or --force to start over"
            )
        if resume:
            self._require_same(recipe)
        return latest if resume else 0

    def begin(self, recipe: Recipe) -> None:
        """An empty folder that knows its recipe."""
        shutil.rmtree(self.folder, ignore_errors=True)
        write_atomic(self.folder / "recipe.json", recipe.model_dump_json(indent=2))
        (self.folder / METRICS).touch()

    def latest(self) -> int:
        """The newest step whose state is complete, else 0."""
        # trainer_state.json is the last file the trainer writes.
        found = self.folder.glob("checkpoint-*/trainer_state.json")
        return max((int(file.parent.name.rpartition("-")[2]) for file in found), default=0)

    def checkpoint(self, step: int) -> Path:
        """The trainer's state at `step`."""
        return self.folder / f"checkpoint-{step}"

    def read(self, name: str) -> list[dict[str, Any]]:
        """The rows of one of the run's JSONL files; none when it was never written."""
        file = self.folder / name
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return [json.loads(line) for line in lines]

    def _require_same(self, recipe: Recipe) -> None:
        begun = json.loads((self.folder / "recipe.json").read_text(encoding="utf-8"))
        asked = recipe.model_dump(mode="json")
        changed = [k for k in asked if k not in RESUMABLE and asked[k] != begun.get(k)]
        if changed:
            raise ConfigError(
                f"{self._out}: the interrupted run had another {', '.join(changed)}; resume it "
                "with the same recipe, or pass --force to start over"
            )


def _finish(
    recipe: Recipe,
    out: Path,
    state: RunState,
    start: Start,
    rows: Rows,
    template: TemplateFingerprint,
    watch: Watch,
) -> None:
    """The checkpoint folder from what training left, its manifest last."""
    result = state.folder / "result"
    health: HealthRecord | None = watch.record()
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
                template=template,
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
