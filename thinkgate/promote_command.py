"""Examples:

thinkgate promote runs/gsm8k/grpo
thinkgate promote runs/gsm8k/grpo --alias staging --reason "nightly 2026-11-22"

Everything 'thinkgate verify' looks at must match: a key that is trusted here has signed every file
and a gate decision that is a PASS about exactly these files.
"""

import argparse
from pathlib import Path

from rich.markup import escape

from thinkgate.console import console
from thinkgate.registry import Registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate promote`."""
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder that passed its gate")
    parser.add_argument("--alias", default="production", help="default: production")
    parser.add_argument("--reason", default="", help="why, in your words; kept in the history")
    parser.add_argument("--registry", type=Path, help="registry folder; default: runs/registry")


def run(args: argparse.Namespace) -> int:
    """Promote, or fail naming what is not proven."""
    entry = Registry(args.registry).promote(args.alias, args.checkpoint, args.reason)
    console.print(
        f"[bold]{args.alias}[/] -> {escape(str(args.checkpoint))} "
        f"(digest {entry.model_digest[:12]}, decision {entry.decision}, signed by "
        f"{escape(entry.signed_by)})",
        soft_wrap=True,
    )
    return 0
