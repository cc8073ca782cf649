"""Completions of the starting model before it is trained, drawn as the trainer will draw them.

Owns how a trial is drawn and that it leaves no trace: random states, the model's mode and its
device are afterwards as they were, so a run with and without a trial trains the same. Generation
is transformers' own, not `rollouts.sample`: it takes every sampling option a recipe may set, runs
any model, and can be stopped by the clock. Knows no rewards.
"""

import contextlib
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thinkgate_train.models import Start
from thinkgate_train.sources import Row

if TYPE_CHECKING:
    import torch

__all__ = ["Rollout", "Trial", "obstacle", "prompt_ids", "some", "without_a_trace"]

AT_ONCE = 64
"""Completions drawn together."""
FORWARD = 16
"""Completions that a forward pass is measured on."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion."""

    row: Row
    ids: list[int]
    """With the end-of-turn token, where it came."""
    text: str
    cut: bool
    """The length limit came first."""


class Trial:
    """Draws completions from a starting model until `seconds` have passed; adds up what it took."""

    def __init__(self, start: Start, config: Any, *, seconds: float = float("inf")) -> None:
        self._start = start
        self._config = config
        self._deadline = time.monotonic() + seconds
        self.drawn = 0
        self.spent = 0.0
        """Seconds of generation."""
        self.overran = False
        """The clock ended it: what was unfinished then was thrown away, so the shorter completions
        are over-represented."""

    def draw(self, rows: Sequence[Row]) -> Iterator[list[Rollout]]:
        """A completion for each row, in batches; ends early when the time is over."""
        for first in range(0, len(rows), AT_ONCE):
            batch = rows[first : first + AT_ONCE]
            left = self._deadline - time.monotonic()
            if left <= 0:
                self.overran = True
                return
            began = time.monotonic()
            rollouts = self._generate(batch, left)
            self.spent += time.monotonic() - began
            self.drawn += len(rollouts)
            self.overran = self.overran or len(rollouts) < len(batch)
            yield rollouts

    def pass_seconds(self, rollouts: Sequence[Rollout]) -> float:
        """Seconds that one forward pass over one completion takes, measured on a few."""
        import torch

        model: Any = self._start.model
        chosen = rollouts[:FORWARD]
        prompts = prompt_ids(self._start.tokenizer, [rollout.row for rollout in chosen])
        texts = [p + rollout.ids for p, rollout in zip(prompts, chosen, strict=True)]
        ids, mask = self._padded(texts)
        began = time.monotonic()
        with torch.no_grad():
            # Without the head, whose logits may not fit.
            model.base_model(input_ids=ids, attention_mask=mask)
            if ids.is_cuda:
                torch.cuda.synchronize()
        seconds = (time.monotonic() - began) / len(chosen)
        head: Any = model.get_output_embeddings()
        trunk = sum(p.numel() for p in model.base_model.parameters())
        return seconds * (1 + head.weight.numel() / trunk)

    def _generate(self, rows: Sequence[Row], seconds: float) -> list[Rollout]:
        import torch

        model: Any = self._start.model
        tokenizer: Any = self._start.tokenizer
        prompts = prompt_ids(tokenizer, rows)
        ids, mask = self._padded(prompts)
        with torch.no_grad():
            output = model.generate(
                input_ids=ids, attention_mask=mask, generation_config=self._sampling(seconds)
            )
        limit = self._config.max_completion_length
        ends = set(self._ends())
        rollouts: list[Rollout] = []
        for row, made in zip(rows, output[:, ids.shape[1] :].tolist(), strict=True):
            end = next((place for place, token in enumerate(made, 1) if token in ends), None)
            if end is None and len(made) < limit:
                continue  # the clock stopped it
            text = tokenizer.decode(made[:end], skip_special_tokens=True)
            rollouts.append(Rollout(row, made[:end], text, cut=end is None))
        return rollouts

    def _padded(self, texts: Sequence[list[int]]) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Ids padded on the left, and their mask."""
        import torch

        pad: Any = self._start.tokenizer.pad_token_id
        width = max(map(len, texts))
        ids = [[pad] * (width - len(text)) + text for text in texts]
        mask = [[0] * (width - len(text)) + [1] * len(text) for text in texts]
        device = self._start.model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

    def _sampling(self, seconds: float) -> Any:
        """What TRL's trainers make of their config, with a limit in time."""
        from transformers import GenerationConfig

        config = self._config
        options: dict[str, Any] = {
            "max_new_tokens": config.max_completion_length,
            "do_sample": True,
            "pad_token_id": self._start.tokenizer.pad_token_id,
            "eos_token_id": self._ends(),
            **{
                name: getattr(config, name)
                for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
            },
            "max_time": seconds if seconds < float("inf") else None,
            **(config.generation_kwargs or {}),
        }
        return GenerationConfig(**options, disable_compile=True)

    def _ends(self) -> list[int]:
        """Every token that ends a turn by the model's or the tokenizer's word, as in TRL."""
        declared: Any = self._start.model.generation_config.eos_token_id  # type: ignore[union-attr]
        ends: list[int] = [declared] if isinstance(declared, int) else list(declared or ())
        own: Any = self._start.tokenizer.eos_token_id
        return ends if own in ends else [own, *ends]


def obstacle(start: Start) -> str | None:
    """Why the model cannot be sampled before training begins; None where it can."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    if is_deepspeed_zero3_enabled():
        return "DeepSpeed ZeRO-3 has spread its weights over the processes"
    if any(parameter.is_meta for parameter in start.model.parameters()):
        return "its weights are not in this process"
    return None


def prompt_ids(tokenizer: Any, rows: Sequence[Row]) -> list[list[int]]:
    """Each row's prompt as the trainer tokenises it."""
    return [
        tokenizer(row["prompt"])["input_ids"]
        if isinstance(row["prompt"], str)
        else tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
        for row in rows
    ]


def some(rows: Sequence[Row], count: int) -> list[Row]:
    """Up to `count` rows from all over the data, which may be sorted: always the same ones."""
    chosen = random.Random(count).sample(range(len(rows)), min(count, len(rows)))
    return [rows[number] for number in sorted(chosen)]


@contextlib.contextmanager
def without_a_trace(start: Start, device: "torch.device | None", seed: int) -> Iterator[None]:
    """The model in eval mode on `device`, all random states at `seed`; afterwards as before.

    Without a device the model stays where it is.
    """
    import numpy
    import torch

    model: Any = start.model
    home, training = model.device, model.training
    moved = device not in (None, home) and not getattr(model, "is_quantized", False)
    states = random.getstate(), numpy.random.get_state()
    accelerators = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=list(accelerators)):
        try:
            random.seed(seed)
            numpy.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            model.eval()
            if moved:
                model.to(device)
            yield
        finally:
            if moved:  # FSDP and DeepSpeed place the weights themselves, from where they were
                model.to(home)
            model.train(training)
            random.setstate(states[0])
            numpy.random.set_state(states[1])
