"""How much memory a run needs, from sizes alone, and which keys to change when it does not fit.

Owns the arithmetic. Nothing is tried out, so it is an estimate: what it counts exactly are weights,
gradients, optimiser states and the key-value cache; activations follow the counting of Korthikanti
et al. 2022 (arXiv 2205.05198, section 4), done again for the block of today's models (RMSNorm in
float32, grouped-query attention without a score matrix, gated MLP) as transformers runs it. Knows
no recipe and prints nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from thinkgate.host_memory import free_memory

__all__ = ["LogitTile", "Memory", "ModelSize", "Setup", "estimate", "fitting", "room", "size_of"]

MARGIN = 1.1
"""Workspaces, fragmentation and gradients of activations: a plan must fit with a tenth to spare."""


class LogitTile:
    """TRL 1.16 computes log-probabilities in tiles of this size (trl/kernels/chunked_logprob.py):
    the whole batch's logits, once the usual cause of running out of memory, never exist."""

    TOKENS = 4096
    VOCABULARY = 32768


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """A causal model, in numbers."""

    parameters: int
    weight_bytes: int
    """As loaded: quantised weights as they lie in memory."""
    item: int
    """Bytes of an unquantised weight, 2 or 4."""
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    qk_norm: bool
    """Queries and keys are normalised too, as in Qwen3."""
    score_matrix: bool
    """Attention is `eager`: it keeps heads x length x length scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The keys of a run that decide, for one process."""

    batch: int
    """trl.per_device_train_batch_size."""
    accumulation: int
    """trl.gradient_accumulation_steps."""
    sequences: int
    """Of one row: two where pairs are compared."""
    length: int
    """Tokens of prompt and completion."""
    checkpointing: bool
    mixed: bool
    """Computes in 16 bits under autocast."""
    adapter: int | None
    """Parameters of the adapter; None trains all."""
    adapter_item: int = 4
    states: float
    """Optimiser states of one trained parameter, in parameters: 2 for AdamW."""
    state_item: int | None = None
    """Bytes of one state; None: those of the parameter."""
    reference: bool
    """A second, frozen copy of the weights."""
    head: bool
    """Log-probabilities over the vocabulary are computed."""
    rollouts: int
    """Completions generated at once by transformers; 0 where none are, or vLLM does it."""
    group: int = 1
    """Completions of one prompt, which are generated together."""
    weight_shards: int = 1
    state_shards: int = 1
    """Processes that gradients and states (and weights) are spread over."""
    reserved: int = 0
    """Bytes that vLLM takes beside the trainer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes, by what takes them."""

    weights: int
    reference: int
    gradients: int
    states: int
    activations: int
    logits: int
    cache: int
    """Keys and values while generating, and the logits of one token."""
    reserved: int

    @property
    def training(self) -> int:
        """While the loss is computed and derived."""
        return self._always + self.gradients + self.activations + self.logits

    @property
    def generating(self) -> int:
        """While completions are sampled; gradients are freed then."""
        return self._always + self.cache

    @property
    def peak(self) -> int:
        """The larger of the two."""
        return max(self.training, self.generating)

    @property
    def _always(self) -> int:
        return self.weights + self.reference + self.states + self.reserved


def estimate(size: ModelSize, setup: Setup) -> Memory:
    """What a process needs at its peak."""
    full = setup.adapter is None
    trained = size.parameters if setup.adapter is None else setup.adapter
    item = size.item if full else setup.adapter_item
    adapter = 0 if full else trained * item
    return Memory(
        weights=size.weight_bytes // setup.weight_shards + adapter,
        reference=size.weight_bytes // setup.weight_shards if setup.reference else 0,
        gradients=trained * item // setup.state_shards,
        states=int(trained * setup.states * (setup.state_item or item)) // setup.state_shards,
        activations=_activations(size, setup),
        logits=_logits(size, setup) if setup.head else 0,
        cache=_cache(size, setup),
        reserved=setup.reserved,
    )


def _activations(size: ModelSize, setup: Setup) -> int:
    """Bytes kept for the backward pass of one micro-batch."""
    tokens = setup.batch * setup.sequences * setup.length
    wide = size.heads * size.head_dim
    half = setup.mixed or size.item == 2
    item = 2 if half else 4
    # Two norms, each its input in float32 and its output.
    norms = 2 * (4 + (4 if setup.mixed and size.item == 4 else item)) * size.hidden
    if size.qk_norm:
        norms += (4 + item) * (size.heads + size.kv_heads) * size.head_dim
    # Inputs of the linear layers; where the stream is float32, each layer keeps a 16-bit copy of
    # its own, and so do adapters in float32 beside 16-bit weights.
    copies = 5 if setup.mixed and (size.item == 4 or setup.adapter is not None) else 2
    # Query, key and value (repeated for all heads), and the attention's output.
    attention = 4 * wide
    # Gate, its activation, the other branch and their product.
    block = norms + item * (copies * size.hidden + attention + 4 * size.intermediate)
    one = tokens * block
    if size.score_matrix:  # 5 a s / h of the paper's formula
        one += 5 * setup.batch * setup.sequences * size.heads * setup.length**2
    stream = tokens * size.hidden * (size.item if size.item == 2 else 4)
    if setup.checkpointing:  # every layer's input, and one layer in full while it is derived
        return size.layers * stream + one
    weights_in_16_bits = 2 * size.parameters if setup.mixed and size.item == 4 else 0
    return size.layers * one + weights_in_16_bits


def _logits(size: ModelSize, setup: Setup) -> int:
    tokens = setup.batch * setup.sequences * setup.length
    item = 2 if setup.mixed or size.item == 2 else 4
    tile = min(tokens, LogitTile.TOKENS) * min(size.vocabulary, LogitTile.VOCABULARY) * item
    # The gradients of the head's input and weights are summed in float32.
    hidden = 4 * tokens * size.hidden
    return tile + hidden + (4 * size.vocabulary * size.hidden if setup.adapter is None else 0)


def _cache(size: ModelSize, setup: Setup) -> int:
    per_token = 2 * size.layers * size.kv_heads * size.head_dim * size.item
    # The next token's logits in float32: as they come, divided by the temperature, as shares.
    choosing = 3 * 4 * size.vocabulary
    return setup.rollouts * (setup.length * per_token + choosing)


def fitting(
    size: ModelSize, setup: Setup, available: int, *, adapt: bool, quantize: bool
) -> dict[str, Any] | None:
    """The recipe keys to change so that it fits, the effective batch kept; None: nothing does.

    The cheapest change first: recomputing activations costs a quarter more time, smaller
    micro-batches cost little on a long text, an adapter and 4 bits change what is trained. `adapt`
    and `quantize` say whether those two are possible here.
    """
    for changed_size, base, keys in _kinds(size, setup, adapt=adapt, quantize=quantize):
        for changed, more in _sizes(base):
            if estimate(changed_size, changed).peak * MARGIN <= available:
                return more | keys
    return None


def _kinds(
    size: ModelSize, setup: Setup, *, adapt: bool, quantize: bool
) -> Iterator[tuple[ModelSize, Setup, dict[str, Any]]]:
    """What may be trained: as it is, an adapter, an adapter beside weights of 4 bits."""
    yield size, setup, {}
    keys: dict[str, Any] = {}
    if setup.adapter is None:
        if not adapt:
            return
        setup = replace(setup, adapter=_usual_adapter(size), reference=False)
        keys = {"peft": "{r: 16}"}
        yield size, setup, keys
    # About 0.4 bits of constants for each weight; embeddings and head stay as they are.
    plain = 2 * size.vocabulary * size.hidden
    packed = int((size.parameters - plain) * 0.55) + plain * 2
    if quantize and packed < size.weight_bytes:
        small = replace(size, weight_bytes=packed, item=2)
        yield small, setup, keys | {"model.quantization": "{bits: 4}"}


def _sizes(setup: Setup) -> Iterator[tuple[Setup, dict[str, Any]]]:
    """The same batch in ever less memory."""
    yield setup, {}
    keys: dict[str, Any] = {}
    if not setup.checkpointing:
        setup = replace(setup, checkpointing=True)
        keys = {"trl.gradient_checkpointing": True}
        yield setup, keys
    total = setup.batch * setup.accumulation
    for batch in _divisors(setup.batch):
        setup = replace(setup, batch=batch, accumulation=total // batch)
        keys = keys | {
            "trl.per_device_train_batch_size": batch,
            "trl.gradient_accumulation_steps": setup.accumulation,
        }
        yield setup, keys
    for steps in _divisors(setup.accumulation) if setup.rollouts else ():
        # Fewer completions at once, still whole groups: their cache is what is too large.
        if setup.batch * steps % setup.group == 0:
            fewer = replace(setup, rollouts=setup.batch * steps)
            yield fewer, keys | {"trl.steps_per_generation": steps}


def _divisors(number: int) -> list[int]:
    """The smaller ones, the largest first."""
    return [n for n in range(number - 1, 0, -1) if number % n == 0]


def _usual_adapter(size: ModelSize) -> int:
    """Parameters of LoRA with r = 16 on all linear layers of a block."""
    wide, narrow = size.heads * size.head_dim, size.kv_heads * size.head_dim
    sides = 2 * (size.hidden + wide) + 2 * (size.hidden + narrow)
    sides += 3 * (size.hidden + size.intermediate)
    return 16 * sides * size.layers


def size_of(model: Any) -> ModelSize | None:
    """The numbers of a loaded model; None for one that is not a plain decoder."""
    config = model.config.get_text_config()
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
    if any(not isinstance(getattr(config, name, None), int) for name in names):
        return None
    parameters = list(model.parameters())
    packed = sum(p.numel() for p in parameters if not p.is_floating_point())
    plain = [p for p in parameters if p.is_floating_point()]
    bits = 8 if getattr(model, "is_loaded_in_8bit", False) else 4
    heads: int = config.num_attention_heads
    return ModelSize(
        parameters=sum(p.numel() for p in plain) + packed * (8 // bits),
        weight_bytes=sum(p.numel() * p.element_size() for p in parameters),
        item=max(p.element_size() for p in plain),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocabulary=config.vocab_size,
        qk_norm=any(name.endswith(".q_norm") for name, _ in model.named_modules()),
        score_matrix=getattr(config, "_attn_implementation", None) == "eager",
    )


def room(device: Any) -> int | None:
    """Bytes still free on a torch device; None where that cannot be told."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    return free_memory()
