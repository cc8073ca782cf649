"""examples:
  thinkgate api-keys add alice --file keys.yaml                     prints the key, once
  thinkgate api-keys add batch --file keys.yaml --requests-per-minute 60 --concurrency 4
  thinkgate api-keys add ops --file keys.yaml --admin               may deploy
  thinkgate api-keys list --file keys.yaml
  thinkgate api-keys remove alice --file keys.yaml
  thinkgate serve production --host 0.0.0.0 --keys keys.yaml

The file holds names, limits and SHA-256 hashes. A running server reads it at its start only.
"""

import argparse
from pathlib import Path

from thinkgate.errors import ConfigError
from thinkgate_serve.auth import add_key, read_keys, remove_key

__all__ = ["add_arguments", "run"]

LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrency")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `thinkgate api-keys`."""
    parser.add_argument("action", choices=["add", "list", "remove"])
    parser.add_argument("name", nargs="?", metavar="NAME", help="whose key; shown in logs")
    parser.add_argument("--file", type=Path, required=True, help="the keys file")
    parser.add_argument("--admin", action="store_true", help="may see all keys' traces, and deploy")
    for limit in LIMITS:
        parser.add_argument("--" + limit.replace("_", "-"), type=int, metavar="N")


def run(args: argparse.Namespace) -> int:
    """Change or show the keys file."""
    limits = {limit: getattr(args, limit) for limit in LIMITS}
    given = args.admin or any(value is not None for value in limits.values())
    if args.action != "add" and given:
        raise ConfigError(f"api-keys {args.action} takes no limits or rights; they belong to 'add'")
    if (args.name is None) != (args.action == "list"):
        wanted = "takes no NAME" if args.name else "needs a NAME"
        raise ConfigError(f"api-keys {args.action} {wanted}")
    if args.action == "add":
        print(add_key(args.file, args.name, admin=args.admin, **limits))
    elif args.action == "remove":
        remove_key(args.file, args.name)
    else:
        for key in read_keys(args.file):
            shown = key.model_dump(exclude_defaults=True, exclude={"name", "sha256"})
            print("  ".join([key.name, *(f"{limit}={value}" for limit, value in shown.items())]))
    return 0
