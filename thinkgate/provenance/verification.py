"""Verifying a checkpoint folder: what matches what was signed, and what does not, line by line.

Every file is hashed once. Whatever could hide something (links, pickles, paths that leave the
folder, unsigned files) is refused. Reads only; signs nothing and loads no model.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any, cast

from thinkgate.checkpoint import (
    META,
    Checkpoint,
    Decision,
    gated,
    load_checkpoint,
    require_utf8,
)
from thinkgate.errors import CheckpointError
from thinkgate.provenance.attestation import ATTESTATION, check_statement
from thinkgate.provenance.envelope import Statement, open_bundle, open_envelope
from thinkgate.provenance.keys import PublicKey

__all__ = ["SIGNATURE", "Check", "Outcome", "Report", "folder_digests", "signed_files", "verify"]

SIGNATURE = "signature.json"
SIGNATURE_TYPE = "https://model_signing/signature/v1.0"
PICKLES = (".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth")


class Outcome(StrEnum):
    """What one check found."""

    MATCHES = "ok"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a report."""

    what: str
    outcome: Outcome
    why: str


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was looked at, in order."""

    folder: Path
    checks: tuple[Check, ...]
    checkpoint: Checkpoint | None = None
    """None where its model files are not those of its manifest."""
    decision: Decision | None = None
    """Only a PASS about exactly these model files."""
    signer: PublicKey | None = None
    """Whose signature is on the folder, whether or not the files match it."""

    @property
    def refused(self) -> tuple[Check, ...]:
        """What does not match; empty means the folder is what was signed."""
        return tuple(c for c in self.checks if c.outcome is Outcome.REFUSED)

    def require(self) -> tuple[Checkpoint, Decision, PublicKey]:
        """The checkpoint, its passing decision and who signed both; CheckpointError naming what
        does not match."""
        if self.refused:
            reasons = "; ".join(f"{c.what}: {c.why}" for c in self.refused[:3])
            raise CheckpointError(
                f"{self.folder} is refused: {reasons}; see 'thinkgate verify {self.folder}'"
            )
        assert self.checkpoint and self.decision and self.signer
        return self.checkpoint, self.decision, self.signer


def verify(folder: Path, keys: Sequence[PublicKey]) -> Report:
    """Compare `folder` with what one of `keys` signed. A problem is a line, never an exception."""
    checks: list[Check] = []

    def attempt(what: str, look: Callable[[], tuple[Any, str]]) -> Any:
        """Note what `look` says; its value, or None when it refuses."""
        try:
            value, why = look()
        except (CheckpointError, OSError, UnicodeError) as error:
            checks.append(Check(what, Outcome.REFUSED, str(error)))
            return None
        checks.append(Check(what, Outcome.MATCHES, why))
        return value

    digests = attempt("folder", lambda: _plain_files(folder))
    if digests is None:
        return Report(folder, tuple(checks))
    attempt("formats", lambda: _no_pickles(folder, digests))
    checkpoint = attempt("manifest", lambda: _manifest(folder, digests))
    decision = attempt("decision", lambda: _decision(checkpoint)) if checkpoint else None
    signed, signer = attempt("signature", lambda: _signature(folder, keys)) or (None, None)
    if signed is not None:
        checks += _compared(signed, digests)
    if checkpoint and decision:
        attempt("attestation", lambda: _attestation(checkpoint, decision, digests, keys))
    return Report(folder, tuple(checks), checkpoint, decision, signer)


def folder_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the signature, hidden ones too; CheckpointError for links."""
    found: dict[str, str] = {}
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if name == f"{META}/{SIGNATURE}":
            continue
        with path.open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _walk(folder: Path) -> list[Path]:
    def stop(error: OSError) -> None:
        raise error

    paths: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=stop):
        for name in (*folders, *names):
            path = Path(root, name)
            require_utf8(path)
            if path.is_symlink():
                raise CheckpointError(f"{path} is a symbolic link; copy the file instead")
            if not (path.is_dir() or path.is_file()):
                raise CheckpointError(f"{path} is neither a file nor a folder")
        paths += [Path(root, name) for name in names]
    return sorted(paths)


def _plain_files(folder: Path) -> tuple[dict[str, str], str]:
    digests = folder_digests(folder)
    return digests, f"{len(digests)} plain files, no links"


def _no_pickles(folder: Path, digests: Mapping[str, str]) -> tuple[bool, str]:
    for name in digests:
        path = folder / name
        with path.open("rb") as file:
            start = file.read(8)
        pickled = start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
        safetensors = name.lower().endswith(".safetensors")
        # A safetensors file may start with any byte: its first eight are a length.
        if safetensors:
            _check_safetensors(path)
        elif name.lower().endswith(PICKLES) or pickled or start.startswith(b"PK\x03\x04"):
            raise CheckpointError(f"{name} is a pickle or an archive, which can run code")
    return True, "no pickles; weights are safetensors"


def _check_safetensors(path: Path) -> None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= min(path.stat().st_size, 100 * 2**20) else b""
    try:
        good = isinstance(json.loads(header), dict)
    except (ValueError, RecursionError):
        good = False
    if not good:
        raise CheckpointError(f"{path.name} is named safetensors and is something else")


def _manifest(folder: Path, digests: Mapping[str, str]) -> tuple[Checkpoint, str]:
    checkpoint = load_checkpoint(folder, digests)
    checkpoint.seen_prompts()
    return checkpoint, f"model {checkpoint.digest[:12]}"


def _decision(checkpoint: Checkpoint) -> tuple[Decision, str]:
    decision = gated(checkpoint)
    policy = f"policy {decision.policy} ({decision.policy_sha256[:12]})"
    return decision, f"{decision.verdict.upper()} {decision.id}, {policy}"


def _signature(
    folder: Path, keys: Sequence[PublicKey]
) -> tuple[tuple[dict[str, str], PublicKey], str]:
    file = folder / META / SIGNATURE
    if not file.is_file():
        raise CheckpointError(f"unsigned: no {META}/{SIGNATURE}; run 'thinkgate sign {folder}'")
    statement, key = open_bundle(file.read_bytes(), keys)
    return (signed_files(statement), key), f"by {key.name} ({key.hint[:12]}), trusted"


def signed_files(statement: Statement) -> dict[str, str]:
    """Name to SHA-256, as signed; CheckpointError for anything that would leave a gap."""
    if statement.get("predicateType") != SIGNATURE_TYPE:
        raise CheckpointError("it is no model signature")
    try:
        predicate = cast("dict[str, Any]", statement["predicate"])
        how = predicate["serialization"]
        resources = [(r["name"], r["algorithm"], r["digest"]) for r in predicate["resources"]]
        ignored = how.get("ignore_paths", [])
        whole = (how["method"], how["hash_type"], how["allow_symlinks"])
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError("its statement is incomplete") from error
    if whole != ("files", "sha256", False) or ignored != [f"{META}/{SIGNATURE}"]:
        raise CheckpointError("it leaves files out, follows links, or is not by file and SHA-256")
    files: dict[str, str] = {}
    for name, algorithm, digest in resources:
        path = PurePosixPath(str(name))
        if path.is_absolute() or ".." in path.parts or str(path) != name or "\\" in name:
            raise CheckpointError(f"it names {name!r}, a path outside the folder")
        if algorithm != "sha256" or name in files:
            raise CheckpointError(f"it names {name!r} twice, or not by SHA-256")
        files[name] = digest
    return files


def _compared(signed: Mapping[str, str], found: Mapping[str, str]) -> list[Check]:
    checks: list[Check] = []
    for name in sorted({*signed, *found}):
        if name not in found:
            checks.append(Check(name, Outcome.REFUSED, "missing: it was signed"))
        elif name not in signed:
            checks.append(Check(name, Outcome.REFUSED, "extra: it was not signed"))
        elif signed[name] != found[name]:
            why = f"changed: signed {signed[name][:12]}, is {found[name][:12]}"
            checks.append(Check(name, Outcome.REFUSED, why))
        else:
            checks.append(Check(name, Outcome.MATCHES, found[name][:12]))
    return checks


def _attestation(
    checkpoint: Checkpoint,
    decision: Decision,
    digests: Mapping[str, str],
    keys: Sequence[PublicKey],
) -> tuple[bool, str]:
    file = checkpoint.meta(ATTESTATION)
    if not file.is_file():
        raise CheckpointError(f"no {META}/{ATTESTATION}; run 'thinkgate sign' again")
    statement, key = open_envelope(file.read_bytes(), keys)
    check_statement(statement, checkpoint, decision, digests)
    return True, f"in-toto test result about these files, by {key.name}"
