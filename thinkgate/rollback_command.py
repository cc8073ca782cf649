"""Examples:

thinkgate rollback
thinkgate rollback --alias staging
"""

import argparse
from pathlib import Path

from rich.markup import escape

from thinkgate.console import console
from thinkgate.registry import Registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate rollback`."""
    parser.add_argument("--alias", default="production", help="default: production")
    parser.add_argument("--registry", type=Path, help="registry folder; default: runs/registry")


def run(args: argparse.Namespace) -> int:
    """Roll back to the previous checkpoint, which is verified again first."""
    entry = Registry(args.registry).rollback(args.alias)
    console.print(
        f"[bold]{args.alias}[/] -> {escape(entry.checkpoint)} (digest {entry.model_digest[:12]})"
    )
    return 0
