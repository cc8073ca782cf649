"""Examples:

thinkgate list
thinkgate list --alias production     every change of one alias
"""

import argparse
from pathlib import Path

from rich.markup import escape

from thinkgate.console import console, printable
from thinkgate.registry import Entry, Registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate list`."""
    parser.add_argument("--alias", help="show the whole history of this alias")
    parser.add_argument("--registry", type=Path, help="registry folder; default: runs/registry")


def run(args: argparse.Namespace) -> int:
    """Print where each alias points, or every change of one, newest first."""
    registry = Registry(args.registry)
    for alias in [args.alias] if args.alias else registry.aliases():
        entries = registry.history(alias)
        for entry in reversed(entries if args.alias else entries[-1:]):
            folder = escape(printable(str(registry.path_of(entry))))
            console.print(f"[bold]{alias}[/]  {folder}", soft_wrap=True)
            console.print(f"  [dim]{escape(printable(_story(entry)))}", soft_wrap=True)
    if not registry.aliases():
        console.print(f"nothing promoted yet in {registry.root}", markup=False, soft_wrap=True)
    return 0


def _story(entry: Entry) -> str:
    reason = f": {entry.why}" if entry.why else ""
    return (
        f"{entry.when} {entry.action} by {entry.by}{reason}; digest {entry.model_digest[:12]}, "
        f"decision {entry.decision}, signed by {entry.signed_by}"
    )
