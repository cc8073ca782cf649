"""Examples:

thinkgate verify runs/quickstart/grpo
thinkgate verify runs/quickstart/grpo --key ci.pub

Exit code: 0 all matches, 1 something is refused and the line says why, 2 a mistake to fix.
"""

import argparse
from pathlib import Path

from rich.markup import escape

from thinkgate.console import console, printable
from thinkgate.errors import CheckpointError
from thinkgate.provenance.keys import read_public, trusted_keys
from thinkgate.registry import Registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate verify`."""
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder")
    parser.add_argument("--key", type=Path, help="a public key to trust instead of the usual ones")
    parser.add_argument("--registry", type=Path, help="registry folder; default: runs/registry")


def run(args: argparse.Namespace) -> int:
    """Print every check; 1 when one of them refuses."""
    from thinkgate.provenance import Outcome, verify

    if not args.checkpoint.is_dir():
        raise CheckpointError(f"{args.checkpoint}: no such checkpoint folder")
    keys = (read_public(args.key),) if args.key else trusted_keys(Registry(args.registry).root)
    report = verify(args.checkpoint, keys)
    for check in report.checks:
        colour = "green" if check.outcome is Outcome.MATCHES else "red"
        text = escape(printable(f"{check.what}: {check.why}"))
        console.print(f"[{colour}]{check.outcome:<8}[/] {text}", soft_wrap=True)
    refused = len(report.refused)
    console.print("[red]REFUSED[/]" if refused else "[green]VERIFIED[/]", f"{refused} refused")
    return 1 if refused else 0
