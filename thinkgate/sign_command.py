"""Examples:

thinkgate sign runs/quickstart/grpo
thinkgate sign runs/quickstart/grpo --key ci
"""

import argparse
from pathlib import Path

from rich.markup import escape

from thinkgate.console import console
from thinkgate.errors import ConfigError
from thinkgate.provenance.keys import signing_key
from thinkgate.registry import Registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate sign`."""
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder that passed its gate")
    parser.add_argument("--key", help="name or file of a private key; default: the key 'default'")
    parser.add_argument("--registry", type=Path, help="registry folder; default: runs/registry")


def run(args: argparse.Namespace) -> int:
    """Attest and sign."""
    from thinkgate.provenance import sign

    key = signing_key(args.key, Registry(args.registry).root)
    if key is None:
        raise ConfigError(
            "no key named 'default'; make one with 'thinkgate keys new', or use --key"
        )
    console.print(escape(f"signed   {sign(args.checkpoint, key)}"), soft_wrap=True)
    return 0
