"""Symptoms read off the optimiser and the policy: loss, gradient, KL, entropy, margins, values.

Pure, like `rollout_symptoms.py`. A GRPO loss that rises with the KL term is none of them: that is
what learning under a KL penalty looks like.
"""

import math

from thinkgate_train.health.history import FEW, MANY, SOME, History, Seen
from thinkgate_train.health.rollout_symptoms import (
    EQUAL_GROUPS,
    MOSTLY_EQUAL,
    collapsed_at_once,
    reward_collapse,
    saturated,
)

__all__ = [
    "approx_kl_high",
    "both_crash",
    "clip_ratio_high",
    "entropy_collapse",
    "grad_norm_explosion",
    "kl_runaway",
    "learning_rate_too_high",
    "logp_gap",
    "loss_jump",
    "margin_falling",
    "no_progress",
    "not_a_number",
    "overfitting",
    "preference_stuck",
    "reward_model_chance",
    "value_loss_explosion",
]

KL_HIGH, KL_EXTREME, KL_GROWING = 1.0, 10.0, 1.5
"""Nats per token. Healthy runs stay well below 1; at 10 the two models share nothing."""
ENTROPY_GONE, ENTROPY_EXPLODED, ENTROPY_HIGH = 0.05, 3.0, 1.0
"""Against its start; converging runs keep about a tenth. The last in nats per token."""
CLIPPED_OFTEN = 0.3
"""Share of tokens beyond the clip range; PPO runs that learn show 0.1 to 0.2."""
GRAD_EXPLODED = 20.0
"""Against the start of the run; warm-up and LoRA's zero start explain factors up to about 5."""
MOVED, VISIBLE = 0.2, 0.1
"""Shares of the start's level: a change that no scatter explains away, and one that scatter must
not hide before it may be said that nothing changed."""
LOSS_ABOVE_START, LOSS_JUMPED = 1.2, 3.0
"""A loss a fifth above the untrained model's; and one three times its own best."""
GAP_WARN, GAP_STOP, GAP_GREW, GAP_NOISE = 0.05, 0.2, 10.0, 0.005
"""Nats per token. Two correct engines in bfloat16 differ by 0.01 to 0.03, in float32 by 1e-4."""
CHANCE = 0.55
"""Accuracy on pairs, where 0.5 is a coin."""
MARGIN_LEFT = 0.5
"""Share of the best margin below which pairs are being forgotten."""
LOGP_CRASH = 0.5
"""Share of its size by which a log-probability fell; healthy DPO lowers the chosen one a little."""
VALUE_EXPLODED, APPROX_KL_HIGH = 10.0, 0.2
"""Value loss against its start; nats per token of one update, PPO's usual target is 0.01."""
EVAL_LOSS_ROSE = 1.1
"""Held-out loss against its best: a tenth above is past the turning point."""

LOGP_GAP = ("rollout/logp_gap", "sampling/sampling_logp_difference/mean")


def not_a_number(run: History) -> Seen | None:
    """At once. An infinite gradient alone may be float16's loss scaling: three in a row count."""
    for name in ("loss", "grad_norm", "reward"):
        value = run.latest.get(name, 0.0)
        if math.isfinite(value) or (name == "reward" and math.isnan(value)):
            continue
        if name == "grad_norm" and math.isinf(value) and run.not_finite(name) < 3:
            continue
        kind = "NaN" if math.isnan(value) else "infinite"
        return Seen(
            f"{name} is {kind}; lower trl.learning_rate (now {run.facts.learning_rate:g}), and "
            "look for a reward that divides by zero or a half-precision overflow "
            "(model.dtype: bfloat16)",
            stop=True,
            since=_last_finite(run, name) + 1,
        )
    return None


def learning_rate_too_high(run: History) -> Seen | None:
    """Supervised: loss above its start. RL: the reward collapses and the entropy runs away."""
    rate = f"Lower trl.learning_rate (now {run.facts.learning_rate:g}, try a tenth)"
    if not run.has("reward"):
        loss, now = run.get("loss"), run.last(FEW, "loss")
        if not now or not loss.first or loss.first[0] <= 0:
            return None
        if now.mean < LOSS_ABOVE_START * loss.first[0]:
            return None
        return Seen(
            f"the loss is {now.mean:.3g}, above {loss.first[0]:.3g} where it started: the steps "
            f"are too large. {rate}, or add trl.warmup_steps",
            stop=True,
            since=now.since,
        )
    collapse, entropy = collapsed_at_once(run, FEW) or reward_collapse(run), run.get("entropy")
    now = entropy.last(FEW)
    if not collapse or not now:
        return None
    if now.mean < max(ENTROPY_EXPLODED * entropy.first[0], ENTROPY_HIGH):
        return None
    return Seen(
        f"the entropy rose from {entropy.first[0]:.3g} to {now.mean:.3g} nats while the reward "
        f"fell: the policy is being destroyed. {rate}, or add a KL penalty (trl.beta)",
        stop=True,
        since=collapse.since,
    )


def kl_runaway(run: History) -> Seen | None:
    """Above its limit and still growing; a high plateau is the choice of whoever set beta."""
    kl, window = run.get("kl"), run.last(FEW, "kl")
    now, before = kl.middle(FEW), kl.middle(FEW, before=FEW)
    if not window or now is None or before is None or now < KL_HIGH:
        return None
    if now < KL_GROWING * max(before, 0.0) and now < KL_EXTREME:
        return None
    return Seen(
        f"KL to the starting model is {now:.3g} nats a token, {before:.3g} a few logs ago: "
        f"the policy runs away from what it knew. Raise trl.beta (now {run.facts.beta:g}) or lower "
        f"trl.learning_rate (now {run.facts.learning_rate:g})",
        stop=now >= KL_EXTREME,
        since=window.since,
    )


def entropy_collapse(run: History) -> Seen | None:
    """A converged policy is sure of itself too: only where groups are equal and nothing was won."""
    series, equal = run.get("entropy"), run.last(SOME, *EQUAL_GROUPS)
    now = series.last(FEW)
    if not (now and equal and series.start) or run.get("reward").rose():
        return None
    if now.mean > ENTROPY_GONE * series.start.mean or equal.mean < MOSTLY_EQUAL:
        return None
    return Seen(
        f"the entropy fell from {series.start.mean:.3g} to {now.mean:.3g} nats and "
        f"{equal.mean:.0%} of the groups hold equal rewards: the policy says one thing only and "
        f"has stopped exploring. Raise trl.temperature (now {run.facts.temperature:g}), lower "
        f"trl.learning_rate (now {run.facts.learning_rate:g}), or add a KL penalty (trl.beta)",
        stop=True,
        since=now.since,
    )


def clip_ratio_high(run: History) -> Seen | None:
    clipped = run.last(SOME, "clip_ratio/region_mean")
    if not clipped or clipped.mean < CLIPPED_OFTEN:
        return None
    return Seen(
        f"{clipped.mean:.0%} of the tokens lie beyond the clip range (epsilon "
        f"{run.facts.epsilon:g}): updates are made with stale rollouts. Lower "
        f"trl.num_iterations or trl.learning_rate (now {run.facts.learning_rate:g})",
        stop=False,
        since=clipped.since,
    )


def logp_gap(run: History) -> Seen | None:
    """Rollouts that do not come from the policy which is trained on them."""
    gap, now = run.get(*LOGP_GAP), run.last(3, *LOGP_GAP)
    if not now or not gap.first:
        return None
    grew = now.mean > max(GAP_GREW * gap.first[0], GAP_NOISE)
    if now.mean < GAP_WARN and not grew:
        return None
    return Seen(
        f"the engine that generates and the trainer differ by {now.mean:.3g} nats a token (first "
        f"{gap.first[0]:.3g}): the engine holds stale weights, or another dtype or template. "
        "Check the weight sync (trl.use_vllm, trl.vllm_mode) and model.dtype",
        stop=now.mean >= GAP_STOP or grew,
        since=now.since,
    )


def grad_norm_explosion(run: History) -> Seen | None:
    norm = run.get("grad_norm")
    # Groups without variance give a norm of zero, which says nothing about the usual size.
    first = sorted(value for value in norm.first if value > 1e-8)
    now = norm.middle(FEW)
    if len(first) < FEW or now is None or norm.count < MANY:
        return None
    usual = first[len(first) // 2]
    if now < GRAD_EXPLODED * usual:
        return None
    return Seen(
        f"the gradient norm is {now:.3g}; at the start it was {usual:.3g}. Usually the steps are "
        f"too large or a batch is broken: lower trl.learning_rate (now "
        f"{run.facts.learning_rate:g}) or trl.max_grad_norm",
        stop=False,
        since=run.step,
    )


def loss_jump(run: History) -> Seen | None:
    """Supervised only: in RL the loss says nothing."""
    jump = run.get("loss").rebounded()
    if run.has("reward") or run.has("rewards/margins") or not jump or jump.before.mean <= 0:
        return None
    if jump.after.mean < LOSS_JUMPED * jump.before.mean:
        return None
    return Seen(
        f"the loss jumped to {jump.after.mean:.3g} after it was {jump.before.mean:.3g}. Usually "
        "the steps are too large or the data changes within the run: lower trl.learning_rate "
        f"(now {run.facts.learning_rate:g}) or shuffle the data",
        stop=False,
        since=jump.since + 1,
    )


def overfitting(run: History) -> Seen | None:
    rise, loss = run.get("eval_loss").rebounded(), run.get("loss")
    if run.has("reward") or not (rise and loss.start and loss.now):
        return None
    if rise.after.mean < EVAL_LOSS_ROSE * rise.before.mean or loss.now.mean > loss.start.mean:
        return None
    return Seen(
        f"the held-out loss rose from {rise.before.mean:.3g} to {rise.after.mean:.3g} while the "
        "training loss falls: the data is being memorised. Train for fewer steps "
        "(trl.max_steps, trl.num_train_epochs) or on more data",
        stop=False,
        since=rise.since + 1,
    )


def no_progress(run: History) -> Seen | None:
    """Half of the run is over and the number it is about has not moved beyond noise."""
    name, better = _objective(run)
    series = run.get(name)
    if run.share_done < 0.5 or series.count < MANY or not (series.start and series.now):
        return None
    # The claim is that nothing moved, so weak evidence of movement refutes it, up or down.
    moved = better * (series.now.mean - series.start.mean)
    usual = better * ((series.middle(SOME) or 0.0) - series.start.mean)
    noise = 2 * math.hypot(series.start.error, series.now.error)
    lost = -moved > MOVED * abs(series.start.mean)
    blind = noise > VISIBLE * abs(series.start.mean)
    if moved > noise or usual > 2 * series.start.error or blind or lost or saturated(run):
        return None
    return Seen(
        f"half of the run is over and {name} is {series.now.mean:.3g}; at the start it was "
        f"{series.start.mean:.3g}. Usually the steps are too small or the data teaches nothing: "
        f"raise trl.learning_rate (now {run.facts.learning_rate:g}), use more rollouts per step, "
        "or take other 'data'",
        stop=False,
        since=series.start.until,
    )


def preference_stuck(run: History) -> Seen | None:
    accuracy = run.last(SOME, "rewards/accuracies")
    if not accuracy or run.share_done < 0.5 or accuracy.mean >= CHANCE:
        return None
    return Seen(
        f"the model prefers the chosen answer in {accuracy.mean:.0%} of the pairs, which is "
        "chance, after half of the run. Usually chosen and rejected are swapped or alike, or "
        f"the steps are too small: look at 'data', raise trl.learning_rate (now "
        f"{run.facts.learning_rate:g})",
        stop=False,
        since=accuracy.since,
    )


def margin_falling(run: History) -> Seen | None:
    drop = run.get("rewards/margins", "margin").fell()
    if not drop or drop.after.mean > MARGIN_LEFT * drop.before.mean:
        return None
    return Seen(
        f"the margin between chosen and rejected fell from {drop.before.mean:.3g} to "
        f"{drop.after.mean:.3g}. Usually the steps are too large: lower trl.learning_rate (now "
        f"{run.facts.learning_rate:g}) or raise trl.beta (now {run.facts.beta:g})",
        stop=drop.after.mean < 0,
        since=drop.since + 1,
    )


def both_crash(run: History) -> Seen | None:
    chosen, rejected = run.get("logps/chosen"), run.get("logps/rejected")
    if not (chosen.start and chosen.now and rejected.start and rejected.now):
        return None
    falls = [
        (s.mean - n.mean) / max(abs(s.mean), 1.0)
        for s, n in ((chosen.start, chosen.now), (rejected.start, rejected.now))
    ]
    if min(falls) < LOGP_CRASH:
        return None
    return Seen(
        f"the chosen answers became less likely too: log-probability {chosen.start.mean:.3g} to "
        f"{chosen.now.mean:.3g}, the rejected ones {rejected.start.mean:.3g} to "
        f"{rejected.now.mean:.3g}. The model unlearns both. Raise trl.beta (now "
        f"{run.facts.beta:g}), lower trl.learning_rate, or add 'sft' to trl.loss_type",
        stop=False,
        since=chosen.start.until,
    )


def reward_model_chance(run: History) -> Seen | None:
    accuracy = run.last(SOME, "accuracy")
    if run.facts.method != "reward_model" or not accuracy or run.share_done < 0.5:
        return None
    if accuracy.mean >= CHANCE:
        return None
    return Seen(
        f"the reward model ranks {accuracy.mean:.0%} of the pairs right, which is chance, after "
        "half of the run. Usually chosen and rejected are alike or swapped, or the steps are too "
        f"small: look at 'data', raise trl.learning_rate (now {run.facts.learning_rate:g})",
        stop=False,
        since=accuracy.since,
    )


def value_loss_explosion(run: History) -> Seen | None:
    loss = run.get("value_loss")
    now = loss.last(FEW)
    if not now or not loss.start or loss.count < MANY:
        return None
    if now.mean < VALUE_EXPLODED * max(loss.start.mean, 1e-8):
        return None
    return Seen(
        f"the value loss is {now.mean:.3g}, at the start it was {loss.start.mean:.3g}: the value "
        "head lost track of the rewards, so advantages are noise. Lower trl.learning_rate (now "
        f"{run.facts.learning_rate:g}) or scale the rewards to about 1",
        stop=False,
        since=now.since,
    )


def approx_kl_high(run: History) -> Seen | None:
    kl = run.last(FEW, "approx_kl")
    if not kl or kl.mean < APPROX_KL_HIGH:
        return None
    return Seen(
        f"one update moves the policy by {kl.mean:.3g} nats a token: too far for PPO's clipping to "
        f"hold. Lower trl.learning_rate (now {run.facts.learning_rate:g}) or the number of epochs "
        "per batch",
        stop=False,
        since=kl.since,
    )


def _objective(run: History) -> tuple[str, int]:
    """The metric a run is about, and whether it should go up or down."""
    if run.has("reward"):
        return "reward", 1
    return ("rewards/margins", 1) if run.has("rewards/margins") else ("loss", -1)


def _last_finite(run: History, name: str) -> int:
    recent = run.get(name).recent
    return recent[-1][0] if recent else 0
