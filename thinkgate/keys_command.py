"""Examples:

thinkgate keys new                        a pair named default, trusted on this machine
thinkgate keys new --name ci
thinkgate keys new --registry runs/registry     kept in a registry, trusted by it alone
thinkgate keys trust ci.pub               believe what another machine signs
thinkgate keys list

Private keys lie in ~/.config/thinkgate/keys (or $THINKGATE_KEYS) and never leave it; a machine
that only verifies needs only ~/.config/thinkgate/trusted (or $THINKGATE_TRUSTED). A registry's own
keys/ and trusted/ count only where the machine has none.
"""

import argparse
from pathlib import Path

from rich.markup import escape

from thinkgate.console import console
from thinkgate.errors import ConfigError
from thinkgate.provenance.keys import DEFAULT_KEY, new_key, trust, trusted_keys
from thinkgate.registry import Registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate keys`."""
    parser.add_argument("action", choices=("new", "trust", "list"))
    parser.add_argument("file", nargs="?", type=Path, help="with trust: the public key")
    parser.add_argument("--registry", type=Path, help="a registry's own keys, not this machine's")
    parser.add_argument("--name", help=f"name of the key; default with new: {DEFAULT_KEY}")


def run(args: argparse.Namespace) -> int:
    """Make, trust or list keys."""
    if (args.file is not None) != (args.action == "trust"):
        raise ConfigError("a FILE.pub is for 'thinkgate keys trust FILE.pub', and needed there")
    own = Registry(args.registry).root if args.registry else None
    trusted = own / "trusted" if own else None
    if args.action == "new":
        private, public = new_key(args.name or DEFAULT_KEY, own / "keys" if own else None)
        _say(f"private  {private}")
        _say(f"public   {public}")
        _say(f"trusted  {trust(public, folder=trusted)}")
    elif args.action == "trust":
        _say(f"trusted  {trust(args.file, args.name, trusted)}")
    else:
        keys = trusted_keys(Registry(args.registry).root)
        for key in keys:
            _say(f"{key.hint[:12]}  {key.name}")
        if not keys:
            _say("no key is trusted; make one with 'thinkgate keys new'")
    return 0


def _say(text: str) -> None:
    console.print(escape(text), soft_wrap=True)
