"""What the starting model earns, and whether the groups of a run would teach anything.

Owns the prediction from a few completions and the point at which it is called hopeless. A refusal
needs evidence: see `least_hope`.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from math import ceil, comb, inf

from thinkgate.answers import Verdict, check_many
from thinkgate.errors import TrainingError
from thinkgate.format import SplitStatus, Tags
from thinkgate_train.preflight.report import Topic, clipped, percent
from thinkgate_train.preflight.trial import Rollout, Trial, some
from thinkgate_train.recipe import Recipe
from thinkgate_train.rewards.function import Splitter
from thinkgate_train.rewards.scoring import SAME, Scored, Scorer
from thinkgate_train.sources import Row

__all__ = ["Study", "equal_share", "least_hope", "rollout_topic"]

HOPELESS = 0.1
"""A run is refused when, with 95 % confidence, fewer than this share of its groups have unequal
rewards: nine of ten would be sampled for nothing, and the tenth is a guess."""
AT_MOST = (3.00, 4.74, 6.30, 7.75)
"""Seen 0, 1, 2 or 3 times in n trials: with 95 % confidence it happens at most so often in n (the
upper Poisson limits; the first is the rule of three, Hanley and Lippman-Hand 1983, JAMA
249:1743)."""
FORMATS = ("format", "tag_count")
"""Rewards that want a thought in tags."""
MANY_CUT = 0.2
"""Share of cut-off completions that is warned about: they lose their reward for their length."""
MANY_EQUAL = 0.7
"""Share of groups without a gradient that is warned about."""


@dataclass(frozen=True, slots=True)
class Study:
    """Completions and what they earned, in one order."""

    rollouts: list[Rollout]
    scored: list[Scored]
    verdicts: list[Verdict | None]
    """None where the row has no gold."""
    formatted: list[bool]
    """A closed thought, then an answer."""

    def __add__(self, other: "Study") -> "Study":
        return Study(
            self.rollouts + other.rollouts,
            self.scored + other.scored,
            self.verdicts + other.verdicts,
            self.formatted + other.formatted,
        )

    def by_prompt(self) -> list[list[float]]:
        """The measured totals of each prompt's completions."""
        groups: dict[int, list[float]] = {}
        for rollout, scored in zip(self.rollouts, self.scored, strict=True):
            totals = groups.setdefault(id(rollout.row), [])
            if scored.total is not None:
                totals.append(scored.total)
        return list(groups.values())

    def pass_rates(self) -> list[float]:
        """Of each prompt with a gold, how often it was solved."""
        solved: dict[int, list[bool]] = {}
        for rollout, verdict in zip(self.rollouts, self.verdicts, strict=True):
            if verdict in (Verdict.CORRECT, Verdict.WRONG, Verdict.NO_ANSWER):
                solved.setdefault(id(rollout.row), []).append(verdict is Verdict.CORRECT)
        return [statistics.fmean(outcomes) for outcomes in solved.values()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to sample, and for what."""

    prompts: int
    samples: int
    group: int
    """Completions that the method compares with each other."""
    compared: bool
    """Whether it does compare them; else `group` is what is looked at together."""
    all_asked: bool
    """No reward was left out; one that was may tell completions apart that the others do not."""
    per_process: float
    """Rollouts for one step of `max_steps`, in one process."""
    passes: int
    """Forward passes that training on a rollout costs; a backward one counts for two."""
    masks_cut: bool
    """Cut-off completions are left out of the loss."""
    rollouts_elsewhere: bool
    """vLLM will generate, so the time measured here says nothing."""


Judge = Callable[[list[Rollout]], Study]


def judge_with(scorer: Scorer, splitter: Splitter) -> Judge:
    """Score completions by the rewards, the verifier and the splitter."""

    def judge(rollouts: list[Rollout]) -> Study:
        splits = [splitter(rollout.text) for rollout in rollouts]
        golds = [rollout.row.get("gold") for rollout in rollouts]
        verdicts = check_many(
            ("" if split.answer is None else split.answer, "" if gold is None else str(gold))
            for split, gold in zip(splits, golds, strict=True)
        )
        return Study(
            rollouts,
            scorer.score(
                [rollout.row for rollout in rollouts],
                [rollout.text for rollout in rollouts],
                [rollout.ids for rollout in rollouts],
            ),
            [None if gold is None else v for gold, v in zip(golds, verdicts, strict=True)],
            [
                split.status is SplitStatus.CLOSED and bool((split.answer or "").strip())
                for split in splits
            ],
        )

    return judge


def rollout_topic(
    trial: Trial, judge: Judge, rows: Sequence[Row], plan: Plan, recipe: Recipe
) -> tuple[Topic, float | None]:
    """Sample, predict, and refuse what cannot learn; and the seconds that a step may take."""
    # Distinct objects: the same row may be drawn twice from small data, as two prompts.
    chosen = [dict(row) for row in some(rows, plan.prompts)]
    study = _drawn(trial, judge, chosen * plan.samples)
    if study is None:
        return Topic(
            name="rollouts",
            summary="no completion was finished in the time there is",
            warnings=("nothing is known about rewards; a smaller max_completion_length or a GPU",),
        ), None
    hopeless = _second_look(trial, judge, study, rows, plan) if plan.all_asked else None
    wanted = any(reward.name in FORMATS and reward.weight > 0 for reward in recipe.rewards)
    found = _warnings(study, plan, trial, recipe.tags if wanted else None)
    if hopeless is not None and not hopeless.certain:
        found = [hopeless.why]
    topic = Topic(
        name="rollouts",
        summary=_summary(study, plan),
        details=_details(study),
        warnings=tuple(found),
        refusal=TrainingError(f"{recipe.name}: {hopeless.why}")
        if hopeless is not None and hopeless.certain
        else None,
    )
    if plan.rollouts_elsewhere:
        return topic, None
    return topic, trial.step_seconds(study.rollouts, plan.per_process, plan.passes)


def equal_share(totals: Sequence[float], group: int) -> float:
    """The probability that `group` completions like these all earn the same.

    Unbiased for a group no larger than the sample: the share of all its subsets of that size that
    are equal, as in the estimator of pass@k (Chen et al. 2021, arXiv 2107.03374). For a larger one
    it is that of the whole sample, an upper limit.
    """
    size = min(group, len(totals))
    counts: list[int] = []
    last = float("-inf")
    for total in sorted(totals):
        if counts and total - last <= SAME * max(1.0, abs(total)):
            counts[-1] += 1
        else:
            counts.append(1)
            last = total
    return sum(comb(count, size) for count in counts) / comb(len(totals), size)


def least_hope(groups: Sequence[Sequence[float]], group: int) -> float:
    """The largest share of unequal groups that still agrees with a sample, with 95 % confidence;
    infinite where more than a few are unequal, so that there is no need to ask.

    The smaller of two limits. Where nearly all completions of all prompts earn the same, a share p
    of at most `AT_MOST`/n earns something else, and a group is unequal at most with 1-(1-p)^group
    (concave in p, so no mixture of prompts exceeds it). Where prompts differ from each other, pairs
    count: a share d of at most `AT_MOST`/pairs of the pairs of one prompt differ, and a group is
    unequal at most with (group-1) d.
    """
    few = len(AT_MOST)
    flat = [round(total / SAME) for totals in groups for total in totals]
    if not flat or sum(map(_unequal, groups)) >= few:
        return inf
    odd = len(flat) - Counter(flat).most_common(1)[0][1]
    pairs = [_unequal(totals[:2]) for totals in groups if len(totals) > 1]
    share = min(1.0, AT_MOST[odd] / len(flat)) if odd < few else 1.0
    between = AT_MOST[sum(pairs)] / len(pairs) if pairs else 1.0
    return min(1 - (1 - share) ** group, (group - 1) * between, 1.0)


def _drawn(trial: Trial, judge: Judge, rows: Sequence[Row]) -> Study | None:
    rollouts = [rollout for batch in trial.draw(rows) for rollout in batch]
    return judge(rollouts) if rollouts else None


@dataclass(frozen=True, slots=True)
class Hopeless:
    """No group seen so far would teach anything."""

    why: str
    certain: bool
    """With 95 % confidence hardly any other would."""


def _second_look(
    trial: Trial, judge: Judge, study: Study, rows: Sequence[Row], plan: Plan
) -> Hopeless | None:
    """Whether the run is hopeless; None when a group may teach something.

    Draws from more prompts, two completions each, until one differs or the bound is low enough.
    """
    if plan.masks_cut and all(rollout.cut for rollout in study.rollouts):
        share = AT_MOST[0] / len(study.rollouts)
        return Hopeless(_why(study, masked=True), share <= HOPELESS)
    pairs = ceil(AT_MOST[0] * (plan.group - 1) / HOPELESS)
    others = islice(cycle(some(rows, pairs)), pairs)
    batches = trial.draw([row for other in others for row in [dict(other)] * 2])
    while True:
        groups = study.by_prompt()
        if not any(groups):  # nothing could be measured, which is like earning the same
            groups = [[0.0] * len(study.rollouts)]
        hope = least_hope(groups, plan.group)
        if hope <= HOPELESS or hope == inf:
            break
        batch = next(batches, None)
        if not batch:  # all were drawn, or the time was over
            break
        study = study + judge(batch)
    # Where it is neither certain nor excluded, only a sample without any difference is a warning.
    if hope > HOPELESS and any(_unequal(totals) for totals in groups):
        return None
    return Hopeless(_why(study, masked=False), hope <= HOPELESS)


def _unequal(totals: Sequence[float]) -> bool:
    return bool(totals) and max(totals) - min(totals) > SAME


def _why(study: Study, *, masked: bool) -> str:
    """One sentence: what the completions have in common, and what to do."""
    count = len(study.rollouts)
    totals = [total for group in study.by_prompt() for total in group]
    usual = Counter(totals).most_common(1)[0][0] if totals else 0.0
    solved = [verdict is Verdict.CORRECT for verdict in study.verdicts if verdict is not None]
    few = len(AT_MOST)
    if masked:
        return (
            f"all {count} completions are cut off and trl.mask_truncated_completions leaves those "
            "out of the loss; raise trl.max_completion_length"
        )
    if not totals:
        return (
            f"no reward could be measured for any of {count} completions; look at the reward "
            "functions and at the column 'gold'"
        )
    if solved and solved.count(False) < few:
        return (
            f"{sum(solved)} of {count} completions are right already, so there is nothing to learn "
            "here; take harder data"
        )
    if sum(rollout.cut for rollout in study.rollouts) > count - few:
        return (
            f"of {count} completions nearly all are cut off at trl.max_completion_length and earn "
            f"the same ({usual:.3g}); raise it, or do SFT first so that the model learns to end"
        )
    if sum(abs(total - usual) > SAME for total in totals) >= few:
        return (
            f"in {count} completions those of one prompt earn the same, so no group has anything "
            "to compare; raise trl.temperature, or start from a model before it collapsed"
        )
    if solved and sum(solved) < few:
        return (
            f"of {count} completions {sum(solved) or 'none'} earned the reward for a right answer "
            f"and the others the same ({usual:.3g}): start from a better model, take easier data, "
            "or do SFT first"
        )
    return (
        f"of {count} completions nearly all earn the same ({usual:.3g}), so no group has anything "
        "to compare; take rewards that tell completions apart, or do SFT first"
    )


def _summary(study: Study, plan: Plan) -> str:
    count = len(study.rollouts)
    parts: list[str] = []
    rates = study.pass_rates()
    if rates:
        parts.append(f"{percent(statistics.fmean(rates))} right")
    if rates or any(study.formatted):
        parts.append(f"{percent(statistics.fmean(study.formatted))} formatted")
    parts.append(f"{percent(statistics.fmean(r.cut for r in study.rollouts))} cut off")
    share = _equal_groups(study, plan)
    if share is not None:
        # A group larger than the sample is equal at most as often as the sample is.
        least = "" if plan.group <= plan.samples else "up to "
        parts.append(f"{least}{percent(share)} of groups equal")
    return f"{count}: {', '.join(parts)}"


def _equal_groups(study: Study, plan: Plan) -> float | None:
    """The share of groups whose rewards are all the same; None where none is compared."""
    groups = [totals for totals in study.by_prompt() if totals]
    if not (plan.compared and plan.all_asked and groups):
        return None
    return statistics.fmean(equal_share(totals, plan.group) for totals in groups)


def _details(study: Study) -> tuple[str, ...]:
    lines: list[str] = []
    rates = study.pass_rates()
    if rates:
        some = [rate for rate in rates if 0 < rate < 1]
        rarely = sum(rate <= 0.5 for rate in some)
        lines.append(
            f"prompts solved never {rates.count(0)}, up to half {rarely}, "
            f"more {len(some) - rarely}, always {rates.count(1)}"
        )
    totals = [total for group in study.by_prompt() for total in group]
    if totals:
        spread = statistics.pstdev(totals)
        lengths = sorted(len(rollout.ids) for rollout in study.rollouts)
        lines.append(
            f"reward {statistics.fmean(totals):.3g} ± {spread:.3g}; "
            f"{statistics.median(lengths):.0f} tokens in the median, {lengths[-1]} at most"
        )
    lines.append(f"for example '{clipped(study.rollouts[0].text, 110, tail=30)}'")
    return tuple(lines)


def _warnings(study: Study, plan: Plan, trial: Trial, tags: Tags | None) -> list[str]:
    """What to expect trouble from; `tags` where the rewards want them."""
    found: list[str] = []
    count = len(study.rollouts)
    if trial.overran:
        found.append(
            f"the time was over after {count} completions; what was unfinished is not counted, so "
            "they look shorter than they are"
        )
    cut = statistics.fmean(rollout.cut for rollout in study.rollouts)
    if cut > MANY_CUT:
        found.append(
            f"{percent(cut)} of completions are cut off, right ones among them; raise "
            "trl.max_completion_length"
        )
    if tags is not None and not any(study.formatted):
        found.append(
            f"none of {count} completions has the form {tags.open}…{tags.close} answer; ask for it "
            "in prompt.system, or do SFT first"
        )
    rates = study.pass_rates()
    if rates and not any(rates):
        most = min(1.0, AT_MOST[0] / count)
        found.append(
            f"none of {count} completions is right (with 95% confidence fewer than {percent(most)} "
            "are): expect a slow start; easier problems or SFT first would help"
        )
    share = _equal_groups(study, plan)
    if share is not None and share > MANY_EQUAL:
        found.append(
            f"{percent(share)} of groups have equal rewards and teach nothing; set "
            "prepare.curriculum or prepare.dynamic_sampling"
        )
    return found
