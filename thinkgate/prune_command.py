"""Examples:

thinkgate prune --keep 10                        what would be forgotten; nothing is done
thinkgate prune --keep 10 --yes
thinkgate prune --keep 3 --checkpoints --yes     delete folders, too

Keeps the last N changes of each alias, and with --checkpoints deletes the checkpoint folders that
only forgotten changes point at: none that an alias points at, or would roll back to within those N.
A folder that holds another model by now is left alone. With --keep 1 there is no way back.
"""

import argparse
from pathlib import Path

from thinkgate.console import console, printable
from thinkgate.registry import Registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate prune`."""
    parser.add_argument("--keep", type=int, required=True, metavar="N", help="changes to keep")
    parser.add_argument("--checkpoints", action="store_true", help="delete checkpoint folders, too")
    parser.add_argument("--yes", action="store_true", help="do it; without, only say what")
    parser.add_argument("--registry", type=Path, help="registry folder; default: runs/registry")


def run(args: argparse.Namespace) -> int:
    """Say what is forgotten and deleted, and with --yes do it."""
    entries, folders = Registry(args.registry).prune(
        args.keep, checkpoints=args.checkpoints, really=args.yes
    )
    for entry in entries:
        _say(f"forget   {entry.action} {entry.checkpoint} of {entry.when} by {entry.by}")
    for folder in folders:
        _say(f"delete   {folder}")
    if not entries:
        _say(f"nothing to forget: no alias has more than {args.keep} changes")
    elif not args.yes:
        _say("nothing was done; add --yes to do it")
    return 0


def _say(text: str) -> None:
    console.print(printable(text), soft_wrap=True, markup=False)
