"""Examples:

thinkgate train quickstart-sft                        a shipped recipe, by name
thinkgate train my.yaml --out runs/mine               your own
thinkgate train quickstart-grpo model.path=runs/x/base seed=1 trl.learning_rate=1e-4
thinkgate train r1 --toy                              all stages of a pipeline, at toy size
thinkgate train my.yaml --check                       look at everything, train nothing
thinkgate train my.yaml --resume                      go on after Ctrl-C or a crash
thinkgate train my.yaml --base                        the untrained model, for the gate to compare
accelerate launch --config_file train/accelerate/fsdp.yaml -m thinkgate train my.yaml
"""

import argparse
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from thinkgate.checkpoint import require_replaceable
from thinkgate.console import console
from thinkgate.errors import ConfigError
from thinkgate.records import read_records

if TYPE_CHECKING:
    from thinkgate.checkpoint import Checkpoint
    from thinkgate_train.pipeline import Stage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate train`."""
    parser.add_argument("recipe", help="recipe file, or the name of a shipped one")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change recipe keys")
    parser.add_argument("--out", type=Path, help="checkpoint folder; default: runs/<recipe name>")
    parser.add_argument("--force", action="store_true", help="replace a finished checkpoint")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    parser.add_argument("--check", action="store_true", help="only look whether it would work")
    parser.add_argument(
        "--toy", action="store_true", help="a from-scratch model and toy data; all else as it is"
    )
    parser.add_argument(
        "--random-reward",
        action="store_true",
        help="control: coin flips for rewards; what improves now is not reasoning",
    )
    parser.add_argument(
        "--base",
        action="store_true",
        help="train nothing: keep the model the recipe starts from as a checkpoint, in "
        "runs/<recipe name>-base, for the gate to compare with",
    )
    parser.add_argument("--data-dir", type=Path, help="local JSONL copies of Hub data sets")


def run(args: argparse.Namespace) -> int:
    """Train, print where the checkpoint is and what it reached."""
    # Imported here so that --help stays quick: rewards bring the verifier.
    from thinkgate_train.pipeline import announce, load_stages

    if args.resume and args.force:
        raise ConfigError("--resume goes on and --force starts over; pass one of them")
    if args.data_dir is not None and not args.data_dir.is_dir():
        raise ConfigError(f"--data-dir {args.data_dir}: no such folder")
    ending = ("-toy" if args.toy else "") + ("-random" if args.random_reward else "")
    ending += "-base" if args.base else ""
    stages = load_stages(args.recipe, args.out, args.overrides, toy=args.toy, ending=ending)
    several = len(stages) > 1
    if not several and require_replaceable(stages[0].out) and not (args.force or args.check):
        raise ConfigError(
            f"{stages[0].out} already holds a checkpoint; choose another --out, or pass --force"
        )
    if args.base:
        _keep_base(stages)
        return 0
    if args.random_reward:
        stages = _with_random_rewards(stages)
    if several:
        _check_options(stages)
    # Bases that other recipes may start from too lie beside the run, not inside it.
    beside = stages[0].out.parent.parent if several else stages[0].out.parent
    for number, stage in enumerate(stages, 1):
        announce(stages, number, stage)
        _run_stage(stage, args, beside, one_of_several=several)
    return 0


def _keep_base(stages: "list[Stage]") -> None:
    """The model the first stage starts from, as a checkpoint."""
    from thinkgate_train.run import write_base

    first = stages[0]
    if len(stages) > 1 or first.recipe.model.path is None:
        raise ConfigError(
            f"{first.name}: --base needs a single recipe that starts from model.path; name the "
            "recipe of one stage"
        )
    base = write_base(first.recipe, first.out)
    console.print(f"[bold]{escape(str(first.out))}[/] (digest {base.digest[:12]})", soft_wrap=True)


def _check_options(stages: "list[Stage]") -> None:
    """A slip in the last stage's options is said before the first has run for hours."""
    from thinkgate_train.models import prepare_libraries
    from thinkgate_train.trl_options import trl_config

    prepare_libraries()
    for stage in stages:
        if stage.recipe.method != "sample":
            trl_config(stage.recipe, str(stage.out))


def _run_stage(
    stage: "Stage", args: argparse.Namespace, beside: Path, *, one_of_several: bool
) -> None:
    """Train one stage, after the base it starts from. A part of a whole is not done twice, and goes
    on by itself where it was interrupted; a recipe of its own wants --resume."""
    from thinkgate_train.pipeline import Stage, base_stage, finished
    from thinkgate_train.run import train
    from thinkgate_train.run_state import RunState
    from thinkgate_train.sampling import sample_rows

    recipe, base = base_stage(stage.recipe, beside)
    stage = Stage(name=stage.name, recipe=recipe, out=stage.out)
    if one_of_several and not args.force and finished(stage):
        console.print("  already done")
        return
    if base is not None and not finished(base):
        console.print(
            f"[bold]{escape(str(base.out))}[/]: the base to start from, made once", soft_wrap=True
        )
        plain = argparse.Namespace(check=False, force=False, resume=False, data_dir=None)
        _run_stage(base, plain, beside, one_of_several=True)
    if recipe.method == "sample":
        sample_rows(recipe, stage.out, data_dir=args.data_dir, check_only=args.check)
        return
    resume = RunState(stage.out).latest() > 0 if one_of_several else args.resume
    checkpoint = train(
        recipe,
        stage.out,
        resume=resume and not args.force,
        restart=args.force,
        check_only=args.check,
        data_dir=args.data_dir,
    )
    if checkpoint is not None:
        _show(stage, checkpoint)


def _with_random_rewards(stages: "list[Stage]") -> "list[Stage]":
    """The same runs with coin flips for rewards (Shao et al. 2025, arXiv 2506.10947: some models
    and templates gain even so)."""
    from thinkgate_train.recipe import RL_METHODS, Reward

    if not any(stage.recipe.method in RL_METHODS for stage in stages):
        raise ConfigError(
            f"{stages[-1].name}: --random-reward needs a method with rewards, not "
            f"'{stages[-1].recipe.method}'"
        )
    changed: list[Stage] = []
    for stage in stages:
        coin = Reward(name="random", args={"seed": stage.recipe.seed})
        update = {"rewards": (coin,), "moves": {}} if stage.recipe.rewards else {}
        recipe = stage.recipe.model_copy(update=update)
        changed.append(stage.model_copy(update={"recipe": recipe}))
    return changed


def _show(stage: "Stage", checkpoint: "Checkpoint") -> None:
    """One line of what was reached, and one for each metric the recipe is meant to move."""
    reached = checkpoint.manifest.metrics
    shown = [k for k in ("accuracy", "reward", "loss", "train_runtime") if k in reached]
    console.print(
        f"[bold]{escape(str(stage.out))}[/] (digest {checkpoint.digest[:12]}): "
        + ", ".join(f"{name.replace('_', ' ')} {reached[name]:.3g}" for name in shown),
        soft_wrap=True,
    )
    rows = [row for _, row in read_records(checkpoint.meta("metrics.jsonl"))]
    for metric, way in stage.recipe.moves.items():
        values = [row[metric] for row in rows if metric in row]
        if len(values) < 2:
            continue
        fifth = max(1, len(values) // 5)
        before, after = statistics.fmean(values[:fifth]), statistics.fmean(values[-fifth:])
        as_meant = (after > before) == (way == "up")
        words = f"{way}, as it should" if as_meant else f"[bold red]not {way}, as it should[/]"
        console.print(f"  {escape(metric)} {before:.3g} -> {after:.3g}: {words}", soft_wrap=True)
    if checkpoint.manifest.health is not None and checkpoint.manifest.health.findings:
        console.print(
            f"  health: {checkpoint.manifest.health.verdict}, "
            f"{len(checkpoint.manifest.health.findings)} findings; see "
            f"{escape(str(checkpoint.meta('plots.html')))}",
            soft_wrap=True,
        )
