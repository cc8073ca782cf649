"""LoRA adapters beside their base: which are allowed, and what clients see of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from fake_checkpoint import make_checkpoint, record_decision
from fake_engine import CARD, HELLO, FakeEngine, ask, characters
from safetensors.numpy import save_file

from thinkgate.checkpoint import ADAPTER, META
from thinkgate.errors import CheckpointError, ConfigError, ThinkgateError
from thinkgate.registry import Registry
from thinkgate_serve.adapters import find_adapters, lora_options
from thinkgate_serve.card import Card, find_target
from thinkgate_serve.model import Deployment

WEIGHTS = "adapter_model.safetensors"
LORA = {"peft_type": "LORA", "r": 4, "rank_pattern": {"q_proj": 12}}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def base(tmp_path: Path, registry: Registry) -> Card:
    record_decision(make_checkpoint(tmp_path / "base"))
    return find_target(str(tmp_path / "base"), registry=registry)


def weights_of(*modules: str) -> dict[str, np.ndarray]:
    """As PEFT names them."""
    return {
        f"base_model.model.{module}.lora_{part}.weight": np.zeros(2)
        for module in modules
        for part in "AB"
    }


def plain_adapter(folder: Path, config: object = LORA, *modules: str) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(weights_of(*modules or ("model.layers.0.self_attn.q_proj",)), folder / WEIGHTS)
    return folder


@pytest.fixture
def trained(tmp_path: Path, base: Card) -> Path:
    """A checkpoint trained with LoRA from `base`, not gated."""
    adapter = plain_adapter(tmp_path / "plain")
    return make_checkpoint(
        tmp_path / "trained", config='{"merged": 1}', adapter=adapter, parent=base.digest
    )


def find(base: Card, registry: Registry, target: Path | str, allow: bool = False) -> Card:
    wanted = {"math": str(target)}
    (card,) = find_adapters(wanted, base, registry=registry, allow_ungated=allow)
    return card


def test_the_adapter_of_a_gated_checkpoint_is_its_own_model(
    base: Card, registry: Registry, trained: Path
) -> None:
    (trained / META / "report.html").write_text("why")
    decision = record_decision(trained)
    registry.promote("staging", trained)
    for target in (trained, "staging"):
        card = find(base, registry, target)
        assert (card.name, card.decision, card.digest) == ("math", decision, decision.candidate)
        assert (Path(card.source), card.adapter) == (trained, trained / META / ADAPTER)
        assert card.report == trained / META / "report.html"
    assert lora_options([card]) == {"enable_lora": True, "max_lora_rank": 16, "max_loras": 2}
    assert lora_options([]) == {}


def test_an_adapter_nobody_judged_is_refused(base: Card, registry: Registry, trained: Path) -> None:
    with pytest.raises(CheckpointError, match="no gate decision"):
        find(base, registry, trained)
    assert find(base, registry, trained, allow=True).gate == "ungated"


def test_a_changed_adapter_is_refused(base: Card, registry: Registry, trained: Path) -> None:
    record_decision(trained)
    save_file({"x": np.ones(2)}, trained / META / ADAPTER / WEIGHTS)
    with pytest.raises(CheckpointError, match="is refused"):
        find(base, registry, trained)
    with pytest.raises(CheckpointError, match="changed after training"):
        find(base, registry, trained, allow=True)


def test_an_adapter_of_another_base_is_refused(
    tmp_path: Path, base: Card, registry: Registry, trained: Path
) -> None:
    record_decision(trained)
    other = make_checkpoint(tmp_path / "other", config='{"other": 1}')
    record_decision(other)
    with pytest.raises(CheckpointError, match=f"trained on {(base.digest or '')[:12]}, served is"):
        find(find_target(str(other), registry=registry), registry, trained)


def test_a_checkpoint_without_an_adapter_is_refused(base: Card, registry: Registry) -> None:
    with pytest.raises(CheckpointError, match="no adapter its manifest vouches for"):
        find(base, registry, base.source)


def test_a_plain_adapter_needs_the_flag(tmp_path: Path, base: Card, registry: Registry) -> None:
    folder = plain_adapter(tmp_path / "plain")
    with pytest.raises(CheckpointError):
        find(base, registry, folder)
    card = find(base, registry, folder, allow=True)
    assert (card.gate, card.source) == ("ungated", str(folder))
    assert card.digest is not None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"peft_type": "LORA"}, "no readable adapter_config.json"),
        ([], "no readable adapter_config.json"),
        ({"peft_type": "IA3", "r": 1}, "a IA3 adapter, not LoRA"),
    ],
)
def test_what_is_no_lora_adapter(
    tmp_path: Path, base: Card, registry: Registry, config: object, reason: str
) -> None:
    folder = plain_adapter(tmp_path / "plain", config)
    with pytest.raises(CheckpointError, match=reason):
        find(base, registry, folder, allow=True)


TENSORS = [
    "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight",
    "model.layers.1.mlp.experts.0.up_proj.qweight", "model.norm.weight",
]  # fmt: skip


def with_weights(base: Card, names: list[str], sharded: bool = False) -> Card:
    """The base, ungated: other files than its manifest's lie in its folder."""
    folder = Path(base.source)
    if sharded:
        index = {"weight_map": dict.fromkeys(names, "model-1.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        save_file({name: np.zeros(1) for name in names}, folder / "model.safetensors")
    return base


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(
    "module",
    ["model.layers.7.self_attn.q_proj", "transformer.h.0.attn.q_proj", "model.q_proj", "x.y"],
)
def test_an_adapter_that_would_change_nothing_is_refused(
    tmp_path: Path, base: Card, registry: Registry, module: str, sharded: bool
) -> None:
    folder = plain_adapter(tmp_path / "plain", LORA, module)
    base = with_weights(base, TENSORS, sharded)
    with pytest.raises(CheckpointError, match="no weight for any module") as refused:
        find(base, registry, folder, allow=True)
    assert str(folder / WEIGHTS) in str(refused.value) and module in str(refused.value)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("wrapped", ["", "language_model.", "model.language_model."])
@pytest.mark.parametrize(
    "module",
    ["model.layers.0.self_attn.q_proj", "layers.1.mlp.experts", "model.embed_tokens", "lm_head",
     "layers.1.mlp.experts.0.up_proj"],
)  # fmt: skip
def test_an_adapter_that_fits_is_served(
    tmp_path: Path, base: Card, registry: Registry, module: str, wrapped: str, sharded: bool
) -> None:
    folder = plain_adapter(tmp_path / "plain", LORA, wrapped + module)
    for prefix in ("", "language_model."):
        named = with_weights(base, [prefix + name for name in TENSORS], sharded)
        assert find(named, registry, folder, allow=True).adapter == folder


def test_weights_for_no_module_are_named(
    tmp_path: Path, base: Card, registry: Registry, capfd: pytest.CaptureFixture[str]
) -> None:
    layers = [f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 7)]
    folder = plain_adapter(tmp_path / "plain", LORA, *layers)
    assert find(with_weights(base, TENSORS), registry, folder, allow=True).adapter == folder
    said = capfd.readouterr().err
    assert "2 of 4 weights are for no module" in said and layers[1] in said


def test_names_and_ranks_that_cannot_be(tmp_path: Path, base: Card, registry: Registry) -> None:
    folder = plain_adapter(tmp_path / "plain", {"peft_type": "LORA", "r": 1000})
    with pytest.raises(ConfigError, match="'tiny' is the base's name"):
        find_adapters({"tiny": str(folder)}, base, registry=registry, allow_ungated=True)
    with pytest.raises(ThinkgateError, match="rank 1000 is more"):
        lora_options([find(base, registry, folder, allow=True)])


def test_clients_choose_by_name_and_see_who_answered() -> None:
    engine = FakeEngine(characters("<think>as base</think>ok"))
    adapter = Card(
        name="math", source="folder", digest="cd" * 32, decision=None, adapter=Path("folder")
    )
    deployment = Deployment(engine, CARD, [adapter])
    listed = ask(deployment, "/v1/models", method="GET").json()["data"]
    assert [(model["id"], model["digest"]) for model in listed] == [
        ("m", CARD.digest),
        ("math", adapter.digest),
    ]
    for name, said, digest in (("math", "as math", "cd" * 32), ("m", "as base", CARD.digest)):
        response = ask(deployment, messages=HELLO, model=name)
        body = response.json()
        assert body["choices"][0]["message"]["reasoning"] == said
        assert body["model"] == name
        assert response.headers["x-thinkgate-model-digest"] == digest
    assert deployment.in_flight == 0
    assert ask(deployment, messages=HELLO).json()["model"] == "m"
    assert ask(deployment, messages=HELLO, model="x").status_code == 404
