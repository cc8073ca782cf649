"""The registry: aliases such as `production`, each pointing at a checkpoint that passed its gate.

A plain folder with one JSON file per alias, replaced atomically under a lock, so that readers need
none and a crash leaves the old alias or the new. Promotion is the only way in, and it checks.
"""

import fcntl
import getpass
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from thinkgate.checkpoint import gated, load_checkpoint, now, write_atomic
from thinkgate.config import Config, nearest
from thinkgate.errors import RegistryError

__all__ = ["Entry", "Registry"]

DEFAULT_ROOT = Path("runs/registry")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Entry(Config):
    """One change of an alias: who pointed it where, when and why."""

    checkpoint: str
    """Relative to the registry folder, so that both can be moved together."""
    model_digest: str
    decision: str
    by: str
    when: str
    why: str


class Alias(Config):
    """An alias and every change it went through; the last entry is in force."""

    name: str
    entries: Annotated[tuple[Entry, ...], Field(min_length=1)]


class Registry:
    """Aliases under `root`; a missing folder is an empty registry."""

    def __init__(self, root: Path | None = None) -> None:
        chosen = root or Path(os.environ.get("THINKGATE_REGISTRY", DEFAULT_ROOT))
        self.root = chosen.absolute()

    def promote(self, alias: str, checkpoint: Path, why: str = "") -> Entry:
        """Point `alias` at `checkpoint`, verified and gated here, or raise saying what is wrong."""
        _check_name(alias)
        loaded = load_checkpoint(checkpoint)
        decision = gated(loaded)
        entry = Entry(
            checkpoint=os.path.relpath(checkpoint.absolute(), self.root),
            model_digest=loaded.digest,
            decision=decision.id,
            by=_user(),
            when=now(),
            why=why or "promoted",
        )
        self._append(alias, entry)
        return entry

    def rollback(self, alias: str) -> Entry:
        """Point `alias` at what it pointed at before its present checkpoint; verified again."""
        current, *earlier = reversed(self.history(alias))
        previous = next((e for e in earlier if e.model_digest != current.model_digest), None)
        if previous is None:
            raise RegistryError(f"'{alias}' has no earlier checkpoint to roll back to")
        why = f"rollback from {current.model_digest[:12]}"
        return self.promote(alias, self._path(previous), why)

    def resolve(self, alias: str) -> Path:
        """The checkpoint folder `alias` points at, unverified: whoever loads it verifies it."""
        return self._path(self.history(alias)[-1])

    def history(self, alias: str) -> tuple[Entry, ...]:
        """All changes of `alias`, oldest first; RegistryError when it does not exist."""
        _check_name(alias)
        file = self._file(alias)
        if not file.is_file():
            raise RegistryError(
                f"no alias '{alias}' in {self.root}; "
                + (nearest(alias, self.aliases()) if self.aliases() else "nothing promoted yet")
            )
        try:
            return Alias.model_validate_json(file.read_bytes()).entries
        except ValidationError as error:
            raise RegistryError(
                f"{file}: not a registry file: {error.errors()[0]['msg']}; restore it, or delete "
                "it and promote again"
            ) from error

    def aliases(self) -> list[str]:
        """Names of all aliases."""
        return sorted(p.stem for p in self.root.glob("*.json") if NAME.fullmatch(p.stem))

    def _append(self, alias: str, entry: Entry) -> None:
        with self._locked():
            file = self._file(alias)
            before = self.history(alias) if file.is_file() else ()
            after = Alias(name=alias, entries=(*before, entry))
            write_atomic(file, after.model_dump_json(indent=2) + "\n")

    def _path(self, entry: Entry) -> Path:
        return Path(os.path.normpath(self.root / entry.checkpoint))

    def _file(self, alias: str) -> Path:
        return self.root / f"{alias}.json"

    @contextmanager
    def _locked(self) -> Generator[None]:
        """One writer at a time; the kernel frees the lock of a process that dies."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _check_name(alias: str) -> None:
    if not NAME.fullmatch(alias):
        raise RegistryError(f"alias '{alias}': use letters, digits, '.', '_' and '-', 64 at most")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())
