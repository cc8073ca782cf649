"""PPO: TRL's GRPO trainer with a critic in place of groups.

TRL 1.16 has no PPO any more. Considered instead, from their metadata on PyPI in 2026-11: verl
0.9.1 (Apache-2.0) wants transformers < 5.11 and ray, OpenRLHF 0.11.2 pins transformers 5.15,
flash-attn, deepspeed and ray, so neither installs beside transformers 5.17; torchtune's last
release, 0.6.1, is of April 2025; torchrl 0.14.1 is alive and light, but its ClipPPOLoss is a loss
over tensordicts, and the adapter to it would be longer than the loss. What PPO adds to GRPO is
a value head, generalised advantages and a value loss. They are here; prompts, generation
(transformers or vLLM), rewards, metrics and LoRA stay TRL's, through the methods that TRL's own
variants of GRPO override.

The algorithm: Schulman et al. 2017 (arXiv 1707.06347), with generalised advantages (arXiv
1506.02438), and for language models the KL penalty inside the reward (Ziegler et al. 2019, arXiv
1909.08593; Ouyang et al. 2022, arXiv 2203.02155) and the details of Huang et al. 2024 (arXiv
2403.17031), whose defaults these are where nothing else is said.

One step of `max_steps` is one optimizer update; a batch of rollouts takes
`num_ppo_epochs * num_mini_batches` of them. Unlike the rest of the package this module loads torch
at its top, since it subclasses: import it where training starts.
"""

import copy
import functools
import types
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from thinkgate.errors import CheckpointError, ConfigError

__all__ = [
    "PPOConfig",
    "PPOTrainer",
    "ValueHead",
    "advantages_and_returns",
    "divergence",
    "policy_loss",
    "value_loss",
]

# GRPO's options that mean nothing here, and what to set instead.
NOT_PPO = {
    "beta": "kl_coef",
    "epsilon": "cliprange",
    "epsilon_high": "cliprange",
    "delta": "cliprange",
    "num_iterations": "num_ppo_epochs",
    "steps_per_generation": "num_mini_batches",
    "generation_batch_size": "num_mini_batches",
    "scale_rewards": "whiten_advantages",
    **dict.fromkeys(
        (
            "num_generations",
            "num_generations_eval",
            "loss_type",
            "importance_sampling_level",
            "multi_objective_aggregation",
            "top_entropy_quantile",
            "off_policy_mask_threshold",
            "use_bias_correction_kl",
            "sync_ref_model",
            "entropy_coef",
            "use_adaptive_entropy",
            "router_aux_loss_coef",
        )
    ),
}


@dataclass
class PPOConfig(GRPOConfig):
    """PPO's own options; the rest are GRPOConfig's, save those of groups, which are refused."""

    learning_rate: float = 3e-6
    """For full-parameter training; LoRA wants 10 to 100 times as much."""
    num_ppo_epochs: int = 4
    """Passes over one batch of rollouts before the next is drawn."""
    num_mini_batches: int = 1
    """Optimizer updates per pass. A mini-batch is per_device_train_batch_size x
    gradient_accumulation_steps x processes rollouts; the batch of rollouts is this many of them."""
    cliprange: float = 0.2
    """How far the probability ratio may move from 1 before its gradient is cut."""
    cliprange_value: float | None = 0.2
    """How far a value may move from the rollout's, in units of reward; None leaves it free."""
    vf_coef: float = 0.1
    """Weight of the value loss, whose gradient also reaches the shared trunk."""
    value_learning_rate: float | None = None
    """Learning rate of the value head, which starts at zero; None: learning_rate."""
    kl_coef: float = 0.05
    """Penalty per nat of divergence from the reference; 0 loads no reference. At each token it is
    taken from log p/q ("k1", http://joschu.net/blog/kl-approx.html), which as a reward has the
    divergence's own gradient. The less noisy "k3" is only logged: as a reward its gradient is that
    of KL(p, q) - KL(q, p), which near the reference is almost nothing."""
    gamma: float = 1.0
    """Discount per token: 1, since an answer is not worse for coming later."""
    lam: float = 0.95
    """GAE's lambda: 1 trusts the returns alone, 0 the values alone."""
    whiten_advantages: bool = True
    """Scale a batch's advantages to mean 0 and variance 1."""
    missing_eos_penalty: float | None = None
    """Taken from the reward of a completion that was cut off."""

    # TRL wants groups of at least 2; here each row of the data is one rollout.
    num_generations: int | None = 1

    def __post_init__(self) -> None:
        self._refuse()
        self.num_iterations = self.num_ppo_epochs
        self.steps_per_generation = self.num_mini_batches * self.gradient_accumulation_steps
        self.scale_rewards = "batch"  # so that the logged reward_std is the batch's
        # What passes TRL's check of whole groups, and is put right after it.
        self.num_generations = self.per_device_train_batch_size * self.steps_per_generation
        self.num_generations_eval = 1
        if self.num_generations < 2:
            raise ValueError("PPO needs at least 2 rollouts in a batch, to compare values with")
        super().__post_init__()
        self.num_generations = 1

    def _refuse(self) -> None:
        defaults = {f.name: f.default for f in fields(self)}
        for name, ours in NOT_PPO.items():
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"'{name}' is an option of GRPO, not of PPO; "
                    + (f"set '{ours}'" if ours else "leave it out")
                )
        for name in ("num_ppo_epochs", "num_mini_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"'{name}' is {getattr(self, name)}; it must be 1 or more")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"'{name}' is {getattr(self, name)}; it must be from 0 to 1")


def advantages_and_returns(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and the returns the values are trained on.

    All (rollouts, tokens), `mask` 1 on each row's first tokens and 0 on its padding. Nothing comes
    after a row's last token, cut off or not: its next value is 0. Both results are 0 on padding.
    """
    rewards, values = rewards * mask, values * mask
    after = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    delta = rewards + gamma * after - values
    advantage = torch.zeros_like(values)
    ahead = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.size(1))):
        ahead = delta[:, t] + gamma * lam * ahead
        advantage[:, t] = ahead
    return advantage, advantage + values


def divergence(logps: Tensor, others: Tensor) -> Tensor:
    """Estimate ("k3") at each token sampled from the first policy of its KL from the second."""
    return torch.expm1(others - logps) + logps - others


def policy_loss(log_ratio: Tensor, advantages: Tensor, cliprange: float) -> Tensor:
    """The clipped surrogate at each token (Schulman et al. 2017, eq. 7), negated."""
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - cliprange, 1 + cliprange)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def value_loss(values: Tensor, old: Tensor, returns: Tensor, cliprange: float | None) -> Tensor:
    """Half the squared error at each token, the larger of it and that of the clipped value."""
    error = (values - returns) ** 2
    if cliprange is not None:
        near = old + (values - old).clamp(-cliprange, cliprange)
        error = torch.maximum(error, (near - returns) ** 2)
    return 0.5 * error


class ValueHead(nn.Linear):
    """Reads a state's value off the last hidden state; starts at 0, in float32.

    It hangs on the policy, so that the optimizer, gradient clipping and DDP see it, yet stays out
    of the policy's state dict: what is saved is a plain causal LM.
    """

    def __init__(self, hidden_size: int, device: torch.device) -> None:
        super().__init__(hidden_size, 1, device=device, dtype=torch.float32)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):  # bfloat16 is too coarse for values
            return super().forward(input.float()).squeeze(-1)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        pass

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        pass


def add_value_head(model: Any) -> ValueHead:
    """Hang a value head on `model`: its fused forward then returns `value` beside `log_probs`.

    Inside the forward, since DDP must see the head's parameters used there.
    """
    base = model.get_base_model() if is_peft_model(model) else model
    head = ValueHead(base.config.get_text_config().hidden_size, base.device)
    model.value_head = head
    fused = base.forward

    @functools.wraps(type(base).forward)  # `generate` checks its arguments against the signature
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("fused_lm_head"):
            return fused(*args, **kwargs)
        hidden: list[Tensor] = []
        trunk: nn.Module = self.base_model
        watch = trunk.register_forward_hook(lambda *call: hidden.append(call[2].last_hidden_state))
        try:
            output = fused(*args, **kwargs)
        finally:
            watch.remove()
        return {**output, "value": head(hidden[0][:, :-1])}  # a dict, which DDP can take apart

    base.forward = types.MethodType(forward, base)
    return head


def hide_value_head(generation: Any) -> None:
    """Keep the head out of the weights TRL sends to vLLM, which knows no such layer."""
    every = generation._iter_named_params

    def named() -> Iterator[tuple[str, Tensor]]:
        return (pair for pair in every() if not pair[0].startswith("value_head."))

    generation._iter_named_params = named


class PPOTrainer(GRPOTrainer):
    """PPO with a value head on the policy's trunk; takes GRPOTrainer's arguments.

    The reference is the policy without its LoRA adapter, or a frozen copy of the whole model as it
    was given. A rollout whose rewards are all None teaches neither the policy nor the critic.
    """

    # TRL's GRPO loss divides by the accumulation steps itself; this one leaves it to Trainer.
    loss_is_scaled_for_ga = False
    _tag_names = ["trl", "ppo"]  # noqa: RUF012 (as TRL declares them)
    _name = "PPO"
    _paper = {"title": "Proximal Policy Optimization Algorithms", "id": "1707.06347"}  # noqa: RUF012
    args: PPOConfig
    model: Any

    def __init__(self, model: Any, reward_funcs: Any, args: PPOConfig, **others: Any) -> None:
        super().__init__(model, reward_funcs, args=args, **others)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ConfigError(
                "method ppo trains on one process or with DDP, not with FSDP or DeepSpeed, which "
                "would shard its value head; use method grpo there"
            )
        if args.kl_coef and not is_peft_model(self.model):
            self.ref_model = self._frozen_copy()
        self.value_head = add_value_head(self.model)
        if self.use_vllm:
            hide_value_head(self.vllm_generation)
        self._rewards = torch.empty(0)
        self._first_pass: tuple[Tensor, ...] | None = None

    def _frozen_copy(self) -> nn.Module:
        reference = copy.deepcopy(self.model)  # its fused head comes with it
        reference.requires_grad_(False).eval()
        return self.accelerator.prepare_model(reference, evaluation_mode=True)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As Trainer's, the value head in a group of its own where it has a rate of its own."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh and self.args.value_learning_rate is not None:
            own = list(self.value_head.parameters())
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if all(p is not q for q in own)]
            rate = self.args.value_learning_rate
            optimizer.add_param_group({"params": own, "lr": rate, "weight_decay": 0.0})
        return optimizer

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor, None]:
        """TRL's hook. Where it asks for the old log-probabilities, the same pass gives the old
        values, so it is kept."""
        self._first_pass = self._pass(
            model, input_ids, attention_mask, logits_to_keep, batch_size or len(input_ids)
        )
        return self._first_pass[0], self._first_pass[1], None

    def _pass(
        self,
        model: Any,
        ids: Tensor,
        mask: Tensor,
        keep: int,
        batch_size: int,
        names: tuple[str, ...] = ("log_probs", "entropy", "value"),
    ) -> tuple[Tensor, ...]:
        """What a forward pass says at the last `keep` tokens, each (rollouts, keep)."""
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :-keep] = -100
        found: list[list[Tensor]] = []
        for start in range(0, len(ids), batch_size):
            part = slice(start, start + batch_size)
            with self.accelerator.autocast():
                output = model(
                    input_ids=ids[part],
                    attention_mask=mask[part],
                    labels=labels[part],
                    fused_lm_head=True,
                )
            found.append([output[name][:, -keep:] for name in names])
        return tuple(torch.cat(column) for column in zip(*found, strict=True))

    def _generate(self, prompts: list[Any]) -> Any:
        made = super()._generate(prompts)
        self._first_pass = None  # what was scored while generating was not the whole batch
        return made

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        self._rewards = super()._calculate_rewards(*args, **kwargs)
        return self._rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's rollouts with TRL's metrics, their group advantages replaced by the critic's."""
        rollouts = super()._generate_and_score_completions(inputs)
        assert "tool_mask" not in rollouts, "tools and env_mask have no advantages here"
        metrics = self._metrics["train" if self.model.training else "eval"]
        del metrics["frac_reward_zero_std"]  # of groups, and there are none
        count = len(inputs)
        first = self.accelerator.process_index * count
        per_reward = self._rewards[first : first + count]
        scorable = ~per_reward.isnan().all(dim=1)
        mask = rollouts["completion_mask"] * scorable.unsqueeze(1)
        with torch.no_grad():
            logps, values, reference = self._old(rollouts)
            score = (per_reward * self.reward_weights.to(per_reward.device)).nansum(dim=1)
            rewards = self._token_rewards(rollouts, score)
            if reference is not None:
                rewards -= self.args.kl_coef * (logps - reference)
                kl = self._moments(divergence(logps, reference), mask)[0]
                metrics["kl"].append(kl.item())
            advantages, returns = advantages_and_returns(
                rewards, values, mask, self.args.gamma, self.args.lam
            )
            left = self._moments(returns - values, mask)[1]
            spread = self._moments(returns, mask)[1]
            if spread > 0:
                metrics["explained_variance"].append((1 - left / spread).item())
            if self.args.whiten_advantages:
                mean, variance = self._moments(advantages, mask)
                advantages = (advantages - mean) / (variance + 1e-8).sqrt() * mask
        mean_advantage = advantages.sum(1) / mask.sum(1).clamp(min=1)
        gathered: Any = self.accelerator.gather(mean_advantage)
        self._logs["advantages"].extend(gathered.tolist())
        kept = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        return {
            **{name: rollouts[name] for name in kept},
            "loss_mask": mask,
            "old_logps": logps,
            "old_values": values,
            "advantages": advantages,
            "returns": returns,
            # vLLM's probabilities differ from the trainer's; TRL's correction for it.
            "correction": rollouts.get("importance_sampling_ratio", torch.ones_like(mask)),
        }

    def _old(self, rollouts: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probabilities and values of the policy that generated, and the reference's."""
        ids, mask, keep = _joined(rollouts)
        size = self.args.per_device_train_batch_size
        options: Any = self.args.gradient_checkpointing_kwargs
        with disable_gradient_checkpointing(self.model, options):
            logps, _, values = self._first_pass or self._pass(self.model, ids, mask, keep, size)
            if not self.args.kl_coef:
                return logps, values, None
            policy: Any = self.accelerator.unwrap_model(self.model)
            frozen = self.ref_model is not None
            with nullcontext() if frozen else use_adapter(policy, None):
                model = self.ref_model if frozen else self.model
                (reference,) = self._pass(model, ids, mask, keep, size, ("log_probs",))
        return logps, values, reference

    def _token_rewards(self, rollouts: dict[str, Any], score: Tensor) -> Tensor:
        """The score at each completion's last token, less the penalty if it is no end of turn."""
        ids, mask = rollouts["completion_ids"], rollouts["completion_mask"]
        last = (mask.sum(dim=1, keepdim=True) - 1).clamp(min=0)
        if self.args.missing_eos_penalty is not None:
            ends = torch.tensor(self.eos_token_ids, device=ids.device)
            cut = ~torch.isin(ids.gather(1, last).squeeze(1), ends)
            score = score - self.args.missing_eos_penalty * cut
        rewards = torch.zeros(ids.shape, device=ids.device)
        return rewards.scatter_(1, last, score.unsqueeze(1))

    def _moments(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of `x` where `mask` is 1, over all processes."""
        count, total = self._sums(mask, x * mask)
        mean = total / count.clamp(min=1)
        (square,) = self._sums((x - mean) ** 2 * mask)
        return mean, square / count.clamp(min=1)

    def _sums(self, *tensors: Tensor) -> Tensor:
        sums = torch.stack([tensor.detach().sum().float() for tensor in tensors])
        reduced: Any = self.accelerator.reduce(sums, reduction="sum")
        return reduced

    def _compute_loss(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Policy loss plus `vf_coef` times value loss, each the mean over the batch's tokens."""
        ids, attention, keep = _joined(inputs)
        logps, entropies, values = self._pass(model, ids, attention, keep, len(ids))
        mask, advantages = inputs["loss_mask"], inputs["advantages"]
        log_ratio = (logps - inputs["old_logps"]) * mask
        cliprange = self.args.cliprange
        of_policy = policy_loss(log_ratio, advantages, cliprange) * inputs["correction"] * mask
        of_value = mask * value_loss(
            values, inputs["old_values"], inputs["returns"], self.args.cliprange_value
        )
        change = log_ratio.exp() - 1
        clipped = (change.abs() > cliprange) & (change * advantages > 0)
        shown = {
            "policy_loss": of_policy,
            "value_loss": of_value,
            "entropy": entropies * mask,
            "approx_kl": divergence(inputs["old_logps"], logps) * mask,
            "clip_ratio/region_mean": clipped * mask,
        }
        count, *sums = self._sums(mask, *shown.values())
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, total in zip(shown, sums, strict=True):
            metrics[name].append((total / count.clamp(min=1)).item())
        return (of_policy + self.args.vf_coef * of_value).sum() / mask.sum().clamp(min=1)

    def _state_file(self, checkpoint: str | Path) -> Path:
        return Path(checkpoint) / f"ppo_{self.accelerator.process_index}.pt"

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Also the value head and the rollouts in use, so that a resumed run goes on from here."""
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        head = dict(self.value_head.named_parameters())
        state = {"head": head, "step": self._step, "rollouts": self._buffered_inputs}
        torch.save(state, self._state_file(folder))
        super()._save_checkpoint(model, trial)  # writes trainer_state.json last: then all is there

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        file = self._state_file(resume_from_checkpoint)
        if not file.is_file():
            raise CheckpointError(
                f"{file}: missing, so the critic cannot go on; resume a ppo run with the number of "
                "processes that it was started with"
            )
        state = torch.load(file, map_location=self.accelerator.device, weights_only=True)
        with torch.no_grad():
            for name, parameter in self.value_head.named_parameters():
                parameter.copy_(state["head"][name])
        self._step, self._buffered_inputs = state["step"], state["rollouts"]


def _joined(rollouts: dict[str, Tensor]) -> tuple[Tensor, Tensor, int]:
    """Prompts and completions in one, their attention mask, and the completions' width."""
    ids = torch.cat([rollouts["prompt_ids"], rollouts["completion_ids"]], dim=1)
    mask = torch.cat([rollouts["prompt_mask"], rollouts["completion_mask"]], dim=1)
    return ids, mask, rollouts["completion_ids"].size(1)
