"""What each training metric means and how it should behave, for people who look at the curves.

Names are TRL's (1.16) and those of `completions.py`. Knows nothing of drawing.
"""

import re
from dataclasses import dataclass, replace

__all__ = ["GROUPS", "Guide", "guide"]

GROUPS = ("Reward", "Held-out", "Policy", "Format", "Lengths", "Optimiser", "Engine", "Other")


@dataclass(frozen=True, slots=True)
class Guide:
    """One metric, in words."""

    group: str
    title: str
    meaning: str = ""
    expected: str = ""
    percent: bool = False
    """Whether it is a share, drawn in percent."""


R, H, P, F, L, O, E = GROUPS[:-1]  # noqa: E741 (one letter a group keeps the table readable)

KNOWN = {
    "reward": Guide(
        R,
        "Reward",
        "Weighted sum of all rewards, averaged over the rollouts of the step.",
        "Should increase, fast at first. Noise of one batch is normal; a fall that lasts is not.",
    ),
    "accuracy": Guide(
        R,
        "Share of right answers",
        "Rollouts whose answer the verifier accepts, at the training temperature.",
        "Should increase with the reward. Reward up and this down means the reward is gamed.",
        True,
    ),
    "reward_std": Guide(
        R,
        "Spread of rewards",
        "Standard deviation of the reward over the rollouts of the step.",
        "May decrease as the model converges. At 0 there is nothing to learn from.",
    ),
    "zero_variance": Guide(
        R,
        "Groups with equal rewards",
        "Share of prompts whose rollouts all earned the same: they give no gradient.",
        "Below one half while learning; rises towards the end. Near 100 % nothing is learned.",
        True,
    ),
    "frac_reward_zero_std": Guide(
        R,
        "Groups without spread (TRL)",
        "The same share as TRL computes it, from float32 deviations.",
        "Often 0 where groups are equal: rounding hides them. Trust the other one.",
        True,
    ),
    "rewards/chosen": Guide(
        R,
        "Implicit reward of chosen answers",
        "beta times the log-ratio between policy and reference.",
        "Above the rejected one, and the distance grows. A slow fall of both is common.",
    ),
    "rewards/rejected": Guide(
        R,
        "Implicit reward of rejected answers",
        "beta times the log-ratio between policy and reference.",
        "Should fall below the chosen one.",
    ),
    "rewards/margins": Guide(
        R,
        "Margin between chosen and rejected",
        "Difference of their implicit rewards.",
        "Should increase and then flatten.",
    ),
    "rewards/accuracies": Guide(
        R,
        "Pairs ranked right",
        "Share of pairs whose chosen answer has the higher implicit reward.",
        "Starts near 50 % and should increase to 70 % or more.",
        True,
    ),
    "margin": Guide(
        R,
        "Margin between chosen and rejected",
        "Difference of the scores the reward model gives.",
        "Should increase and then flatten.",
    ),
    "mean_reward": Guide(
        R, "Mean score", "Of the reward model over all texts.", "No trend needed."
    ),
    "min_reward": Guide(R, "Lowest score", "Of the reward model in the batch.", "May decrease."),
    "max_reward": Guide(R, "Highest score", "Of the reward model in the batch.", "May increase."),
    "kl": Guide(
        P,
        "KL to the starting model",
        "Nats per token by which the policy left the reference (Schulman's k3 estimate).",
        "Should stay bounded: it grows slowly and flattens. Above 1 and growing is running away.",
    ),
    "entropy": Guide(
        P,
        "Entropy",
        "How unsure the policy is at each token, in nats.",
        "Decreases slowly while the reward increases. At 0 exploration is over; a jump means too "
        "large steps.",
    ),
    "clip_ratio/region_mean": Guide(
        P,
        "Tokens beyond the clip range",
        "Share of tokens whose probability ratio was clipped.",
        "0 with one update per batch of rollouts; otherwise below 20 %.",
        True,
    ),
    "approx_kl": Guide(
        P,
        "KL of one update",
        "Nats per token between the policy that drew the rollouts and the one being trained.",
        "About 0.01 to 0.1.",
    ),
    "logps/chosen": Guide(
        P, "Log-probability of chosen answers", "Summed over tokens.", "Rises or falls a little."
    ),
    "logps/rejected": Guide(
        P, "Log-probability of rejected answers", "Summed over tokens.", "Should fall."
    ),
    "mean_token_accuracy": Guide(
        P,
        "Tokens predicted right",
        "Share of the target's tokens that are the model's first choice.",
        "Should increase.",
        True,
    ),
    "explained_variance": Guide(
        P,
        "Variance explained by the critic",
        "How much of the returns the value head predicts.",
        "Should increase towards 1; below 0 it does harm.",
    ),
    "format": Guide(
        F,
        "Think, then answer",
        "Share of rollouts with a closed thought followed by an answer.",
        "Should increase to nearly 100 % and stay.",
        True,
    ),
    "truncated": Guide(
        F,
        "Cut off while thinking",
        "Share of rollouts that end inside the thought: they have no answer.",
        "Near 0. If it grows with the thinking length, the length limit is too small.",
        True,
    ),
    "untagged": Guide(
        F,
        "Without a thought",
        "Share of rollouts that never open the thinking tag.",
        "Falls to 0 where thinking is rewarded.",
        True,
    ),
    "unopened": Guide(
        F,
        "Closed, never opened",
        "Share of rollouts that close a thought they did not open.",
        "0. Anything else means that chat template and recipe disagree about the tags.",
        True,
    ),
    "step_share": Guide(
        F,
        "Thoughts that are not empty",
        "Share of rollouts that use their thought.",
        "Increases where thinking pays.",
        True,
    ),
    "thinking_tokens": Guide(
        L,
        "Thinking length",
        "Mean tokens inside the thought.",
        "Often grows while accuracy grows: the R1 effect. Growth without accuracy is padding.",
    ),
    "answer_tokens": Guide(
        L, "Answer length", "Mean tokens after the thought.", "Steady, unless length is rewarded."
    ),
    "completions/mean_length": Guide(
        L,
        "Completion length",
        "Mean tokens generated.",
        "Moves with the thinking length; should stay away from the limit.",
    ),
    "completions/clipped_ratio": Guide(
        L,
        "Cut off at the limit",
        "Share of rollouts that reached trl.max_completion_length.",
        "Below 10 %. What is cut off cannot be graded.",
        True,
    ),
    "loss": Guide(
        O,
        "Loss",
        "What the optimiser minimises.",
        "In RL it may increase, and that is normal: it follows the KL term. Elsewhere it should "
        "decrease.",
    ),
    "policy_loss": Guide(O, "Policy loss", "PPO's clipped objective.", "Near 0; tells little."),
    "value_loss": Guide(
        O,
        "Value loss",
        "Squared error of the value head.",
        "Decreases, or moves with the reward's scale.",
    ),
    "grad_norm": Guide(
        O,
        "Gradient norm",
        "Before clipping.",
        "Same order of magnitude throughout; single spikes are normal. 0 means no signal.",
    ),
    "learning_rate": Guide(
        O, "Learning rate", "As scheduled.", "Warm-up, then constant or falling."
    ),
    "step_time": Guide(E, "Seconds per step", "Generation included.", "Grows with the length."),
    "num_tokens": Guide(E, "Tokens seen", "Prompts and completions so far.", "A straight line."),
    "rollout/logp_gap": Guide(
        E,
        "Gap between engine and trainer",
        "Mean difference of a token's log-probability, in nats.",
        "Constant: below 0.001 in float32, below 0.03 in bfloat16. Growth means stale weights.",
    ),
    "sampling/sampling_logp_difference/mean": Guide(
        E,
        "Gap between vLLM and trainer",
        "Mean difference of a token's log-probability, in nats.",
        "Constant and below 0.03. Growth means stale weights.",
    ),
}

# Held-out metrics have only these long names; in training `watch.py` gives them short ones too.
LONG = {"rewards/correctness/mean": "accuracy", "rewards/format/mean": "format"}

CONSTANTS = r"step|epoch|train_\w+|total_flos|eval_(epoch|runtime|num_tokens|\w+_per_second)"
"""What is the same in every run, or said once at its end."""

PATTERNS = (
    (
        r"rewards/second_opinion/mean",
        Guide(
            H,
            "Accuracy by a second verifier",
            "The same rollouts, checked by rules that are never optimised.",
            "Should increase with the accuracy. If they part, the first verifier is being gamed.",
            True,
        ),
    ),
    (
        r"rewards/(.+)/mean",
        Guide(
            R, "Reward: {}", "Mean of this function before its weight.", "Should not fall for long."
        ),
    ),
    (
        r"rewards/(.+)/std",
        Guide(R, "Spread: {}", "Standard deviation of this function.", "Above 0 while it teaches."),
    ),
    (
        r"completions/(.+)_length",
        Guide(
            L,
            "Length: {}",
            "Tokens, over the rollouts of a step; terminated ones ended by themselves.",
            "No trend of its own; a maximum at the limit means cut-offs.",
        ),
    ),
    (r"clip_ratio/(.+)", Guide(P, "Clipped: {}", "Share of tokens.", "Below 20 %.", True)),
    (r"sampling/(.+)", Guide(E, "Sampling: {}", "vLLM against the trainer.", "Near constant.")),
    (r"rollout/(.+)", Guide(E, "Rollout: {}", "The generating engine against the trainer.")),
)


def guide(name: str) -> Guide | None:
    """What is known about a metric; its own name where nothing is. None: not worth a curve."""
    if name in LONG or re.fullmatch(CONSTANTS, name):
        return None
    if name.startswith("eval_"):
        trained = name.removeprefix("eval_")
        inner = guide(LONG.get(trained, trained))
        return replace(inner, group=H, title=f"Held-out: {inner.title}") if inner else None
    if name in KNOWN:
        return KNOWN[name]
    for pattern, found in PATTERNS:
        if match := re.fullmatch(pattern, name):
            words = " ".join(match.groups()).replace("/", " ").replace("_", " ")
            return replace(found, title=found.title.format(words))
    return Guide("Other", name)
