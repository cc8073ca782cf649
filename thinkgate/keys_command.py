"""Examples:

thinkgate keys new                        a pair named default, trusted on this machine
thinkgate keys new --name ci
thinkgate keys trust ci.pub               believe what another machine signs
thinkgate keys list

Private keys lie in ~/.config/thinkgate/keys (or $THINKGATE_KEYS) and never leave it; a machine
that only verifies needs only ~/.config/thinkgate/trusted (or $THINKGATE_TRUSTED).
"""

import argparse
from pathlib import Path

from rich.markup import escape

from thinkgate.console import console
from thinkgate.errors import ConfigError
from thinkgate.provenance.keys import DEFAULT_KEY, new_key, trust, trusted_keys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate keys`."""
    parser.add_argument("action", choices=("new", "trust", "list"))
    parser.add_argument("file", nargs="?", type=Path, help="with trust: the public key")
    parser.add_argument("--name", help=f"name of the key; default with new: {DEFAULT_KEY}")


def run(args: argparse.Namespace) -> int:
    """Make, trust or list keys."""
    if (args.file is not None) != (args.action == "trust"):
        raise ConfigError("a FILE.pub is for 'thinkgate keys trust FILE.pub', and needed there")
    if args.action == "new":
        private, public = new_key(args.name or DEFAULT_KEY)
        _say(f"private  {private}")
        _say(f"public   {public}")
        _say(f"trusted  {trust(public)}")
    elif args.action == "trust":
        _say(f"trusted  {trust(args.file, args.name)}")
    else:
        for key in trusted_keys():
            _say(f"{key.hint[:12]}  {key.name}")
    return 0


def _say(text: str) -> None:
    console.print(escape(text), soft_wrap=True)
