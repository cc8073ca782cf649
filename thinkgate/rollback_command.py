"""Examples:

thinkgate rollback
thinkgate rollback --alias staging --reason "answers in the wrong language"

Repeated, it goes further back. Of a damaged file it drops the lines that cannot be read and goes
back to the last entry that can.
"""

import argparse
from pathlib import Path

from rich.markup import escape

from thinkgate.console import console
from thinkgate.registry import Registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate rollback`."""
    parser.add_argument("--alias", default="production", help="default: production")
    parser.add_argument("--reason", default="", help="why, in your words; kept in the history")
    parser.add_argument("--registry", type=Path, help="registry folder; default: runs/registry")


def run(args: argparse.Namespace) -> int:
    """Roll back to the previous checkpoint, which is verified again first."""
    registry = Registry(args.registry)
    entry = registry.rollback(args.alias, args.reason)
    console.print(
        f"[bold]{args.alias}[/] -> {escape(str(registry.path_of(entry)))} "
        f"(digest {entry.model_digest[:12]}, decision {entry.decision})",
        soft_wrap=True,
    )
    return 0
