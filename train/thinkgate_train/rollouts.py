"""Rollouts in step with the policy: a faster generation for TRL's trainers on CPU, and its canary.

Owns the trainers that generate with `decoding.sample` (`with_rollouts`), the comparison of the
generating engine's log-probabilities with the trainer's, the refusal of sampling for which the
gradient is not corrected, and the order of prompts in a resumed run. Rewards and losses are TRL's,
untouched.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from thinkgate.errors import ConfigError
from thinkgate_train.decoding import obstacle, sample

if TYPE_CHECKING:
    import torch

__all__ = ["Rollouts", "refuse_truncated_sampling", "with_rollouts"]

ESCAPE = "THINKGATE_GENERATION"
"""Environment variable; `trl` leaves generation to TRL."""
CANARY_ROWS = 4
"""Rollouts of a batch whose log-probabilities are compared: about 1 % of a step's time."""


class Rollouts:
    """Mixed into TRL's GRPOTrainer or RLOOTrainer by `with_rollouts`.

    Metrics, under `rollout/`: `logp_gap` and `logp_gap_max`, the mean and the largest absolute
    difference, over the tokens of a few rollouts, between the log-probability the generating engine
    drew a token with and the one the trainer's own model gives it: about 1e-6 for two correct
    float32 engines, and growing where the engine holds old weights.
    """

    args: Any
    accelerator: Any
    model: Any
    model_wrapped: Any
    use_vllm: bool
    eos_token_ids: list[int]
    state: Any
    _metrics: Any
    _tokenizer: Any
    _returns_logps: bool

    def _get_train_sampler(self, *dataset: Any) -> "OrderOfEpoch":
        """TRL's hook: which prompts come when."""
        trl: Any = super()
        return OrderOfEpoch(trl._get_train_sampler(*dataset), lambda: int(self.state.epoch or 0))

    def own_generation_obstacle(self) -> str | None:
        """Why TRL's generation is used; None where ours is."""
        args = self.args
        if os.environ.get(ESCAPE) == "trl":
            return f"{ESCAPE}=trl is set"
        if self.use_vllm:
            return "vLLM generates"
        if self.accelerator.device.type != "cpu":
            return "the model is not on the CPU"
        if self.accelerator.distributed_type in ("FSDP", "DEEPSPEED"):
            return "the model is sharded"
        if (
            args.use_transformers_continuous_batching
            or args.cache_implementation
            or args.generation_kwargs
            or _distortions(vars(args))
        ):
            return "the config asks for generation options of transformers"
        return obstacle(self.accelerator.unwrap_model(self.model))

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: Any,
        *rest: Any,
        **named: Any,
    ) -> Any:
        """TRL's hook: token ids in, per prompt the completion's ids out."""
        if images or multimodal_fields or self.own_generation_obstacle():
            trl: Any = super()
            made = trl._generate_single_turn(prompt_ids, images, multimodal_fields, *rest, **named)
            if isinstance(made, tuple) and made[1] is not None:
                self._log_gap(prompt_ids, *made)
            return made
        with self._generating_model() as model:
            drawn = sample(
                model,
                prompt_ids,
                max_new_tokens=self.args.max_completion_length,
                temperature=self.args.temperature,
                eos_ids=self.eos_token_ids,
                pad_id=self._tokenizer.pad_token_id,
            )
        self._log_gap(prompt_ids, drawn.completion_ids, drawn.logps)
        # TRL's own generation gives GRPO no log-probabilities either; RLOO knows none.
        return (drawn.completion_ids, None) if self._returns_logps else drawn.completion_ids

    @contextlib.contextmanager
    def _generating_model(self) -> Iterator[Any]:
        from trl.extras.profiling import profiling_context
        from trl.models import unwrap_model_for_generation

        trainer: Any = self
        with (
            profiling_context(trainer, "thinkgate.sample"),
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
        ):
            yield model

    def _log_gap(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        logps: Sequence[Sequence[float | None]],
    ) -> None:
        """Score a few rollouts as the loss will, and log how far the engine was from that."""
        import torch

        every = max(1, len(prompts) // CANARY_ROWS)
        rows = range(0, len(prompts), every)[:CANARY_ROWS]
        scored = self._scored([prompts[i] for i in rows], [completions[i] for i in rows])
        drawn = torch.tensor(
            [float("nan") if x is None else x for i in rows for x in logps[i]],  # vLLM's gaps
            device=scored.device,
        )
        gaps = (scored - drawn).abs()
        gaps = gaps[~gaps.isnan()]
        nothing = torch.full((2,), float("nan"), device=scored.device)
        own = torch.stack([gaps.mean(), gaps.max()]) if len(gaps) else nothing
        everyone: torch.Tensor = self.accelerator.gather(own).view(-1, 2)
        measured = everyone[~everyone[:, 0].isnan()]
        if len(measured):
            mode = "train" if self.model.training else "eval"
            self._metrics[mode]["rollout/logp_gap"].append(measured[:, 0].mean().item())
            self._metrics[mode]["rollout/logp_gap_max"].append(measured[:, 1].max().item())

    def _scored(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> "torch.Tensor":
        """Log-probabilities of all completion tokens in one row, by the trainer's model."""
        import torch
        from trl.models.utils import disable_gradient_checkpointing
        from trl.trainer.utils import pad

        fill, device = self._tokenizer.pad_token_id, self.accelerator.device
        before = pad([torch.tensor(p) for p in prompts], fill, "left")
        after = pad([torch.tensor(c) for c in completions], fill, "right")
        seen = pad([torch.ones(len(p), dtype=torch.long) for p in prompts], 0, "left")
        said = pad([torch.ones(len(c), dtype=torch.long) for c in completions], 0, "right")
        ids, mask = torch.cat([before, after], 1), torch.cat([seen, said], 1)
        trl: Any = self
        was_training = self.model.training
        self.model.eval()  # dropout would be a gap of its own
        try:
            with (
                torch.no_grad(),
                disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            ):
                logps, *_ = trl._get_per_token_logps_and_entropies(
                    self.model, ids.to(device), mask.to(device), after.size(1)
                )
        finally:
            self.model.train(was_training)
        return logps[said.bool().to(device)]


class OrderOfEpoch:
    """TRL's sampler, in the order that it has in the epoch a run is in.

    Its random state moves on by a permutation with each epoch and is in no saved state, so that a
    run resumed in its second epoch would get the order of the first once more.
    """

    def __init__(self, sampler: Any, epoch: Callable[[], int]) -> None:
        self._sampler, self._epoch = sampler, epoch

    def __iter__(self) -> Iterator[int]:
        import torch

        if self._sampler.shuffle:
            order = self._sampler.generator.manual_seed(self._sampler.seed)
            for _ in range(self._epoch()):
                torch.randperm(self._sampler.num_samples, generator=order)
        return iter(self._sampler)

    def __len__(self) -> int:
        return len(self._sampler)


def with_rollouts(trainer_class: Any) -> Any:
    """`trainer_class` (TRL's GRPOTrainer, RLOOTrainer or a subclass) with `Rollouts` mixed in.

    On CPU it generates with `sample`, elsewhere and with options `sample` does not have as TRL
    does; `own_generation_obstacle()` says which. THINKGATE_GENERATION=trl leaves it to TRL always.
    """
    from trl import GRPOTrainer

    if (choice := os.environ.get(ESCAPE, "")) not in ("", "trl"):
        raise ConfigError(f"{ESCAPE}={choice}: set it to trl for TRL's generation, or unset it")
    returns_logps = {"_returns_logps": issubclass(trainer_class, GRPOTrainer)}
    return type(trainer_class.__name__, (Rollouts, trainer_class), returns_logps)


def refuse_truncated_sampling(
    section: Mapping[str, Any], recipe_name: str, *, method: str = "grpo"
) -> None:
    """ConfigError where rollouts would not be drawn from the distribution the loss assumes.

    TRL scores tokens under softmax(logits / temperature): temperature is in the gradient; top_p,
    top_k, min_p and repetition_penalty are not. With vLLM, GRPO (and PPO here) multiplies each
    token's loss by p/q, where q is what vLLM drew from, truncation included (`processed_logprobs`).
    Per token that is the importance weight of the words that were left, and is accepted, though no
    weight brings back those cut off. Per sequence, TRL's default, the weights of a long completion
    multiply to nearly 0, so it would hardly be trained on. RLOO ignores vLLM's log-probabilities.
    """
    found = _distortions(section)
    if not found:
        return
    shown = ", ".join(f"trl.{name}={value}" for name, value in found.items())
    corrected = (
        method in ("grpo", "ppo")
        and section.get("use_vllm", False)
        and section.get("vllm_importance_sampling_correction", True)
        and section.get("loss_type") != "vespo"  # weighs whole sequences whatever the mode
    )
    mode = str(section.get("vllm_importance_sampling_mode", "sequence_mask"))
    if not corrected:
        raise ConfigError(
            f"{recipe_name}: {shown}: rollouts would not be drawn from the distribution whose "
            "gradient is taken, and nothing corrects for it; remove it, and use trl.temperature, "
            "which the gradient knows"
        )
    if not mode.startswith("token_"):
        raise ConfigError(
            f"{recipe_name}: {shown}: importance weights of whole sequences "
            f"(trl.vllm_importance_sampling_mode={mode}) vanish when sampling is truncated; remove "
            "it, or set trl.vllm_importance_sampling_mode=token_truncate"
        )


def _distortions(section: Mapping[str, Any]) -> dict[str, Any]:
    """Options, of a TRL section or its generation_kwargs, that change what is drawn."""
    neutral = {
        "top_p": (None, 1),
        "top_k": (None, 0, -1),
        "min_p": (None, 0),
        "repetition_penalty": (None, 1),
    }
    options = {**section, **(section.get("generation_kwargs") or {})}
    return {
        name: options[name]
        for name, values in neutral.items()
        if name in options and options[name] not in values
    }
