"""LoRA adapters served beside their base: which are allowed, and what the engine must know of them.

Owns the link between an adapter and what was proven about it. What a gate judged is the merged
model of a checkpoint; its manifest names the adapter the weights were merged from, byte for byte,
and the base below. On any other base the adapter is another model, which nobody has judged.
"""

import json
import re
import sys
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
WEIGHTS = "adapter_model.safetensors"
LORA = ".lora_"
"""In the names of LoRA's weights, after the module they are for."""
LAYER = re.compile(r"[A-Za-z_]\w*\.\d+(\.|$).*")
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
            _check_fit(card, folder, Path(base.source))
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


def _check_fit(card: Card, adapter: Path, base: Path) -> None:
    """CheckpointError when none of an adapter's weights is for a module of the base.

    vLLM compares the ends of names alone (`q_proj`); what is for `q_proj` of a layer that is not
    there loads, is used nowhere, and the base answers under the adapter's name. Without a look at
    both, as for a Hub id or weights in other files, nothing is said.
    """
    weights = [name for name in _tensors(adapter / WEIGHTS) if LORA in name]
    modules = _modules(base)
    lost = [name for name in weights if _place(name.split(LORA)[0]) not in modules]
    if not lost or not modules:
        return
    about = f"--lora {card.name}: {adapter / WEIGHTS}"
    if len(lost) == len(weights):
        raise CheckpointError(
            f"{about} has no weight for any module of {base}, only for others such as "
            f"'{lost[0]}'; serve it beside the base it was trained on"
        )
    # PEFT reads over these too, so the adapter may well be right: of a larger model cut down, say.
    print(
        f"thinkgate: {about}: {len(lost)} of {len(weights)} weights are for no module of {base} "
        f"and change nothing, such as '{lost[0]}'",
        file=sys.stderr,
    )


def _modules(base: Path) -> set[str]:
    """Their places in a folder; none when the weights are not where transformers has them."""
    try:
        index = json.loads((base / "model.safetensors.index.json").read_text(encoding="utf-8"))
        names = list(index["weight_map"])
    except (OSError, ValueError, KeyError, TypeError):
        names = _tensors(base / "model.safetensors")
    found: set[str] = set()
    for name in names:
        parts = _place(name.rpartition(".")[0]).split(".")
        # What has parts is one as well: `experts` of `experts.0`.
        found |= {".".join(parts[:end]) for end in range(min(2, len(parts)), len(parts) + 1)}
    # It often is the embedding, and then in no file.
    return found | {"lm_head"} if found else found


def _place(module: str) -> str:
    """A module's name from its layer on (`layers.0.mlp`), else the end of it: what is before
    differs with the classes a model is wrapped in."""
    layer = LAYER.search(module)
    return layer[0] if layer else module.rpartition(".")[2]


def _tensors(file: Path) -> list[str]:
    """Their names; none of a file that cannot be read, about which vLLM has more to say."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError):
        return []


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
