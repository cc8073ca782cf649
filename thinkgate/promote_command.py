"""Examples:

thinkgate promote runs/gsm8k/grpo
thinkgate promote runs/gsm8k/grpo --alias staging --reason "nightly 2026-11-22"
thinkgate promote staging                          what staging points at, to production

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
    parser.add_argument("checkpoint", help="checkpoint folder that passed its gate, or an alias")
    parser.add_argument("--alias", default="production", help="default: production")
    parser.add_argument("--reason", default="", help="why, in your words; kept in the history")
    parser.add_argument("--registry", type=Path, help="registry folder; default: runs/registry")


def run(args: argparse.Namespace) -> int:
    """Promote, or fail naming what is not proven."""
    registry = Registry(args.registry)
    folder = registry.folder_of(args.checkpoint)
    entry = registry.promote(args.alias, folder, args.reason)
    console.print(
        f"[bold]{args.alias}[/] -> {escape(str(folder))} "
        f"(digest {entry.model_digest[:12]}, decision {entry.decision}, signed by "
        f"{escape(entry.signed_by)})",
        soft_wrap=True,
    )
    return 0
