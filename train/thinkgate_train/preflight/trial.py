"""Completions of the starting model before it is trained, drawn as the trainer will draw them.

Owns how a trial is drawn and that it leaves no trace: random states, the model's mode and its
device are afterwards as they were, so a run with and without a trial trains the same. Generation
is transformers' own, not `rollouts.sample`: it takes every sampling option a recipe may set, runs
any model, and can be stopped by the clock. Knows no rewards.
"""

import contextlib
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from thinkgate_train.models import Start
from thinkgate_train.sources import Row

if TYPE_CHECKING:
    import torch

__all__ = ["Rollout", "Trial", "obstacle", "prompt_ids", "some", "without_a_trace"]

AT_ONCE = 64
"""Completions drawn together."""
FORWARD = 16
"""Completions that a forward pass is measured on, on a CPU."""
PROBE = 8
"""Tokens of a generation that only the time of a token is wanted from."""


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

    def step_seconds(self, rollouts: Sequence[Rollout], count: float, passes: int) -> float:
        """Seconds to draw `count` completions like these, and to pass over each `passes` times.

        On a CPU both grow with their number, and drawing has been timed. A GPU takes about as long
        for many as for a few, and what it does first it compiles or loads first: there it is
        `batch_seconds`.
        """
        if self._start.model.device.type != "cpu":  # type: ignore[union-attr]
            return self.batch_seconds(rollouts, max(1, round(count)), passes)
        chosen = rollouts[:FORWARD]
        each = self._pass_seconds(chosen) / len(chosen)
        return count * (self.spent / max(1, self.drawn) + passes * each)

    def batch_seconds(self, rollouts: Sequence[Rollout], count: int, passes: int) -> float:
        """The same, measured on warm batches of the run's own size: prompts, then some tokens."""
        whole = list(islice(cycle(rollouts), count))
        rows = [rollout.row for rollout in whole]
        self._sample_seconds(rows, 1)
        prompts, more = self._sample_seconds(rows, 1), self._sample_seconds(rows, 1 + PROBE)
        longest = max(len(rollout.ids) for rollout in rollouts)
        generation = prompts + max(0.0, more - prompts) * (longest - 1) / PROBE
        batch = whole[: self._config.per_device_train_batch_size]
        self._pass_seconds(batch)
        return generation + passes * self._pass_seconds(batch) * count / len(batch)

    def _sample_seconds(self, rows: Sequence[Row], tokens: int) -> float:
        began = time.monotonic()
        self._sample(rows, max_new_tokens=tokens, min_new_tokens=tokens)
        return time.monotonic() - began

    def _pass_seconds(self, rollouts: Sequence[Rollout]) -> float:
        """Seconds of one forward pass over these completions, together."""
        import torch

        model: Any = self._start.model
        prompts = prompt_ids(self._start.tokenizer, [rollout.row for rollout in rollouts])
        texts = [p + rollout.ids for p, rollout in zip(prompts, rollouts, strict=True)]
        ids, mask = self._padded(texts)
        began = time.monotonic()
        with torch.no_grad():
            # Without the head, whose logits may not fit.
            model.base_model(input_ids=ids, attention_mask=mask)
            if ids.is_cuda:
                torch.cuda.synchronize()
        seconds = time.monotonic() - began
        head: Any = model.get_output_embeddings()
        trunk = sum(p.numel() for p in model.base_model.parameters())
        return seconds * (1 + head.weight.numel() / trunk)

    def _generate(self, rows: Sequence[Row], seconds: float) -> list[Rollout]:
        tokenizer: Any = self._start.tokenizer
        output = self._sample(rows, max_time=seconds if seconds < float("inf") else None)
        limit = self._config.max_completion_length
        ends = set(self._ends())
        rollouts: list[Rollout] = []
        for row, made in zip(rows, output, strict=True):
            end = next((place for place, token in enumerate(made, 1) if token in ends), None)
            if end is None and len(made) < limit:
                continue  # the clock stopped it
            text = tokenizer.decode(made[:end], skip_special_tokens=True)
            rollouts.append(Rollout(row, made[:end], text, cut=end is None))
        return rollouts

    def _sample(self, rows: Sequence[Row], **limits: Any) -> list[list[int]]:
        """The new tokens after each row's prompt, padded to one length."""
        import torch

        model: Any = self._start.model
        ids, mask = self._padded(prompt_ids(self._start.tokenizer, rows))
        with torch.no_grad():
            output = model.generate(
                input_ids=ids, attention_mask=mask, generation_config=self._sampling(limits)
            )
        return output[:, ids.shape[1] :].tolist()

    def _padded(self, texts: Sequence[list[int]]) -> tuple["torch.Tensor", "torch.Tensor"]:
        """Ids padded on the left, and their mask."""
        import torch

        pad: Any = self._start.tokenizer.pad_token_id
        width = max(map(len, texts))
        ids = [[pad] * (width - len(text)) + text for text in texts]
        mask = [[0] * (width - len(text)) + [1] * len(text) for text in texts]
        device = self._start.model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

    def _sampling(self, limits: Mapping[str, Any]) -> Any:
        """What TRL's trainers make of their config, with limits of the trial's own."""
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
            **(config.generation_kwargs or {}),
            **limits,
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
