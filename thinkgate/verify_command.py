"""Examples:

thinkgate verify runs/quickstart/grpo
thinkgate verify production
thinkgate verify runs/quickstart/grpo --key ci.pub

Exit code: 0 all matches, 1 something is refused and the line says why, 2 a mistake to fix.
"""

import argparse
from pathlib import Path

from rich.markup import escape

from thinkgate.console import console, printable
from thinkgate.provenance.keys import read_public, trusted_keys
from thinkgate.registry import Registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate verify`."""
    parser.add_argument("checkpoint", help="checkpoint folder or registry alias")
    parser.add_argument("--key", type=Path, help="a public key to trust instead of the usual ones")
    parser.add_argument("--registry", type=Path, help="registry folder; default: runs/registry")


def run(args: argparse.Namespace) -> int:
    """Print every check; 1 when one of them refuses."""
    from thinkgate.provenance import Outcome, verify

    registry = Registry(args.registry)
    folder = registry.folder_of(args.checkpoint)
    keys = (read_public(args.key),) if args.key else trusted_keys(registry.root)
    report = verify(folder, keys)
    if report.checkpoint is not None and args.checkpoint in registry.aliases():
        registry.require_unchanged(args.checkpoint, folder, report.checkpoint.digest)
    for check in report.checks:
        colour = "green" if check.outcome is Outcome.MATCHES else "red"
        text = escape(printable(f"{check.what}: {check.why}"))
        console.print(f"[{colour}]{check.outcome:<8}[/] {text}", soft_wrap=True)
    refused = len(report.refused)
    console.print("[red]REFUSED[/]" if refused else "[green]VERIFIED[/]", f"{refused} refused")
    return 1 if refused else 0
