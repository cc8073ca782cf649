"""Drawing completions from a causal model: exactly from its distribution, and quick on a CPU.

transformers' `generate` reads every copy of a prompt, computes finished rows until the longest one
ends, and copies its whole cache for each token; `sample` does none of that. It knows no trainer, no
reward and no text.
"""

import contextlib
import functools
import inspect
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thinkgate.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    import torch

__all__ = ["Samples", "obstacle", "sample"]

GROWTH = 64
"""Tokens by which a full key-value cache grows; one at a time would copy it for each token."""


@dataclass(frozen=True, slots=True)
class Samples:
    """What was drawn, in the order of the prompts."""

    completion_ids: list[list[int]]
    """Token ids, with the end-of-sequence token unless the length limit came first."""
    logps: list[list[float]]
    """Each token's log-probability under the distribution it was drawn from."""


def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float,
    eos_ids: Collection[int],
    pad_id: int,
    generator: "torch.Generator | None" = None,
) -> Samples:
    """One completion per prompt, every token drawn from softmax(logits / temperature).

    Equal prompts are read once, and a row leaves the batch with its last token. At temperature 0
    the likeliest token is taken. The model runs in eval mode and is left as it was found; without
    `generator` the draws come from torch's global state. ConfigError for a model whose cache cannot
    be sampled from (linear attention, encoder-decoders).
    """
    import torch

    if reason := obstacle(model):
        raise ConfigError(f"cannot sample from this model: {reason}; choose another model")
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _grouped_attention():
            batch = _Batch(model, [tuple(prompt) for prompt in prompts], pad_id)
            return batch.run(max_new_tokens, temperature, eos_ids, generator)
    finally:
        model.train(was_training)


def obstacle(model: Any) -> str | None:
    """Why `sample` does not do for a model."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    inside = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = DynamicCache(config=inside.config).layers
    needed = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}
    if inside.config.is_encoder_decoder:
        return f"{type(inside).__name__} is an encoder-decoder"
    if not all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return f"{type(inside).__name__} keeps more than keys and values"
    if missing := needed - inspect.signature(inside.forward).parameters.keys():
        return f"the forward of {type(inside).__name__} takes no {', '.join(sorted(missing))}"
    return None


class _Batch:
    """Rows that are decoded together; the finished ones give their places to the last live ones."""

    def __init__(self, model: Any, prompts: list[tuple[int, ...]], pad_id: int) -> None:
        import torch

        distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        width = max(map(len, distinct))
        padded = [[pad_id] * (width - len(p)) + list(p) for p in distinct]
        masks = [[0] * (width - len(p)) + [1] * len(p) for p in distinct]
        self._model, self._device = model, next(model.parameters()).device
        self._cache = _cache(model.config)
        self._mask = torch.tensor(masks, device=self._device)
        positions = (self._mask.cumsum(1) - 1).clamp(min=0)
        logits = self._forward(torch.tensor(padded, device=self._device), positions)
        copies = torch.tensor([distinct[p] for p in prompts], device=self._device)
        self._cache.batch_select_indices(copies)
        self._logits, self._mask = logits[copies], self._mask[copies]
        self._position = positions[copies, -1]
        self._rows = torch.arange(len(prompts), device=self._device)

    def run(
        self,
        limit: int,
        temperature: float,
        eos_ids: Collection[int],
        generator: "torch.Generator | None",
    ) -> Samples:
        """Draw until every row has ended or holds `limit` tokens; it uses the cache up."""
        import torch

        count = len(self._rows)
        eos = torch.tensor(sorted(eos_ids), dtype=torch.long, device=self._device)
        ids = torch.zeros(count, limit, dtype=torch.long, device=self._device)
        logps = torch.zeros(count, limit, device=self._device)
        lengths = torch.full((count,), limit, device=self._device)
        for step in range(limit):
            tokens, chosen = _draw(self._logits, temperature, generator)
            ids[self._rows, step], logps[self._rows, step] = tokens, chosen
            ended = torch.isin(tokens, eos)
            lengths[self._rows[ended]] = step + 1
            tokens = self._without(ended, tokens)
            if not len(tokens) or step + 1 == limit:
                break
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], 1)
            self._position = self._position + 1
            self._logits = self._forward(tokens[:, None], self._position[:, None])
        ends = lengths.tolist()
        return Samples(
            [row[:end] for row, end in zip(ids.tolist(), ends, strict=True)],
            [row[:end] for row, end in zip(logps.tolist(), ends, strict=True)],
        )

    def _forward(self, ids: "torch.Tensor", positions: "torch.Tensor") -> "torch.Tensor":
        """Logits after the last of `ids`, (rows, vocabulary)."""
        return self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    def _without(self, ended: "torch.Tensor", tokens: "torch.Tensor") -> "torch.Tensor":
        """Drop the `ended` rows; the tokens of the others, in their new order."""
        import torch

        live = (~ended).nonzero()[:, 0]
        count = len(live)
        if count == len(ended):
            return tokens
        # As many live rows lie beyond the new end as finished ones before it: the former take the
        # places of the latter, so that nothing else has to be copied.
        order = torch.arange(count, device=live.device)
        holes = ended[:count].nonzero()[:, 0]
        order[holes] = live[count - len(holes) :]
        self._cache.batch_select_indices(order)
        self._rows, self._mask = self._rows[order], self._mask[order]
        self._position = self._position[order]
        return tokens[order]


def _draw(
    logits: "torch.Tensor", temperature: float, generator: "torch.Generator | None"
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """A token per row of (rows, vocabulary), and its log-probability."""
    import torch

    logps = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)
    # One uniform number per row against the cumulated probabilities. torch.multinomial draws an
    # exponential for every word of the vocabulary, which on CPU costs as much as a small model.
    cumulated = logps.exp().cumsum(-1, dtype=torch.float64)
    total = cumulated[:, -1:]
    if not torch.isfinite(total).all():
        raise TrainingError(
            "the model's logits are NaN or infinite, so nothing can be generated; lower "
            "trl.learning_rate, or start from other weights"
        )
    if temperature:
        point = total * torch.rand(
            total.shape, dtype=torch.float64, device=total.device, generator=generator
        )
        tokens = torch.searchsorted(cumulated, point, right=True).clamp(max=logps.shape[1] - 1)
    else:
        tokens = logps.argmax(-1, keepdim=True)
    return tokens[:, 0], logps.gather(1, tokens)[:, 0]


@contextlib.contextmanager
def _grouped_attention() -> Iterator[None]:
    """Decoding without a copy of keys and values for every query head that shares them.

    transformers' SDPA attention copies them wherever rows are padded, which at a few hundred tokens
    costs more than everything else. For one query token, a group of heads is as good as a sequence
    of queries. What is no decoding step goes to transformers as ever.
    """
    from torch.nn.functional import scaled_dot_product_attention
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    usual: Any = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def grouped(
        module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any
    ) -> tuple[Any, None]:
        rows, heads, length, width = query.shape
        shared = key.shape[1]
        plain = options.get("position_bias") is None and (mask is None or mask.shape[1:3] == (1, 1))
        if length > 1 or heads == shared or not plain:
            return usual(module, query, key, value, mask, **options)
        attended = scaled_dot_product_attention(
            query.view(rows, shared, heads // shared, width),
            key,
            value,
            attn_mask=None if mask is None else mask.expand(-1, -1, heads // shared, -1),
            dropout_p=options.get("dropout", 0.0),
            scale=options.get("scaling"),
        )
        return attended.reshape(rows, 1, heads, -1), None

    ALL_ATTENTION_FUNCTIONS["sdpa"] = grouped
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = usual


def _cache(config: Any) -> Any:
    """A key-value cache whose full-attention layers drop rows in place."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache(config=config)
    cache.layers = [
        _roomy_layer()() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


@functools.cache
def _roomy_layer() -> Any:
    import torch
    from transformers.cache_utils import DynamicLayer

    class RoomyLayer(DynamicLayer):
        """Keys and values in buffers with room to spare; the model sees views of them."""

        _buffers: Any = ()

        def update(
            self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
        ) -> tuple[Any, Any]:
            new = key_states, value_states
            start = self.get_seq_length()
            end = start + key_states.shape[2]
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
                self._buffers = tuple(states.clone() for states in new)
            elif end > self._buffers[0].shape[2]:
                self._buffers = tuple(self._grown(old) for old in (self.keys, self.values))
            for buffer, states in zip(self._buffers, new, strict=True):
                buffer[: len(states), :, start:end] = states
            self._show(len(key_states), end)
            return self.keys, self.values

        def batch_select_indices(self, indices: torch.Tensor) -> None:
            """The rows `indices`; in place where they are fewer, so that few are copied."""
            shown: Any = (self.keys, self.values)
            if len(indices) > len(shown[0]):
                self._buffers = tuple(states[indices] for states in shown)
            else:
                moved = (indices != torch.arange(len(indices)).to(indices)).nonzero()[:, 0]
                for states in shown:
                    states[moved] = states[indices[moved]]
            self._show(len(indices), self.get_seq_length())

        def _grown(self, states: Any) -> Any:
            rows, heads, length, width = states.shape
            larger = states.new_empty(rows, heads, length + GROWTH, width)
            larger[:, :, :length] = states
            return larger

        def _show(self, rows: int, length: int) -> None:
            self.keys, self.values = (buffer[:rows, :, :length] for buffer in self._buffers)

    return RoomyLayer
