"""The registry: aliases such as `production`, each pointing at a checkpoint that is proven.

A plain folder with one file per alias: a line for every change, oldest first, the last in force.
Files are replaced atomically under one lock, so readers need none, and whatever dies leaves the old
state or the new. Promotion and rollback are the only ways in, and both verify signature, decision
and every file first, under the same lock. Serving verifies again.

    production.jsonl      the history of an alias
    keys/, trusted/       a registry's own signing key and trusted keys (`provenance.keys`)
"""

import fcntl
import getpass
import os
import re
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from pydantic import ValidationError

from thinkgate.checkpoint import now, read_manifest, require_utf8, write_atomic
from thinkgate.config import Config, nearest
from thinkgate.errors import CheckpointError, RegistryError
from thinkgate.provenance import verify
from thinkgate.provenance.keys import trusted_keys

__all__ = ["Action", "Entry", "Registry"]

DEFAULT_ROOT = Path("runs/registry")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SUFFIX = ".jsonl"


class Action(StrEnum):
    """How an alias came to point where it does."""

    PROMOTE = "promote"
    ROLLBACK = "rollback"


class Entry(Config):
    """One change of an alias: who pointed it where, when and why."""

    action: Action
    checkpoint: str
    """Relative to the registry folder, so that both can be moved together."""
    model_digest: str
    decision: str
    signed_by: str
    """Name of the trusted key, and the first figures of its SHA-256."""
    by: str
    when: str
    why: str = ""
    """In the words of whoever did it."""


class Registry:
    """Aliases under `root`; a missing folder is an empty registry."""

    def __init__(self, root: Path | None = None) -> None:
        chosen = root or Path(os.environ.get("THINKGATE_REGISTRY") or DEFAULT_ROOT)
        self.root = chosen.absolute()

    def promote(self, alias: str, checkpoint: Path, why: str = "") -> Entry:
        """Point `alias` at `checkpoint`, verified here, or raise saying what is wrong with it."""
        _check_name(alias)
        with self._locked():
            before = self.history(alias) if self._file(alias).is_file() else ()
            entry = self._proven(Action.PROMOTE, checkpoint, why)
            self._write(alias, (*before, entry))
        return entry

    def rollback(self, alias: str, why: str = "") -> Entry:
        """Point `alias` at the checkpoint before its present one, verified again; repeated, it
        goes further back.

        Of a damaged file it drops the lines that cannot be read and goes back to the last entry
        that can.
        """
        _check_name(alias)
        with self._locked():
            lines = self._lines(alias)
            kept = tuple(line for line in lines if isinstance(line, Entry))
            steps = _steps(kept)
            if len(kept) == len(lines):
                steps.pop()
            if not steps:
                raise RegistryError(f"'{alias}' has no earlier checkpoint to roll back to")
            path = self.path_of(steps[-1])
            entry = self._proven(Action.ROLLBACK, path, why)
            if entry.model_digest != steps[-1].model_digest:
                raise RegistryError(
                    f"{path} held {steps[-1].model_digest[:12]} when '{alias}' pointed at it and "
                    f"holds {entry.model_digest[:12]} now; promote what you want instead"
                )
            self._write(alias, (*kept, entry))
        return entry

    def prune(
        self, keep: int, *, checkpoints: bool = False, really: bool = False
    ) -> tuple[list[Entry], list[Path]]:
        """Forget all but the last `keep` changes of each alias, and with `checkpoints` delete the
        folders that only those pointed at; what was forgotten and deleted.

        Unless `really`, what would be. A folder that holds another model by now is left alone, and
        so is a link.
        """
        if keep < 1:
            raise RegistryError(f"--keep {keep}: keep 1 at least, the one in force")
        with self._locked():  # nothing is promoted while it is being deleted
            histories = {alias: self.history(alias) for alias in self.aliases()}
            dropped = [entry for entries in histories.values() for entry in entries[:-keep]]
            kept = (entry for entries in histories.values() for entry in entries[-keep:])
            needed = {self.path_of(entry).resolve() for entry in kept}  # two paths may be one place
            old = {self.path_of(e): e for e in dropped} if checkpoints else {}
            folders = sorted(
                path
                for path, entry in old.items()
                if path.resolve() not in needed and not path.is_symlink() and _holds(path, entry)
            )
            if really:
                for alias, entries in histories.items():
                    self._write(alias, entries[-keep:])
                for folder in folders:
                    shutil.rmtree(folder)
        return dropped, folders

    def resolve(self, alias: str) -> Path:
        """The checkpoint folder `alias` points at, unverified: whoever loads it verifies it."""
        path = self.path_of(self.history(alias)[-1])
        if not path.is_dir():
            raise RegistryError(
                f"'{alias}' points at {path}, which is not there any more; promote it from where "
                f"it lies now, or 'thinkgate rollback --alias {alias}'"
            )
        return path

    def folder_of(self, target: str) -> Path:
        """The folder behind the alias `target`, or the one it names; an alias counts first."""
        folder = Path(target)
        if target in self.aliases():
            return self.resolve(target)
        if folder.is_dir():
            return folder
        if len(folder.parts) != 1 or target.startswith("."):
            raise CheckpointError(f"{target}: no such checkpoint folder")
        raise RegistryError(f"{target}: no such checkpoint folder, and {self._unknown(target)}")

    def require_unchanged(self, alias: str, checkpoint: Path, digest: str) -> None:
        """CheckpointError unless `digest`, of the model in the folder `alias` points at, is the one
        that was promoted: a folder may be trained into again."""
        entry = self.history(alias)[-1]
        if digest != entry.model_digest:
            raise CheckpointError(
                f"alias '{alias}' was promoted with digest {entry.model_digest[:12]}, its folder "
                f"{checkpoint} now holds {digest[:12]}; promote it again"
            )

    def history(self, alias: str) -> tuple[Entry, ...]:
        """All changes of `alias`, oldest first; RegistryError when it does not exist."""
        _check_name(alias)
        lines = self._lines(alias)
        for number, line in enumerate(lines, 1):
            if not isinstance(line, Entry):
                raise RegistryError(
                    f"{self._file(alias)}, line {number}: not a registry entry: {line}; "
                    f"'thinkgate rollback --alias {alias}' drops what cannot be read and goes back "
                    "to the last entry that can"
                )
        return tuple(line for line in lines if isinstance(line, Entry))

    def aliases(self) -> list[str]:
        """Names of all aliases."""
        names = (p.name.removesuffix(SUFFIX) for p in self.root.glob(f"*{SUFFIX}"))
        return sorted(name for name in names if NAME.fullmatch(name))

    def path_of(self, entry: Entry) -> Path:
        """Where the checkpoint of `entry` lies, or lay."""
        return Path(os.path.normpath(self.root / entry.checkpoint))

    def _proven(self, action: Action, checkpoint: Path, why: str) -> Entry:
        """An entry about `checkpoint`; CheckpointError unless a trusted key vouches for it all."""
        if not checkpoint.is_dir():
            raise CheckpointError(f"{checkpoint}: no such checkpoint folder")
        require_utf8(checkpoint.absolute())
        proven, decision, signer = verify(checkpoint, trusted_keys(self.root)).require()
        return Entry(
            action=action,
            checkpoint=os.path.relpath(checkpoint.absolute(), self.root),
            model_digest=proven.digest,
            decision=decision.id,
            signed_by=f"{signer.name} {signer.hint[:12]}",
            by=_user(),
            when=now(),
            why=why,
        )

    def _write(self, alias: str, entries: Sequence[Entry]) -> None:
        lines = "".join(f"{entry.model_dump_json()}\n" for entry in entries)
        write_atomic(self._file(alias), lines)

    def _lines(self, alias: str) -> list[Entry | str]:
        """Each line as an entry, or what is wrong with it."""
        file = self._file(alias)
        if not file.is_file():
            raise RegistryError(self._unknown(alias))
        lines = file.read_bytes().splitlines() or [b""]
        return [_parse(line) for line in lines]

    def _unknown(self, alias: str) -> str:
        known = self.aliases()
        hint = nearest(alias, known) if known else "nothing promoted yet"
        return f"no alias '{alias}' in {self.root}; {hint}"

    def _file(self, alias: str) -> Path:
        return self.root / f"{alias}{SUFFIX}"

    @contextmanager
    def _locked(self) -> Generator[None]:
        """One writer at a time; the kernel frees the lock of a process that dies."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            for left_over in self.root.glob(".*.partial"):  # of a writer that was killed
                left_over.unlink()
            yield


def _steps(entries: Sequence[Entry]) -> list[Entry]:
    """The way to the present checkpoint, without what was rolled back; the last is in force."""
    steps: list[Entry] = []
    for entry in entries:
        if entry.action is Action.ROLLBACK:
            while steps and steps[-1].model_digest != entry.model_digest:
                steps.pop()
        if steps and steps[-1].model_digest == entry.model_digest:
            steps.pop()
        steps.append(entry)
    return steps


def _holds(folder: Path, entry: Entry) -> bool:
    try:
        return read_manifest(folder).model_digest == entry.model_digest
    except CheckpointError:
        return False


def _parse(line: bytes) -> Entry | str:
    try:
        return Entry.model_validate_json(line)
    except ValidationError as error:
        return str(error.errors()[0]["msg"])


def _check_name(alias: str) -> None:
    if not NAME.fullmatch(alias):
        raise RegistryError(f"alias '{alias}': use letters, digits, '.', '_' and '-', 64 at most")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())
