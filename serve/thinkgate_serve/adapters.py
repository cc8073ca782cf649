"""LoRA adapters served beside their base: which are allowed, and what the engine must know of them.

Owns the link between an adapter and what was proven about it. What a gate judged is the merged
model of a checkpoint; its manifest names the adapter the weights were merged from, byte for byte,
and the base below. On any other base the adapter is another model, which nobody has judged.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from thinkgate.checkpoint import ADAPTER, META, Manifest, model_digest
from thinkgate.errors import CheckpointError, ConfigError
from thinkgate.registry import Registry
from thinkgate_serve.card import Card, find_target

__all__ = ["find_adapters", "lora_options"]

CONFIG = "adapter_config.json"
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Those vLLM makes room for."""


def find_adapters(
    wanted: Mapping[str, str], base: Card, *, registry: Registry, allow_ungated: bool = False
) -> list[Card]:
    """The cards of adapters by name: of checkpoints trained with LoRA from `base`, as folders or
    registry aliases, or (ungated only) of plain adapter folders."""
    cards: list[Card] = []
    for name, target in wanted.items():
        if name == base.name:
            raise ConfigError(f"--lora {name}={target}: '{name}' is the base's name; give another")
        folder = Path(target)
        if allow_ungated and folder.is_dir() and not (folder / META).exists():
            digest = model_digest(folder)
            card = Card(name=name, source=str(folder), digest=digest, decision=None, adapter=folder)
        else:
            card = find_target(target, registry=registry, allow_ungated=allow_ungated, name=name)
            card = _adapter_of(card, base)
        _read_config(card)
        cards.append(card)
    return cards


def lora_options(adapters: Sequence[Card]) -> dict[str, Any]:
    """What vLLM's engine arguments must say to serve these; nothing without any."""
    if not adapters:
        return {}
    configs = [_read_config(card) for card in adapters]
    rank = max(max(c["r"], *(c.get("rank_pattern") or {}).values(), 0) for c in configs)
    room = next((size for size in RANKS if size >= rank), None)
    if room is None:
        raise ConfigError(f"--lora: rank {rank} is more than vLLM's largest, {RANKS[-1]}")
    # One slot stays empty: vLLM's CPU kernels take a request without an adapter for one that uses
    # the last slot's, when others in its batch have one.
    return {"enable_lora": True, "max_lora_rank": room, "max_loras": len(adapters) + 1}


def _adapter_of(card: Card, base: Card) -> Card:
    """`card`, for its adapter instead of its merged weights."""
    manifest = card.manifest
    folder = Path(card.source, META, ADAPTER)
    if manifest is None or manifest.adapter_digest is None or not folder.is_dir():
        raise CheckpointError(
            f"--lora {card.name}: {card.source} has no adapter its manifest vouches for; train it "
            "with 'peft' in the recipe (checkpoints older than this version: train again)"
        )
    if model_digest(folder) != manifest.adapter_digest:
        raise CheckpointError(
            f"{folder} was changed after training: its manifest says {manifest.adapter_digest[:12]}"
        )
    if not _is_base_of(manifest, base):
        trained_on = manifest.parent[:12] if manifest.parent else _path(manifest)
        raise CheckpointError(
            f"--lora {card.name}: {card.source} was trained on {trained_on}, served is "
            f"{base.describe()}; an adapter is proven on its own base only"
        )
    if base.manifest is not None and _template(base.manifest) != _template(manifest):
        raise CheckpointError(
            f"--lora {card.name}: {card.source} was gated with another chat template than the "
            f"base's, {base.source}"
        )
    return replace(card, adapter=folder)


def _is_base_of(manifest: Manifest, base: Card) -> bool:
    """By digest; of a Hub model, which has none, by id."""
    if manifest.parent is not None or Path(base.source).is_dir():
        return manifest.parent is not None and manifest.parent == base.digest
    return _path(manifest) == base.source


def _path(manifest: Manifest) -> str | None:
    return manifest.config.get("model", {}).get("path")


def _template(manifest: Manifest) -> str:
    return manifest.template.chat_template_sha256


def _read_config(card: Card) -> dict[str, Any]:
    assert card.adapter is not None
    file = card.adapter / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if config["peft_type"] == "LORA" and isinstance(config["r"], int):
            return config
        problem = f"a {config['peft_type']} adapter, not LoRA"
    except (OSError, ValueError, KeyError, TypeError):
        problem = f"no readable {CONFIG}"
    raise CheckpointError(f"--lora {card.name}: {card.adapter}: {problem}")
