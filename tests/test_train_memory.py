"""Memory arithmetic: against numbers worked out by hand, and against what autograd keeps."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from thinkgate_train.preflight.memory import ModelSize, Setup, estimate, fitting, room, size_of

GIB = 2**30

# Qwen2.5-7B, from its config.json. Embedding and head 152064 x 3584 each; a layer has q and o
# 3584 x 3584 (q with bias), k and v 3584 x 512 with bias, three times 3584 x 18944, two norms.
LAYER = (3584 + 1) * 3584 + 3584 * 3584 + 2 * (3584 + 1) * 512 + 3 * 3584 * 18944 + 2 * 3584
PARAMETERS = 2 * 152_064 * 3584 + 28 * LAYER + 3584
QWEN = ModelSize(
    parameters=PARAMETERS,
    weight_bytes=2 * PARAMETERS,
    item=2,
    layers=28,
    hidden=3584,
    intermediate=18_944,
    heads=28,
    kv_heads=4,
    head_dim=128,
    vocabulary=152_064,
    qk_norm=False,
    score_matrix=False,
)
FULL = Setup(
    batch=8,
    accumulation=2,
    sequences=1,
    length=1024,
    checkpointing=True,
    mixed=True,
    adapter=None,
    states=2,
    reference=False,
    head=True,
    rollouts=16,
)


def test_full_training_of_qwen_7b_by_hand() -> None:
    assert PARAMETERS == 7_615_616_512  # as the model card says
    need = estimate(QWEN, replace(FULL, reference=True))
    assert need.weights == need.reference == need.gradients == 15_231_233_024
    assert need.states == 2 * 15_231_233_024  # two of Adam's, in bfloat16 like the weights
    # Each layer's input, 8 x 1024 tokens of 3584 in bfloat16, and one layer in full: two norms of
    # 4 + 2 bytes; inputs of the linear layers 2 h; q, k, v and output 4 a d; four of the block's f.
    tokens = 8 * 1024
    one = 2 * 6 * 3584 + 2 * (2 * 3584 + 4 * 28 * 128 + 4 * 18_944)
    assert need.activations == tokens * (28 * 2 * 3584 + one)
    # A tile of 4096 x 32768 in bfloat16, and the head's gradients in float32.
    assert need.logits == 2 * 4096 * 32_768 + 4 * 3584 * (tokens + 152_064)
    # 56 KiB a token, known for this model; and three float32 copies of one token's logits.
    assert need.cache == 16 * (1024 * 56 * 1024 + 12 * 152_064)
    assert need.training == 5 * 15_231_233_024 + need.activations + need.logits
    assert need.peak == need.training > need.generating


def test_an_adapter_leaves_gradients_and_states_small() -> None:
    # r = 16 on the seven linear layers: 16 (in + out) of each.
    sides = 4 * 3584 + 2 * (3584 + 512) + 3 * (3584 + 18_944)
    adapter = 28 * 16 * sides
    assert adapter == 40_370_176
    need = estimate(QWEN, replace(FULL, adapter=adapter))
    assert need.weights == 15_231_233_024 + 4 * adapter
    assert (need.gradients, need.states) == (4 * adapter, 8 * adapter)
    assert need.logits < 0.5 * GIB  # the head is frozen
    in_8_bits = estimate(QWEN, replace(FULL, state_item=1))
    assert in_8_bits.states == 2 * PARAMETERS


def test_without_checkpointing_every_layer_is_kept() -> None:
    one = estimate(QWEN, FULL).activations - 28 * 8 * 1024 * 2 * 3584
    assert estimate(QWEN, replace(FULL, checkpointing=False)).activations == 28 * one
    scores = estimate(replace(QWEN, score_matrix=True), FULL).activations
    # 5 a s^2 b of Korthikanti et al. for the layer that is derived.
    assert scores - estimate(QWEN, FULL).activations == 5 * 28 * 1024**2 * 8


def test_processes_share_what_they_shard() -> None:
    whole, shared = estimate(QWEN, FULL), estimate(QWEN, replace(FULL, state_shards=8))
    assert shared.gradients == whole.gradients // 8 and shared.weights == whole.weights
    assert estimate(QWEN, replace(FULL, weight_shards=8)).weights == whole.weights // 8


CHECKPOINTING = {"trl.gradient_checkpointing": True}
SMALLER = {"trl.per_device_train_batch_size": 2, "trl.gradient_accumulation_steps": 8}


@pytest.mark.parametrize(
    ("available", "expected"),
    [
        (200, {}),
        (76, CHECKPOINTING),
        (66, CHECKPOINTING | SMALLER),
        (24, CHECKPOINTING | {"peft": "{r: 16}"}),
        (11, CHECKPOINTING | {"peft": "{r: 16}", "model.quantization": "{bits: 4}"}),
        (4, None),
    ],
)
def test_the_plan_takes_the_cheapest_change_that_fits(available: float, expected: Any) -> None:
    setup = replace(FULL, checkpointing=False, batch=4, accumulation=4)
    assert fitting(QWEN, setup, int(available * GIB), adapt=True, quantize=True) == expected


def test_the_plan_keeps_the_effective_batch() -> None:
    setup = replace(FULL, batch=12, accumulation=3)
    keys = fitting(QWEN, setup, 68 * GIB, adapt=False, quantize=False)
    assert keys is not None
    batch = keys["trl.per_device_train_batch_size"]
    assert batch * keys["trl.gradient_accumulation_steps"] == 36 and 12 % batch == 0
    assert fitting(QWEN, setup, 20 * GIB, adapt=False, quantize=True) is None


def test_fewer_completions_at_once_where_their_cache_is_too_large() -> None:
    setup = replace(
        FULL, adapter=1000, batch=2, accumulation=16, length=32_768, rollouts=32, group=8
    )
    keys = fitting(QWEN, setup, 36 * GIB, adapt=False, quantize=False)
    assert keys is not None
    batch, steps = keys["trl.per_device_train_batch_size"], keys["trl.steps_per_generation"]
    assert (batch, steps) == (1, 8)
    assert keys["trl.gradient_accumulation_steps"] == 32


def _kept(model: Any, batch: int, length: int, mixed: bool) -> int:
    """Bytes that autograd keeps of a forward pass, parameters left out."""
    import torch

    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = tensor  # held, so that no other takes its place
        return tensor

    ids = torch.randint(0, 64, (batch, length))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16) if mixed else contextlib.nullcontext(),
    ):
        model.train()(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3", "Llama"])
@pytest.mark.parametrize("precision", ["single", "half", "mixed", "adapter"])
def test_activations_are_what_autograd_keeps(family: str, precision: str) -> None:
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config: Any = getattr(transformers, f"{family}Config")(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=64,
    )
    model: Any = getattr(transformers, f"{family}Model")(config)
    if precision in ("half", "adapter"):
        model = model.to(torch.bfloat16)
    size = size_of(model)
    assert size is not None
    adapter = None
    if precision == "adapter":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
        adapter = 1000
    mixed = precision in ("mixed", "adapter")
    setup = replace(
        FULL, batch=4, length=96, checkpointing=False, mixed=mixed, adapter=adapter, rollouts=0
    )
    assert estimate(size, setup).activations == pytest.approx(_kept(model, 4, 96, mixed), rel=0.1)


def test_the_numbers_of_a_model_are_read_off_it() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

    model = Qwen3ForCausalLM(
        Qwen3Config(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            vocab_size=50,
        )
    )
    size = size_of(model)
    assert size is not None
    assert size.parameters == sum(p.numel() for p in model.parameters())
    assert size.weight_bytes == 4 * size.parameters and size.item == 4
    assert (size.layers, size.kv_heads, size.head_dim, size.qk_norm) == (2, 1, 32, True)
    # Its config has no intermediate size: another block, for which nothing was counted.
    assert (
        size_of(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=50))) is None
    )


def test_a_container_has_no_more_room_than_its_limit(tmp_path: Path, monkeypatch: Any) -> None:
    import torch

    cpu = torch.device("cpu")
    free = room(cpu)
    assert free is not None and free > 0
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    monkeypatch.setattr("thinkgate.host_memory.CGROUP", tmp_path)
    assert room(cpu) == 600_000
    (tmp_path / "memory.max").write_text("max\n")
    assert room(cpu) == pytest.approx(free, rel=0.5)
    assert room(torch.device("meta")) is None
