"""What is being served and on whose word: the target found, verified and described.

Owns turning a command-line TARGET into a model to load and a card to show. Nothing ungated gets
past it unless the user insists, and then the card says so in every response.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from thinkgate.checkpoint import META, Decision, Manifest, load_checkpoint, model_digest
from thinkgate.errors import CheckpointError, RegistryError
from thinkgate.format import THINK, Tags
from thinkgate.provenance import verify
from thinkgate.provenance.keys import PublicKey, trusted_keys
from thinkgate.registry import Registry

__all__ = ["UNGATED", "Card", "find_target"]

UNGATED = "ungated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A model as its clients see it."""

    name: str
    source: str
    """The folder or Hub id to load, or the folder an adapter is from."""
    digest: str | None
    """Of the model files; None for a Hub id, whose files are not here yet."""
    decision: Decision | None
    """The passing gate decision; None is ungated."""
    tags: Tags = THINK
    sampling: dict[str, Any] = field(default_factory=dict)
    """Sampling defaults the model was gated with; the model's own come after these."""
    manifest: Manifest | None = None
    """None for what thinkgate did not train."""
    adapter: Path | None = None
    """The LoRA weights in `source`, of a model that is served as its base and these."""

    @property
    def gate(self) -> str:
        """For the response header: the verdict, and the decision's id when there is one."""
        return f"{self.decision.verdict} {self.decision.id}" if self.decision else UNGATED

    @property
    def report(self) -> Path | None:
        """The page of the evidence behind the decision, one of the signed files."""
        file = Path(self.source) / META / "report.html"
        return file if self.decision and file.is_file() else None

    def labels(self) -> dict[str, str]:
        """For the log and the metrics."""
        return {
            "model": self.name,
            "digest": self.digest or "",
            "decision": self.decision.id if self.decision else UNGATED,
        }

    def describe(self) -> str:
        """For people: name, digest, gate."""
        digest = f"{self.digest[:8]}…" if self.digest else "unknown"
        gate = f"gate PASS {self.decision.id}" if self.decision else "UNGATED"
        return f"{self.name} (digest {digest}, {gate})"


def find_target(
    target: str,
    *,
    registry: Registry,
    allow_ungated: bool = False,
    name: str | None = None,
) -> Card:
    """The card of an alias, a checkpoint folder, or (ungated only) a plain folder or Hub id."""
    if target in registry.aliases():
        return _from_alias(target, registry, name)
    folder = Path(target)
    if folder.is_dir():
        return _from_folder(
            folder,
            trusted_keys(registry.root),
            name,
            "--allow-ungated serves it for development",
            allow_ungated,
        )
    if allow_ungated and re.fullmatch(r"[\w.-]+/[\w.-]+", target):
        return Card(name=name or target, source=target, digest=None, decision=None)
    raise _not_found(target, registry)


def _from_alias(alias: str, registry: Registry, name: str | None) -> Card:
    folder = registry.resolve(alias)
    way_out = f"'thinkgate rollback --alias {alias}' goes back to the one before"
    card = _from_folder(folder, trusted_keys(registry.root), name or alias, way_out)
    registry.require_unchanged(alias, folder, card.digest or "")
    return card


def _from_folder(
    folder: Path,
    keys: Sequence[PublicKey],
    name: str | None,
    way_out: str,
    allow_ungated: bool = False,
) -> Card:
    if allow_ungated and not (folder / META).is_dir():
        return _plain(folder, name)
    report = verify(folder, keys)
    if allow_ungated and report.refused:
        checkpoint, decision = report.checkpoint or load_checkpoint(folder), None
    else:
        try:
            checkpoint, decision, _ = report.require()
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {way_out}") from error
    template = checkpoint.manifest.template
    for key, value in template.sampling.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise CheckpointError(
                f"{folder}: sampling.{key} in its manifest is {value!r}, not a number; restore the "
                "manifest, or train again"
            )
    return Card(
        name=name or checkpoint.manifest.name,
        source=str(folder),
        digest=checkpoint.digest,
        decision=decision,
        tags=Tags(template.open_tag, template.close_tag),
        sampling=dict(template.sampling),
        manifest=checkpoint.manifest,
    )


def _plain(folder: Path, name: str | None) -> Card:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json, so this is not a model folder")
    try:
        digest = model_digest(folder)
    except CheckpointError:  # a Hub cache snapshot is made of links, which digests refuse
        digest = None
    return Card(
        name=name or folder.resolve().name, source=str(folder), digest=digest, decision=None
    )


def _not_found(target: str, registry: Registry) -> RegistryError:
    aliases = registry.aliases()
    known = f"its aliases are {', '.join(aliases)}" if aliases else "which has no aliases yet"
    return RegistryError(
        f"'{target}' is neither a checkpoint folder nor an alias in {registry.root}, {known}"
        + ("; a Hub model needs --allow-ungated" if "/" in target else "")
    )
