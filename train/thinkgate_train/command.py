"""Examples:

thinkgate train quickstart-sft                        a shipped recipe, by name
thinkgate train my.yaml --out runs/mine               your own
thinkgate train quickstart-grpo model.path=runs/x/base seed=1 trl.learning_rate=1e-4
"""

import argparse
from pathlib import Path

from rich.markup import escape

from thinkgate.checkpoint import require_replaceable
from thinkgate.config import apply_overrides, bundled, parse, read_yaml
from thinkgate.console import console
from thinkgate.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate train`."""
    parser.add_argument("recipe", help="recipe file, or the name of a shipped one")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change recipe keys")
    parser.add_argument("--out", type=Path, help="checkpoint folder; default: runs/<recipe name>")
    parser.add_argument("--force", action="store_true", help="replace a finished checkpoint")


def run(args: argparse.Namespace) -> int:
    """Train, print where the checkpoint is and what it reached."""
    # Imported here so that --help stays quick: rewards bring the verifier.
    from thinkgate_train.recipe import Recipe
    from thinkgate_train.run import train

    path = bundled("thinkgate_train", "recipes", args.recipe)
    recipe = parse(Recipe, apply_overrides(read_yaml(path), args.overrides), path)
    out: Path = args.out or Path("runs") / recipe.name
    if require_replaceable(out) and not args.force:
        raise ConfigError(
            f"{out} already holds a checkpoint; choose another --out, or pass --force"
        )
    checkpoint = train(recipe, out)
    reached = checkpoint.manifest.metrics
    shown = [k for k in ("accuracy", "reward", "loss", "train_runtime") if k in reached]
    console.print(
        f"[bold]{escape(str(out))}[/] (digest {checkpoint.digest[:12]}): "
        + ", ".join(f"{name.replace('_', ' ')} {reached[name]:.3g}" for name in shown),
        soft_wrap=True,
    )
    return 0
