"""Examples:

thinkgate push runs/quickstart/grpo me/reasoner --dry-run     the model card and the files
thinkgate push runs/quickstart/grpo me/reasoner
thinkgate push runs/quickstart/grpo me/reasoner --public

The repository gets exactly the checkpoint and a model card made of its manifest, decision and
report; what else is there is removed. A new repository is private unless --public. The token is the
Hub client's: 'hf auth login', or HF_TOKEN.
"""

import argparse
from pathlib import Path

from thinkgate.console import console, printable
from thinkgate.hub import CARD, prepare, push
from thinkgate.provenance.keys import trusted_keys
from thinkgate.registry import Registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate push`."""
    parser.add_argument("checkpoint", help="checkpoint folder that passed its gate, or an alias")
    parser.add_argument("repository", metavar="USER/NAME", help="repository on the Hub")
    parser.add_argument("--dry-run", action="store_true", help="show what would be pushed")
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument("--public", action="store_true", help="let everyone see a new repository")
    seen.add_argument("--private", action="store_true", help="let nobody else; the default")
    parser.add_argument("--allow-ungated", action="store_true", help="push what passed no gate")
    parser.add_argument("--registry", type=Path, help="registry folder; default: runs/registry")


def run(args: argparse.Namespace) -> int:
    """Verify, write the card, push."""
    registry = Registry(args.registry)
    folder, keys = registry.folder_of(args.checkpoint), trusted_keys(registry.root)
    upload = prepare(folder, args.repository, keys, allow_ungated=args.allow_ungated)
    if args.dry_run:
        _say(upload.card)
        _say(f"{CARD}: the card above, {len(upload.card.encode()):,} bytes")
        for name in upload.files:
            _say(f"{name}: {(upload.folder / name).stat().st_size:,} bytes")
        _say(f"nothing was pushed; it would go to {upload.repository}")
        return 0
    _say(f"pushed   {push(upload, public=args.public)}")
    return 0


def _say(text: str) -> None:
    console.print(printable(text), soft_wrap=True, markup=False)
