"""Examples:

thinkgate list
thinkgate list --alias production     every change of one alias
"""

import argparse
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from thinkgate.console import console
from thinkgate.registry import Registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate list`."""
    parser.add_argument("--alias", help="show the whole history of this alias")
    parser.add_argument("--registry", type=Path, help="registry folder; default: runs/registry")


def run(args: argparse.Namespace) -> int:
    """Print the aliases, or one alias's history, newest first."""
    registry = Registry(args.registry)
    table = Table("alias", "checkpoint", "digest", "decision", "when", "what", "by", "reason")
    for alias in [args.alias] if args.alias else registry.aliases():
        entries = reversed(registry.history(alias))
        for entry in entries if args.alias else [next(entries)]:
            table.add_row(
                alias,
                escape(entry.checkpoint),
                entry.model_digest[:12],
                entry.decision,
                entry.when,
                entry.action,
                escape(entry.by),
                escape(entry.why),
            )
    console.print(table if table.row_count else escape(f"nothing promoted yet in {registry.root}"))
    return 0
