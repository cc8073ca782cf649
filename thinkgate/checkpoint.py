"""The checkpoint folder: model files any loader takes, plus what thinkgate proved about them.

Owns the manifest, the gate decision as a record, digests, and what makes a folder complete. It
does not know how a model is trained, measured or served.

    config.json, *.safetensors, tokenizer …   as any Hub model
    thinkgate/manifest.json                   written last: its presence means complete
    thinkgate/decision.json                   what the gate said about exactly these bytes
    thinkgate/policy.json                     the policy it applied, word for word
    thinkgate/evals/<suite>.jsonl             one record per sample
    thinkgate/adapter/                        the LoRA adapter the weights were merged from
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from thinkgate.config import Config
from thinkgate.errors import CheckpointError

__all__ = [
    "ADAPTER",
    "DECISION",
    "MANIFEST",
    "META",
    "POLICY",
    "Checkpoint",
    "DataFingerprint",
    "Decision",
    "GateVerdict",
    "HealthFinding",
    "HealthRecord",
    "HealthVerdict",
    "Manifest",
    "RuleResult",
    "SequentialRun",
    "TemplateFingerprint",
    "alone",
    "decided",
    "file_digests",
    "gated",
    "is_model_file",
    "load_checkpoint",
    "model_digest",
    "now",
    "package_versions",
    "read_decision",
    "read_manifest",
    "require_replaceable",
    "require_space",
    "require_utf8",
    "write_atomic",
    "write_manifest",
    "writing_checkpoint",
]

META = "thinkgate"
MANIFEST = "manifest.json"
DECISION = "decision.json"
POLICY = "policy.json"
SEEN = "seen-prompts.txt"
ADAPTER = "adapter"


class GateVerdict(StrEnum):
    """What a gate can say. INCONCLUSIVE is not a weak FAIL: the data do not settle it."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class DataFingerprint(Config):
    """What a model was trained on: enough to check an evaluation set against it later."""

    name: str
    count: int
    sha256: str
    """Over the sorted distinct prompt keys (`thinkgate.problems.prompt_key`), one a line."""


class TemplateFingerprint(Config):
    """What decides how text becomes a prompt and a completion becomes reasoning and answer."""

    chat_template_sha256: str
    open_tag: str
    close_tag: str
    prefilled: bool
    sampling: dict[str, Any] = Field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 over all fields; equal between training, gate and server or something moved."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class HealthVerdict(StrEnum):
    """How training went. STOPPED: it was ended by a finding that made going on pointless."""

    HEALTHY = "healthy"
    WARNED = "warned"
    STOPPED = "stopped"


class HealthFinding(Config):
    """One symptom seen while training."""

    symptom: str
    step: int
    stop: bool
    """Whether `health: strict` ends the run for it."""
    why: str
    """What was seen, what it usually means and what to change."""


class HealthRecord(Config):
    """What the health watch saw of a run."""

    verdict: HealthVerdict
    findings: tuple[HealthFinding, ...] = ()


class Manifest(Config):
    """Where a checkpoint came from. Frozen; the file is written last."""

    schema_version: int = 1
    name: str
    method: str
    """`base`, `sft`, `grpo` …"""
    recipe: str
    config: dict[str, Any]
    """The resolved configuration, overrides applied."""
    data: tuple[DataFingerprint, ...] = ()
    template: TemplateFingerprint
    packages: dict[str, str] = Field(default_factory=dict)
    seed: int = 0
    seen_sha256: str | None = None
    """Of `thinkgate/seen-prompts.txt`; `write_manifest` fills it in."""
    adapter_digest: str | None = None
    """`model_digest` of `thinkgate/adapter/`; None where there is none."""
    parent: str | None = None
    """`model_digest` of the checkpoint this one was trained from."""
    metrics: dict[str, float] = Field(default_factory=dict)
    health: HealthRecord | None = None
    """None where nothing was watched, and in manifests older than this field."""
    model_digest: str
    created: str


class RuleResult(Config):
    """One rule of a policy, applied. Proportions are in [0, 1]."""

    rule: str
    suite: str
    """`training` for rules about the model's training."""
    metric: str
    estimate: float | None
    low: float | None
    high: float | None
    """None with an estimate: the interval has no upper end."""
    n: int
    threshold: float
    verdict: GateVerdict
    why: str
    more_samples: int | None = None
    """Where INCONCLUSIVE: further samples of the candidate that would settle it 4 times in 5."""


class SequentialRun(Config):
    """How a sample was drawn that was looked at as it grew, and what stopping early saved."""

    order_seed: int
    """Of the random order in which problems are asked."""
    looks: int
    planned: int
    """Samples, of both models, if nothing had stopped it earlier."""
    used: int
    """Samples the decision rests on."""


class Decision(Config):
    """What the gate said about one set of model files, and on what evidence."""

    schema_version: int = 1
    id: str
    verdict: GateVerdict
    policy: str
    policy_sha256: str
    """Of `thinkgate/policy.json`, byte for byte."""
    candidate: str
    """`model_digest` of the checkpoint that was judged; the decision holds for nothing else."""
    template: str | None = None
    """`TemplateFingerprint.digest` it was judged with; None in decisions about records alone."""
    incumbent: str | None
    suites: dict[str, str]
    """Suite name to the fingerprint of prompt, sampling and problems."""
    rules: tuple[RuleResult, ...]
    sequential: SequentialRun | None = None
    """None where the size of the sample was settled before."""
    created: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint folder whose files have the digests its manifest names."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        """The digest of the model files."""
        return self.manifest.model_digest

    def meta(self, *parts: str) -> Path:
        """A path inside the folder's `thinkgate/`."""
        return self.path.joinpath(META, *parts)

    def seen_prompts(self) -> frozenset[str]:
        """Keys of every prompt this checkpoint and its ancestors were trained on."""
        path = self.meta(SEEN)
        content = path.read_bytes() if path.is_file() else b""
        expected = self.manifest.seen_sha256
        if hashlib.sha256(content).hexdigest() != expected:
            raise CheckpointError(
                f"{path} was changed or removed after training, so what the model was trained on "
                "is not known; restore it, or train again"
            )
        return frozenset(content.decode("ascii", "replace").split())


def now() -> str:
    """The time, UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that belongs to the model: all but hidden files and `thinkgate/`."""
    result: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if not is_model_file(relative.as_posix()):
            continue
        if path.is_symlink():
            raise CheckpointError(f"{path} is a symbolic link; copy the file into the checkpoint")
        if path.is_file():
            with path.open("rb") as file:
                result[relative.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return result


def is_model_file(name: str) -> bool:
    """Whether a file, named relative to its checkpoint, counts for the model digest."""
    parts = name.split("/")
    return parts[0] != META and not any(part.startswith(".") for part in parts)


def model_digest(folder: Path, digests: Mapping[str, str] | None = None) -> str:
    """One SHA-256 over the names and digests of all model files (weights, tokenizer, config).

    `digests` of the folder's files, where they are known already.
    """
    found = file_digests(folder) if digests is None else digests
    # By the parts of the name, as paths sort: "a/b" comes before "a.b".
    names = sorted(filter(is_model_file, found), key=lambda name: name.split("/"))
    listing = "".join(f"{found[name]}  {name}\n" for name in names)
    return hashlib.sha256(listing.encode()).hexdigest()


def load_checkpoint(path: Path, digests: Mapping[str, str] | None = None) -> Checkpoint:
    """The checkpoint at `path`; CheckpointError when incomplete or when any model file changed.

    `digests` of the folder's files, where they are known already.
    """
    manifest = read_manifest(path)
    actual = model_digest(path, digests)
    if actual != manifest.model_digest:
        raise CheckpointError(
            f"{path}: its files have digest {actual[:12]}, its manifest says "
            f"{manifest.model_digest[:12]}: a file was changed, added or removed after training"
        )
    return Checkpoint(path, manifest)


def read_manifest(path: Path) -> Manifest:
    """The manifest of the checkpoint at `path`, whatever became of its model files."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such checkpoint folder")
    file = path / META / MANIFEST
    if not file.is_file():
        raise CheckpointError(
            f"{path}: no {META}/{MANIFEST}, so this is not a finished thinkgate checkpoint; "
            "train one with 'thinkgate train', or serve it with --allow-ungated"
        )
    return _read(Manifest, file)


def read_decision(checkpoint: Checkpoint) -> Decision | None:
    """The recorded gate decision, or None when the checkpoint was never gated."""
    file = checkpoint.meta(DECISION)
    return _read(Decision, file) if file.is_file() else None


def decided(checkpoint: Checkpoint) -> Decision:
    """The decision about exactly these files, PASS or not; CheckpointError where there is none."""
    decision = read_decision(checkpoint)
    path = checkpoint.path
    if decision is None:
        raise CheckpointError(f"{path}: no gate decision; run 'thinkgate gate {path}' first")
    if decision.candidate != checkpoint.digest:
        raise CheckpointError(
            f"{path}: its decision {decision.id} is about {decision.candidate[:12]}, the files are "
            f"{checkpoint.digest[:12]}; run 'thinkgate gate {path}' again"
        )
    if decision.template != checkpoint.manifest.template.digest:
        raise CheckpointError(
            f"{path}: the tags or sampling defaults in its manifest are not those of decision "
            f"{decision.id}; run 'thinkgate gate {path}' again"
        )
    if decision.policy_sha256 != _policy_digest(checkpoint):
        raise CheckpointError(
            f"{path}: {META}/{POLICY} is not the policy that decision {decision.id} applied: "
            f"changed, or removed; run 'thinkgate gate {path}' again"
        )
    return decision


def gated(checkpoint: Checkpoint) -> Decision:
    """The passing decision about exactly these files; CheckpointError says what is missing."""
    decision = decided(checkpoint)
    if decision.verdict is not GateVerdict.PASS:
        reasons = [f"{r.rule}: {r.why}" for r in decision.rules if r.verdict != GateVerdict.PASS]
        raise CheckpointError(
            f"{checkpoint.path}: the gate said {decision.verdict.upper()} ({'; '.join(reasons)})"
        )
    return decision


def _policy_digest(checkpoint: Checkpoint) -> str | None:
    file = checkpoint.meta(POLICY)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None


def require_replaceable(path: Path) -> bool:
    """Whether a finished checkpoint lies at `path`. CheckpointError when anything else does that
    is not an empty folder: a new checkpoint would take its place, and it would be lost."""
    if (path / META / MANIFEST).is_file():
        return True
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise CheckpointError(
            f"{path} exists and is not a finished checkpoint, so it is not replaced; choose "
            "another folder with --out, or move it away"
        )
    return False


@contextmanager
def writing_checkpoint(path: Path) -> Generator[Path]:
    """A fresh folder to fill, moved to `path` when the block ends well; an old one is replaced.

    A reader never sees half a checkpoint: the folder appears under its name complete or not at all.
    """
    require_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with alone(partial):
        shutil.rmtree(partial, ignore_errors=True)
    (partial / META).mkdir(parents=True)
    with alone(partial):
        yield partial
    if path.exists():
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        partial.rename(path)
        shutil.rmtree(old)
    else:
        partial.rename(path)


@contextmanager
def alone(folder: Path) -> Generator[None]:
    """Hold `folder`, if it is there; CheckpointError when another run does. The kernel frees the
    lock of a process that dies."""
    if not folder.is_dir():
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"{folder} is being written by another run; wait for it, or choose another "
                "folder with --out"
            ) from error
        yield
    finally:
        os.close(descriptor)


def write_manifest(folder: Path, manifest: Manifest, seen_prompts: frozenset[str]) -> None:
    """Complete a checkpoint folder: the seen prompts first, the manifest last."""
    seen = "".join(f"{key}\n" for key in sorted(seen_prompts))
    manifest = manifest.model_copy(
        update={"seen_sha256": hashlib.sha256(seen.encode()).hexdigest()}
    )
    write_atomic(folder / META / SEEN, seen)
    write_atomic(folder / META / MANIFEST, manifest.model_dump_json(indent=2) + "\n")


def write_atomic(path: Path, text: str) -> None:
    """Replace a file so that readers see the old text or the new, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:  # a full disk is reported without the file it met
        error.filename = error.filename or str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def require_utf8(path: Path) -> None:
    """CheckpointError when a name on the path could not be written into JSON."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{str(path)!r}: the name is not UTF-8; rename it") from error


def require_space(folder: Path, mebibytes: int) -> None:
    """CheckpointError when the disk under `folder` has less free space than a run needs."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free // 2**20
    if free < mebibytes:
        raise CheckpointError(
            f"{folder}: {free} MiB free on its disk, {mebibytes} MiB needed; free some space or "
            "choose another folder with --out"
        )


def package_versions(*names: str) -> dict[str, str]:
    """Installed versions of the named distributions; those not installed are left out."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


M = TypeVar("M", bound=Config)


def _read(model: type[M], file: Path) -> M:
    try:
        return model.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (ValidationError, ValueError, RecursionError) as error:
        first = str(error).splitlines()[0] if str(error) else "too deep"
        if isinstance(error, ValidationError):
            details = error.errors()[0]
            first = f"'{'.'.join(map(str, details['loc']))}': {details['msg'].lower()}"
        raise CheckpointError(f"{file}: not a valid {model.__name__.lower()}: {first}") from error
