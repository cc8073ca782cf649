"""Symptoms read off the rollouts of a reinforcement-learning run: rewards, format, lengths.

Pure: each function reads a `History` and says what was seen with its numbers, what that usually
means and which recipe key to change. Metric names are TRL's and `watch.py`'s.
"""

import math

from thinkgate_train.health.history import FEW, MANY, SOME, History, Seen, Window

__all__ = [
    "ACCURACY",
    "EQUAL_GROUPS",
    "HELD_OUT",
    "all_clipped",
    "collapsed_at_once",
    "constant_reward",
    "forgot_to_stop",
    "format_lost",
    "format_never_found",
    "held_out_divergence",
    "length_hacking",
    "little_signal",
    "many_clipped",
    "no_reward",
    "reward_collapse",
    "reward_hacking",
    "saturated",
    "solved",
    "wrong_prefill",
]

ALL_EQUAL = 0.98
"""Share of groups without variance from which there is no gradient worth the name."""
MOSTLY_EQUAL = 0.8
"""From here four of five rollouts are generated for nothing."""
TINY_STD = 1e-6
"""Relative; float32 leaves about 1e-7 where all rewards are equal."""
COLLAPSE_OF_GAIN, COLLAPSE_OF_BEST = 0.5, 0.25
"""A run that lost half of what it learned, and a quarter of its level, is not wobbling."""
LEAST_DROP = 0.05
"""Five points of accuracy: less than that is not worth stopping a run for."""
NEAR_LIMIT, GREW, SHRANK = 0.85, 1.5, 0.2
"""Mean length against trl.max_completion_length, then against its start."""
ALL_CUT, HALF_CUT = 0.95, 0.5
"""Share of completions cut off: from the first no answer is ever seen, the second wastes half."""
FORMAT_HAD, FORMAT_GONE, FORMAT_NEVER = 0.5, 0.1, 0.02
"""A format most completions had and hardly any has now; and one that luck never finds."""
WRONG_TAGS = 0.5
"""Share of completions that close a thought they never opened; a right setup has none."""

ACCURACY = ("accuracy", "rewards/correctness/mean")
SECOND = ("eval_rewards/second_opinion/mean", "rewards/second_opinion/mean")
HELD_OUT = (*SECOND, "eval_rewards/correctness/mean")
EQUAL_GROUPS = ("zero_variance", "frac_reward_zero_std")
"""Ours first: TRL compares a float32 standard deviation with 0 and misses most equal groups."""
LENGTH = "completions/mean_length"
CUT = "completions/clipped_ratio"
CLOSED = ("format", "closed")


def wrong_prefill(run: History) -> Seen | None:
    """The run's idea of whether the template opens the thought contradicts the completions."""
    unopened, unclosed, cut = (
        run.last(FEW, "unopened"),
        run.last(FEW, "truncated"),
        run.last(FEW, CUT),
    )
    # From the first log on: a policy that is being destroyed may come to do it as well.
    always = min(run.get("unopened").first, default=0.0) >= WRONG_TAGS
    if unopened and always and unopened.mean >= WRONG_TAGS:
        return Seen(
            f"{unopened.mean:.0%} of the completions close a thought they never opened: the chat "
            "template opens it in the prompt and the run does not know. Check the chat template "
            "and open_tag/close_tag with 'thinkgate train --check'",
            stop=True,
            since=unopened.since,
        )
    tagged = run.facts.tags_prefilled and unclosed and cut
    if tagged and unclosed and cut and unclosed.mean >= ALL_CUT and cut.mean <= FORMAT_GONE:
        return Seen(
            f"{unclosed.mean:.0%} of the completions end without closing the thought that the "
            "prompt opened, though they are not cut off: the model was never trained to think. "
            "Use a chat template that opens no thought, or a cold start first (method: sft)",
            stop=True,
            since=unclosed.since,
        )
    return None


def all_clipped(run: History) -> Seen | None:
    cut = _nothing_ends(run)
    if not cut or _ended_once(run):
        return None
    return Seen(
        f"{cut.mean:.0%} of the completions are cut off at {_limit(run)}: no answer is ever "
        f"finished. Raise trl.max_completion_length (now {run.facts.max_completion_length}), or "
        "start from a model that knows when to stop",
        stop=True,
        since=cut.since,
    )


def forgot_to_stop(run: History) -> Seen | None:
    """The same, of a policy that knew when to stop: its first logs show that."""
    cut = _nothing_ends(run)
    if not cut or not _ended_once(run):
        return None
    return Seen(
        f"{cut.mean:.0%} of the completions run on until they are cut off at {_limit(run)}; at "
        f"the start it was {run.get(CUT).first[0]:.0%}. Usually the steps are too large: lower "
        f"trl.learning_rate (now {run.facts.learning_rate:g}); or length is rewarded: look at "
        "'rewards'",
        stop=True,
        since=cut.since,
    )


def many_clipped(run: History) -> Seen | None:
    cut = run.last(SOME, CUT)
    if not cut or cut.mean < HALF_CUT:
        return None
    return Seen(
        f"{cut.mean:.0%} of the completions are cut off at {_limit(run)}: their answers cannot be "
        f"graded. Raise trl.max_completion_length (now {run.facts.max_completion_length}), or "
        "add a length reward",
        stop=False,
        since=cut.since,
    )


def constant_reward(run: History) -> Seen | None:
    """No variance in any group from the first log on, or for a long time after there was some."""
    equal, std = run.get(*EQUAL_GROUPS), run.get("reward_std")
    never = equal.last(SOME) if equal.least >= ALL_EQUAL else None
    long = equal.last(MANY)
    window = never or (long if long and long.mean >= ALL_EQUAL else None)
    if window is None and not equal.count:  # PPO has no groups
        window = _no_spread(run)
    if window is None or saturated(run):
        return None
    reward = run.last(FEW, "reward")
    level = f" (reward {reward.mean:.3g})" if reward else ""
    flat = std.last(FEW)
    if reward and flat and flat.mean <= TINY_STD * max(1.0, abs(reward.mean)):
        cause = (
            f"the reward was the same for every completion{level}. Usually a reward function "
            "that returns a constant, or problems that are all far too hard or all trivial; "
            "check 'rewards' and 'data' with 'thinkgate train --check'"
        )
    else:
        cause = (
            f"within each group all completions got the same reward{level}: the problems are "
            "too hard or too easy for this model, or sampling has no variety. Take other 'data', "
            "raise trl.num_generations, or raise trl.temperature"
        )
    return Seen(f"there is no gradient, nothing is learned: {cause}", stop=True, since=window.since)


def solved(run: History) -> Seen | None:
    """Nothing is wrong, but the rest of the run is for nothing."""
    equal = run.last(MANY, *EQUAL_GROUPS)
    if not (equal and equal.mean >= ALL_EQUAL and saturated(run)) or run.share_done > 0.75:
        return None
    return Seen(
        "all completions of a group earn the same reward, and a good one: these problems teach "
        "nothing more. Take harder 'data', or end here (trl.max_steps)",
        stop=False,
        since=equal.since,
    )


def little_signal(run: History) -> Seen | None:
    equal = run.last(MANY, *EQUAL_GROUPS)
    if not equal or not MOSTLY_EQUAL <= equal.mean < ALL_EQUAL:
        return None
    if run.get("reward").rose() or saturated(run):
        return None
    return Seen(
        f"in {equal.mean:.0%} of the groups all rewards are equal, so most of the compute gives "
        "no gradient. Take 'data' of middling difficulty, or raise trl.num_generations",
        stop=False,
        since=equal.since,
    )


def no_reward(run: History) -> Seen | None:
    """TRL makes None of a step in which no completion got a reward from any function."""
    if run.not_finite("reward") < 3 or not math.isnan(run.latest.get("reward", 0.0)):
        return None
    return Seen(
        "no completion got a reward in the last 3 logs: every reward function returned None or "
        "NaN. Usually the judge cannot be reached, or the gold column is empty; mend what "
        "'rewards' calls",
        stop=True,
        since=run.step,
    )


def reward_collapse(run: History) -> Seen | None:
    """Ends the run only where the policy is worse than at its start."""
    if found := collapsed_at_once(run, SOME):
        return found
    reward = run.get("reward")
    drop, start = reward.fell(), reward.start
    if not (drop and start):
        return None
    best, now = drop.before.mean, drop.after
    if drop.by < max(COLLAPSE_OF_GAIN * (best - start.mean), COLLAPSE_OF_BEST * abs(best)):
        return None
    lost = now.mean + 3 * math.hypot(now.error, start.error) < start.mean
    return _collapse(run, now.mean, best, lost, drop.since + 1)


def collapsed_at_once(run: History, logs: int) -> Seen | None:
    """A policy destroyed by its first updates leaves no good window to compare with, only a good
    first log. One log is noise: all of the last `logs` must lie far below it."""
    reward, spread = run.get("reward"), run.get("reward_std").first
    now, values = reward.last(logs), reward.values(logs)
    if not now or not values or not spread or not logs < reward.count <= MANY:
        return None
    first = reward.first[0]
    least = max(COLLAPSE_OF_GAIN * abs(first), 1.5 * spread[0])
    return _collapse(run, now.mean, first, True, 1) if first - max(values) > least else None


def _collapse(run: History, now: float, best: float, lost: bool, since: int) -> Seen:
    worse = ", below where it began" if lost else ""
    return Seen(
        f"the reward fell from {best:.3g} to {now:.3g}{worse}. Usually the steps are too large: "
        f"lower trl.learning_rate (now {run.facts.learning_rate:g}), add a KL penalty (trl.beta, "
        f"now {run.facts.beta:g}), or use more rollouts per step",
        stop=lost,
        since=since,
    )


def reward_hacking(run: History) -> Seen | None:
    """The sum rises while the part of it that checks the answer falls."""
    gain, drop = run.get("reward").rose(), run.get(*ACCURACY).fell()
    if not (gain and drop) or drop.by < LEAST_DROP:
        return None
    return Seen(
        f"the reward rose by {gain.by:.3g} while the share of right answers fell from "
        f"{drop.before.mean:.0%} to {drop.after.mean:.0%}{_length_change(run)}: the model "
        "earns its reward with something else. Lower that reward's weight in 'rewards', or make "
        "it count for right answers only",
        stop=True,
        since=drop.since + 1,
    )


def held_out_divergence(run: History) -> Seen | None:
    """What is optimised rises, what is only measured falls: the verifier is being gamed."""
    gain, drop = run.get("reward").rose(), run.get(*HELD_OUT).fell()
    if not (gain and drop) or drop.by < LEAST_DROP:
        return None
    return Seen(
        f"the training reward rose by {gain.by:.3g} while accuracy by the held-out check fell from "
        f"{drop.before.mean:.0%} to {drop.after.mean:.0%}: the reward is being gamed or the data "
        "memorised. Read completions.jsonl, tighten 'rewards', or stop earlier (trl.max_steps)",
        stop=True,
        since=drop.since + 1,
    )


def length_hacking(run: History) -> Seen | None:
    """Length runs to a limit although nothing shows that answers get better by it."""
    length, limit = run.get(LENGTH), run.facts.max_completion_length
    gain, now, start = run.get("reward").rose(), length.now, length.start
    if not (gain and now and start):
        return None
    accuracy = run.get(*SECOND, *ACCURACY)
    to_limit = limit is not None and now.mean >= NEAR_LIMIT * limit
    longer = to_limit and now.mean >= GREW * start.mean
    shorter = now.mean <= SHRANK * start.mean
    fell = accuracy.fell()
    if accuracy.rose() or not (longer or shorter) or (shorter and accuracy.count and not fell):
        return None
    checked = (
        f"accuracy did not rise ({accuracy.now.mean:.0%})"
        if accuracy.now
        else "no reward checks the answers"
    )
    where = f"of {limit} allowed" if longer else "on average"
    return Seen(
        f"the reward rose by {gain.by:.3g}{_length_change(run)} {where}, and {checked}: length "
        "itself is being rewarded. In 'rewards', give the length reward a target or a smaller "
        "weight, or reward length on right answers only (cosine-scaled)",
        stop=fell is not None and fell.by >= LEAST_DROP,
        since=start.until,
    )


def format_lost(run: History) -> Seen | None:
    closed = run.get(*CLOSED)
    now, best = closed.last(FEW), closed.highest
    if not now or not best or best.mean < FORMAT_HAD or now.mean > FORMAT_GONE:
        return None
    return Seen(
        f"only {now.mean:.0%} of the completions think and then answer; it was {best.mean:.0%}. "
        "Usually the steps are too large, or another reward pays better: lower "
        f"trl.learning_rate (now {run.facts.learning_rate:g}) or raise the weight of 'format'",
        stop=True,
        since=closed.peak_until + 1,
    )


def format_never_found(run: History) -> Seen | None:
    closed = run.last(MANY, *CLOSED)
    if not closed or closed.mean > FORMAT_NEVER or not run.weighted(["format", "tag_count"]):
        return None
    return Seen(
        f"{closed.mean:.0%} of the completions think and then answer, and none is found to "
        "reinforce. Name the format in prompt.system, use the tag count reward as a slope "
        "towards it, or a cold start first (method: sft)",
        stop=False,
        since=closed.since,
    )


def _nothing_ends(run: History) -> Window | None:
    """The window in which all is cut off. None while the reward rises all the same: a length
    reward may be teaching the model to stop."""
    cut, equal, long = run.last(FEW, CUT), run.last(FEW, *EQUAL_GROUPS), run.last(MANY, CUT)
    if not cut or cut.mean < ALL_CUT:
        return None
    if equal is not None and equal.mean >= 0.9:
        return cut
    return long if long and long.mean >= ALL_CUT and not run.get("reward").rose() else None


def _ended_once(run: History) -> bool:
    return run.get(CUT).first[0] < HALF_CUT


def _limit(run: History) -> str:
    limit = run.facts.max_completion_length
    return f"{limit} tokens" if limit else "the length limit"


def _length_change(run: History) -> str:
    start, now = run.get(LENGTH).start, run.get(LENGTH).now
    if not (start and now):
        return ""
    return f" and completions went from {start.mean:.0f} to {now.mean:.0f} tokens"


def saturated(run: History) -> bool:
    """The answers are right, or equal groups came with a reward that rose and stayed."""
    accuracy, reward = run.last(FEW, *ACCURACY), run.get("reward")
    if accuracy:
        return accuracy.mean >= ALL_EQUAL
    return bool(reward.rose() and not reward.fell())


def _no_spread(run: History) -> Window | None:
    std, reward = run.get("reward_std").values(SOME), run.last(SOME, "reward")
    if not std or not reward or max(std) > TINY_STD * max(1.0, abs(reward.mean)):
        return None
    return reward
