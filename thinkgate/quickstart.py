"""Examples:

thinkgate quickstart                     about ten minutes on two CPU cores
thinkgate quickstart --seed 1 --out runs/quickstart-1
thinkgate quickstart --keep-serving      leave the server up at the end

Every stage is one thinkgate command, shown before it runs; a second run goes on after the last
finished stage. Exit 0: GRPO beat its base, was promoted and answered. Exit 1 or 3: the gate said
FAIL or INCONCLUSIVE, and nothing was promoted.
"""

import argparse
import importlib
import shlex
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.rule import Rule

from thinkgate.checkpoint import META, load_checkpoint, require_space
from thinkgate.cli import run_command
from thinkgate.config import bundled, read_yaml
from thinkgate.console import console
from thinkgate.errors import CheckpointError, DataError, RegistryError
from thinkgate.problems import Arithmetic, load
from thinkgate.provenance.keys import new_key, signing_key, trust
from thinkgate.registry import Registry

SUITE = "arithmetic"
POLICY = "quickstart"
ALIAS = "production"
QUESTIONS = ("8+7-6+9-3", "3+9-4+8-2+7", "9-5+8+6-7")
# `--fast` is for CI: fewer steps and fewer evaluation problems; everything else is as it is.
FAST = ("base.trl.max_steps=400", "base.data.count=25600", "grpo.trl.max_steps=25")
FAST_LIMIT = ("--limit", "400")


@dataclass(frozen=True, slots=True)
class Stage:
    """One command of the quickstart, and how to tell that it need not run again."""

    title: str
    command: tuple[str, ...]
    finished: Callable[[], bool] = lambda: False
    """Most commands know it themselves and go on from what lies in the run folder."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate quickstart`."""
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="run folder")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything; default: 0")
    parser.add_argument("--fast", action="store_true", help="CI size: less of everything")
    parser.add_argument("--registry", type=Path, help="registry folder; default: runs/registry")
    parser.add_argument("--keep-serving", action="store_true", help="serve until Ctrl-C at the end")


def run(args: argparse.Namespace) -> int:
    """Train, evaluate, gate, promote, serve, ask."""
    out: Path = args.out
    require_space(out, 300)
    out.mkdir(parents=True, exist_ok=True)
    _check_disjoint()
    _find_key(args.registry)
    stages = _stages(args)
    for number, stage in enumerate(stages, 1):
        console.print(Rule(f"[bold]{number}/{len(stages) + 1} {stage.title}", align="left"))
        console.print(f"[dim]$ thinkgate {shlex.join(stage.command)}", soft_wrap=True)
        if stage.finished():
            console.print("  already done")
            continue
        code = run_command(stage.command)
        if code:
            console.print(f"[bold red]{stage.title}: stopped here[/], exit code {code}")
            return code
    report = out / "report.html"
    shutil.copyfile(out / "grpo" / META / "report.html", report)
    console.print(Rule(f"[bold]{len(stages) + 1}/{len(stages) + 1} serve {ALIAS}", align="left"))
    _serve_and_ask(args, report)
    return 0


def _stages(args: argparse.Namespace) -> list[Stage]:
    base, grpo = str(args.out / "base"), str(args.out / "grpo")
    limit = FAST_LIMIT if args.fast else ()
    registry = ("--registry", str(args.registry)) if args.registry else ()
    training = ("train", "quickstart", f"seed={args.seed}", *(FAST if args.fast else ()))
    return [
        Stage("cold start, then GRPO", (*training, "--out", str(args.out))),
        Stage("measure the base", ("eval", base, "--suite", SUITE, *limit)),
        Stage("measure the candidate", ("eval", grpo, "--suite", SUITE, *limit)),
        Stage("gate", ("gate", grpo, "--policy", POLICY, "--against", base, *limit, *registry)),
        Stage(
            "promote",
            ("promote", grpo, "--alias", ALIAS, "--reason", "quickstart", *registry),
            lambda: _promoted(args.registry, grpo),
        ),
    ]


def _promoted(registry: Path | None, folder: str) -> bool:
    try:
        entry = Registry(registry).history(ALIAS)[-1]
        return entry.model_digest == load_checkpoint(Path(folder)).digest
    except (RegistryError, CheckpointError):
        return False


def _find_key(registry: Path | None) -> None:
    """A key for the gate to sign with: this machine's, or one of the registry's own."""
    root = Registry(registry).root
    if signing_key(registry=root) is None:
        _, public = new_key(folder=root / "keys")
        trust(public, folder=root / "trusted")
        console.print(f"a new signing key in {root / 'keys'}, trusted by this registry alone")


def _check_disjoint() -> None:
    """The evaluation problems are in no training set: looked at, not assumed."""
    recipes = ("quickstart-sft", "quickstart-grpo")
    sets = {
        name: read_yaml(bundled("thinkgate_train", "recipes", name))["data"] for name in recipes
    }
    sets[SUITE] = read_yaml(bundled("thinkgate_evals", "suites", SUITE))["data"]
    prompts = {n: {p.prompt for p in load(Arithmetic.model_validate(d))} for n, d in sets.items()}
    trained = prompts[recipes[0]] | prompts[recipes[1]]
    shared = trained & prompts[SUITE]
    if shared:
        raise DataError(f"{len(shared)} evaluation problems are in the training data")
    console.print(
        f"{len(trained):,} training problems, {len(prompts[SUITE]):,} evaluation problems, "
        f"{len(shared)} in both"
    )


def _serve_and_ask(args: argparse.Namespace, report: Path) -> None:
    # By string, as in cli.py: the parts import thinkgate, never the other way round.
    local: Any = importlib.import_module("thinkgate_clients.local")
    chat: Any = importlib.import_module("thinkgate_clients.chat")
    registry = ["--registry", str(args.registry)] if args.registry else []
    command = f"thinkgate {shlex.join(['serve', ALIAS, *registry])}"
    console.print(f"[dim]$ {command}")
    log = args.out / "serve.log"
    with local.local_server(ALIAS, registry=args.registry, log=log) as server:
        chat.ask_and_show(server.base_url, server.model, QUESTIONS, temperature=0.0)
        console.print(f"\n[bold green]done[/]   report: {report}", soft_wrap=True)
        console.print(f"serve it again: [bold]{command}[/]")
        if args.keep_serving:
            console.print(f"serving on {server.base_url} until Ctrl-C")
            with suppress(KeyboardInterrupt):  # the way to end it, not an interruption
                server.process.wait()
