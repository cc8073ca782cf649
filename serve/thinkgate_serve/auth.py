"""API keys: who may ask, and how much. Several keys, hashed at rest.

Owns the keys file and looking a key up. Keys are 256 random bits, so one SHA-256 is enough: a slow
hash protects only secrets that can be guessed. It does not know what a request asks for.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, field_validator

from thinkgate.checkpoint import write_atomic
from thinkgate.config import Config, parse, read_yaml
from thinkgate.errors import ConfigError

__all__ = ["ENV_KEY", "ApiKey", "Keyring", "add_key", "read_keys", "remove_key"]

ENV_KEY = "THINKGATE_API_KEY"
PREFIX = "tg-"
SHORTEST_ENV_KEY = 16

Limit = Annotated[int, Field(ge=1)]


class ApiKey(Config):
    """One client's key. Limits left out are no limits."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    """Shown in logs and metrics."""
    sha256: str
    """Of the key, in hex; the key itself is nowhere."""
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    """Prompt and completion tokens together; counted when they are known, at the end."""
    concurrency: Limit | None = None
    """Requests running at the same time."""
    admin: bool = False
    """May see the traces of all keys, and deploy."""

    @field_validator("sha256")
    @classmethod
    def _is_hash(cls, value: str) -> str:
        if len(value) != 64 or not set(value) <= set("0123456789abcdef"):
            raise ValueError(
                "not a SHA-256 in hex; make keys with 'thinkgate api-keys add NAME --file FILE'"
            )
        return value


class KeysFile(Config):
    """What a keys file holds."""

    keys: tuple[ApiKey, ...]

    @field_validator("keys")
    @classmethod
    def _are_different(cls, keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        names = [key.name for key in keys]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two keys are named '{twice[0]}'")
        return keys


class Keyring:
    """The keys a server accepts."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self.keys = tuple(keys)

    @classmethod
    def load(cls, file: Path | None, environment: Mapping[str, str] = os.environ) -> "Keyring":
        """Keys of a file and the one in THINKGATE_API_KEY; empty when there are neither."""
        keys = list(read_keys(file)) if file is not None else []
        if file is not None and not keys:
            raise ConfigError(f"{file}: no keys; 'thinkgate api-keys add NAME --file {file}'")
        secret = environment.get(ENV_KEY)
        if secret is not None:
            if len(secret) < SHORTEST_ENV_KEY:
                raise ConfigError(
                    f"{ENV_KEY} has {len(secret)} characters; give it {SHORTEST_ENV_KEY} at least"
                )
            keys.append(ApiKey(name="env", sha256=digest(secret)))
        return cls(KeysFile(keys=tuple(keys)).keys)

    def __bool__(self) -> bool:
        return bool(self.keys)

    def find(self, authorization: str | None) -> ApiKey | None:
        """The key of an `Authorization: Bearer …` header. As long for a wrong key as for a right
        one: every hash is compared, each in constant time."""
        scheme, _, secret = (authorization or "").partition(" ")
        given = digest(secret.strip())
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.sha256, given):
                found = key
        return found if scheme.lower() == "bearer" else None


def digest(secret: str) -> str:
    """How a key is kept."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(file: Path) -> tuple[ApiKey, ...]:
    """The keys in a file; ConfigError when it is missing or malformed."""
    return parse(KeysFile, read_yaml(file), file).keys


def add_key(file: Path, name: str, *, admin: bool = False, **limits: int | None) -> str:
    """Make a key and write its hash to `file`; the key itself is returned and kept nowhere."""
    kept = list(read_keys(file)) if file.exists() else []
    secret = PREFIX + secrets.token_urlsafe(32)
    if any(key.name == name for key in kept):
        raise ConfigError(f"{file} has a key named '{name}' already; remove it first")
    made = {"name": name, "sha256": digest(secret), "admin": admin, **limits}
    _write(file, [*kept, parse(ApiKey, made, file)])
    return secret


def remove_key(file: Path, name: str) -> None:
    """Take a key out of `file`."""
    kept = read_keys(file)
    if all(key.name != name for key in kept):
        known = ", ".join(key.name for key in kept) or "none"
        raise ConfigError(f"{file} has no key named '{name}'; its keys: {known}")
    _write(file, [key for key in kept if key.name != name])


def _write(file: Path, keys: Sequence[ApiKey]) -> None:
    data = {"keys": [key.model_dump(exclude_none=True, exclude_defaults=True) for key in keys]}
    write_atomic(file, yaml.safe_dump(data, sort_keys=False))
