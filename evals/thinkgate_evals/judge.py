"""The judge: rules of a policy, applied to a candidate's and its incumbent's evidence.

Owns what each rule asks of the numbers, and nothing else: it draws no sample. Whatever could not be
measured keeps a candidate out; it never lets one in. Where the intervals come from is the
`Inference`'s: of one sample of a fixed size, or of one that is looked at as it grows.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from thinkgate.checkpoint import GateVerdict, HealthVerdict, RuleResult
from thinkgate_evals import stats
from thinkgate_evals.comparison import Comparison, compare
from thinkgate_evals.evidence import Evidence, incomparable, seen_problems, unsound
from thinkgate_evals.inference import FIXED, Counts, Inference
from thinkgate_evals.metrics import SHARES, cost_by_problem, counts_of, tokens_by_problem
from thinkgate_evals.policy import (
    Contamination,
    CostPerCorrect,
    DuplicateRate,
    ErrorRate,
    Floor,
    FormatRate,
    ModelRule,
    NonInferiority,
    Policy,
    RewardDivergence,
    Rule,
    SuiteRule,
    Superiority,
    ThinkingTokens,
    TrainingHealth,
    TruncationRate,
)
from thinkgate_evals.records import Record
from thinkgate_evals.stats import Interval
from thinkgate_evals.voting import duplicate_rate
from thinkgate_evals.wording import points, test_text, value_text

__all__ = ["Judge"]

PASS, FAIL, INCONCLUSIVE = GateVerdict.PASS, GateVerdict.FAIL, GateVerdict.INCONCLUSIVE
Comparative = Superiority | NonInferiority
ROUNDING = 1e-9
MODEL = "training"
"""In the place of a suite's name, for rules about the model's training."""

SEVERITY = (HealthVerdict.HEALTHY, HealthVerdict.WARNED, HealthVerdict.STOPPED)
DIVERGED = frozenset({"reward_hacking", "held_out_divergence"})
"""Findings of the health watch: the reward rises, and what it should stand for falls."""

LACKING = {
    "format_rate": "the records have no 'status'",
    "truncation_rate": "the records have no 'status'",
}
"""Why a share is not known though samples were graded: records from elsewhere may lack it."""


class Judge:
    """Applies rules to one pair of evidence."""

    def __init__(
        self,
        policy: Policy,
        candidate: Evidence,
        incumbent: Evidence | None,
        inferences: Mapping[str, Inference] | None = None,
    ) -> None:
        self._policy = policy
        self._confidence = 1 - policy.alpha
        self._candidate = candidate
        self._incumbent = incumbent
        suites = policy.suites()
        self._inference = {s: (inferences or {}).get(s, FIXED) for s in suites}
        compared = {rule.suite for rule in policy.comparative()}
        self._pairs = {suite: self._compare(suite) for suite in compared}
        self._levels = self._shared_alpha()

    def judge(self, rules: Sequence[Rule]) -> list[RuleResult]:
        """What all rules say."""
        return self._distrust([self.apply(rule) for rule in rules])

    def apply(self, rule: Rule) -> RuleResult:
        """What one rule says."""
        match rule:
            case Floor():
                return self._at_least(rule, "accuracy", rule.at_least)
            case FormatRate():
                return self._at_least(rule, "format_rate", rule.at_least)
            case TruncationRate():
                return self._truncation(rule)
            case ThinkingTokens():
                return self._thinking(rule)
            case CostPerCorrect():
                return self._cost(rule)
            case Superiority() | NonInferiority():
                return self._comparative(rule)
            case ErrorRate():
                return self._errors(rule)
            case DuplicateRate():
                return self._duplicates(rule)
            case Contamination():
                return self._contamination(rule)
            case TrainingHealth():
                return self._health(rule)
            case RewardDivergence():
                return self._divergence(rule)

    def _distrust(self, results: Sequence[RuleResult]) -> list[RuleResult]:
        """On a suite whose evidence is not sound, what was sampled decides nothing."""
        suites = {result.suite for result in results}
        reasons = {suite: why for suite in suites if (why := self._distrusted(suite))}
        for result in results:
            if result.rule == "error_rate" and result.verdict is not PASS:
                reasons.setdefault(result.suite, result.why)
        return [
            result.model_copy(
                update={"verdict": INCONCLUSIVE, "why": reasons[result.suite], "more_samples": None}
            )
            if result.suite in reasons and result.rule != "contamination"
            else result
            for result in results
        ]

    def _distrusted(self, suite: str) -> str | None:
        """Why nothing that was sampled on a suite counts, or None."""
        if suite == MODEL:
            return None
        if why := unsound(self._candidate.records[suite]):
            return why
        if self._incumbent is None or suite not in self._pairs:
            return None
        if why := unsound(self._incumbent.records[suite]):
            return f"the incumbent's records: {why}"
        return incomparable(suite, self._candidate, self._incumbent)

    def _at_least(self, rule: SuiteRule, metric: str, bound: float) -> RuleResult:
        interval = self._share(rule.suite, metric)
        if interval is None:
            return _result(rule, metric, None, bound, INCONCLUSIVE, self._lacks(rule, metric))
        if interval.low >= bound:
            why = f"{interval.low:.1%} or more, {self._confidence:.0%} confident"
            return _result(rule, metric, interval, bound, PASS, why)
        if interval.high < bound:
            why = f"at most {interval.high:.1%}; {bound:.1%} is required"
            return _result(rule, metric, interval, bound, FAIL, why)
        needed = stats.problems_for_share(interval, bound, self._confidence)
        return self._open(rule, metric, interval, bound, needed)

    def _truncation(self, rule: TruncationRate) -> RuleResult:
        metric = "truncation_rate"
        interval = self._share(rule.suite, metric)
        if interval is None:
            why = self._lacks(rule, metric)
            return _result(rule, metric, None, rule.at_most, INCONCLUSIVE, why)
        needed = stats.problems_for_share(interval, rule.at_most, self._confidence)
        return self._at_most(rule, metric, interval, rule.at_most, needed)

    def _thinking(self, rule: ThinkingTokens) -> RuleResult:
        metric, bound = "p95_thinking_tokens", rule.at_most
        samples = tokens_by_problem(self._candidate.records[rule.suite])
        if samples is None:
            why = "the records have no 'reasoning_tokens'"
            return _result(rule, metric, None, bound, INCONCLUSIVE, why)

        def share_of(counts: Counts) -> Interval | None:
            return self._inference[rule.suite].share(counts, self._confidence)

        interval = stats.quantile(samples, 0.95, share_of)
        above = share_of(stats.above_counts(samples, bound))
        if interval is None or above is None:
            return _result(rule, metric, None, bound, INCONCLUSIVE, "no sample could be measured")
        needed = stats.problems_for_share(above, 0.05, self._confidence)
        return self._at_most(rule, metric, interval, bound, needed)

    def _cost(self, rule: CostPerCorrect) -> RuleResult:
        metric, bound = "tokens_per_correct", rule.at_most
        pairs = cost_by_problem(self._candidate.records[rule.suite])
        if pairs is None:
            why = "the records do not count tokens"
            return _result(rule, metric, None, bound, INCONCLUSIVE, why)
        loaded = self._candidate.suites.get(rule.suite)
        largest = loaded.suite.sampling.max_tokens if loaded else math.inf
        over = max((tokens for tokens, _ in pairs), default=0)
        if over > largest:
            why = f"answers of {over:,.0f} tokens, where the suite allows {largest:,.0f}"
            return _result(rule, metric, None, bound, INCONCLUSIVE, why)
        interval = self._inference[rule.suite].ratio(pairs, largest, self._confidence)
        if interval is None:
            why = "no answer was right, so it has no cost"
            return _result(rule, metric, None, bound, INCONCLUSIVE, why)
        excess = [tokens - bound * right for tokens, right in pairs]
        needed = stats.problems_for_mean(excess, self._confidence)
        return self._at_most(rule, metric, interval, bound, needed)

    def _at_most(
        self, rule: SuiteRule, metric: str, interval: Interval, bound: float, needed: int | None
    ) -> RuleResult:
        if interval.high <= bound:
            high = value_text(metric, interval.high)
            why = f"{high} or less, {self._confidence:.0%} confident"
            return _result(rule, metric, interval, bound, PASS, why)
        if interval.low > bound:
            why = f"at least {value_text(metric, interval.low)}; "
            why += f"the ceiling is {value_text(metric, bound)}"
            return _result(rule, metric, interval, bound, FAIL, why)
        return self._open(rule, metric, interval, bound, needed)

    def _open(
        self, rule: SuiteRule, metric: str, interval: Interval, bound: float, needed: int | None
    ) -> RuleResult:
        more, text = self._more(rule, interval.n, needed)
        why = f"the interval contains {value_text(metric, bound)}; {text}"
        return _result(rule, metric, interval, bound, INCONCLUSIVE, why, more)

    def _lacks(self, rule: SuiteRule, metric: str) -> str:
        graded = any(record.graded for record in self._candidate.records[rule.suite])
        return LACKING[metric] if graded and metric in LACKING else "no sample could be measured"

    def _more(self, rule: SuiteRule, n: int, needed: int | None) -> tuple[int | None, str]:
        """Further samples of the candidate that would settle a rule, as a number and in words."""
        if needed is None:
            return None, f"no reasonable number of problems would settle it (these are {n:,})"
        records = self._candidate.records[rule.suite]
        repeats = max(1, round(len(records) / max(1, len({r.problem_id for r in records}))))
        more = needed - n
        text = f"about {more:,} more problems"
        text += f" with {repeats} answers each ({more * repeats:,} samples)" if repeats > 1 else ""
        text += " would settle it 4 times in 5"
        text += ", looked at once" if self._inference[rule.suite].sequential else ""
        loaded = self._candidate.suites.get(rule.suite)
        if loaded is not None and needed > len(loaded.problems):
            text += f" (the suite has {len(loaded.problems):,} in all)"
        return more * repeats, text

    def _comparative(self, rule: Comparative) -> RuleResult:
        pair, level = self._pairs[rule.suite], self._levels[rule]
        bound = rule.min_gain if isinstance(rule, Superiority) else -rule.margin
        interval = self._inference[rule.suite].difference(pair.differences, 1 - level)
        if interval is None:
            why = "no problem was measured on both sides"
            return _result(rule, "accuracy_gain", None, bound, INCONCLUSIVE, why)
        line = 0.0 if isinstance(rule, Superiority) else bound
        enough = not isinstance(rule, Superiority) or interval.estimate >= bound - ROUNDING
        more = None
        if interval.low > line and enough:
            verdict, why = PASS, f"above {_points(line)}, {1 - level:.1%} confident"
        elif interval.high < bound:
            verdict = FAIL
            why = f"at most {_points(interval.high)}; {_points(bound)} is required"
        else:
            aim = line if enough else bound
            needed = stats.problems_for_difference(pair.differences, aim, 1 - level)
            more, text = self._more(rule, interval.n, needed)
            verdict, why = INCONCLUSIVE, f"cannot be told from {_points(aim)}; {text}"
        return _result(
            rule, "accuracy_gain", interval, bound, verdict, f"{why}; {self._score(rule)}", more
        )

    def _score(self, rule: Comparative) -> str:
        pair = self._pairs[rule.suite]
        score = f"{pair.wins} won, {pair.losses} lost"
        # A p-value for one look would mean nothing after several.
        looked = self._inference[rule.suite].sequential
        return score if looked else f"{score}, {test_text(pair)}"

    def _sides(self, rule: SuiteRule) -> dict[str, Evidence]:
        """Whose samples a rule on how they were drawn is about."""
        sides = {"candidate": self._candidate}
        if self._incumbent is not None and rule.suite in self._pairs:
            sides["incumbent"] = self._incumbent
        return sides

    def _duplicates(self, rule: DuplicateRate) -> RuleResult:
        rates = {
            name: duplicate_rate(side.records[rule.suite])
            for name, side in self._sides(rule).items()
        }
        worst, interval = max(rates.items(), key=lambda item: item[1].estimate if item[1] else 2)
        if interval is None:
            why = "no problem has two answers to compare"
            return _result(rule, "duplicate_rate", None, rule.at_most, INCONCLUSIVE, why)
        if interval.estimate <= rule.at_most:
            why = f"most: {worst}"
            return _result(rule, "duplicate_rate", interval, rule.at_most, PASS, why)
        why = (
            f"{interval.estimate:.1%} of the {worst}'s further samples repeat an earlier one word "
            "for word: the endpoint may ignore seeds"
        )
        return _result(rule, "duplicate_rate", interval, rule.at_most, INCONCLUSIVE, why)

    def _errors(self, rule: ErrorRate) -> RuleResult:
        sides = {name: side.records[rule.suite] for name, side in self._sides(rule).items()}
        absent = _absent(sides)
        rates = {
            name: stats.share(
                counts_of(records, SHARES["error_rate"], absent[name]), self._confidence
            )
            for name, records in sides.items()
        }
        worst, interval = max(rates.items(), key=lambda item: item[1].estimate if item[1] else 2)
        if interval is None:
            why = f"the {worst} has no samples"
            return _result(rule, "error_rate", None, rule.at_most, INCONCLUSIVE, why)
        if interval.estimate <= rule.at_most:
            why = "nothing failed" if interval.estimate == 0 else f"worst: {worst}"
            return _result(rule, "error_rate", interval, rule.at_most, PASS, why)
        reason = next((r.error for r in sides[worst] if r.error), "grading")
        if absent[worst]:
            asked = {record.problem_id for record in sides[worst]}
            unasked = len(absent[worst].keys() - asked)
            reason = f"{unasked:,} problems are only on the other side"
            if not unasked:
                reason = f"{sum(absent[worst].values()):,} samples that others have are not there"
        why = f"{interval.estimate:.1%} of the {worst}'s samples failed, first with: {reason}"
        return _result(rule, "error_rate", interval, rule.at_most, INCONCLUSIVE, why)

    def _contamination(self, rule: Contamination) -> RuleResult:
        loaded, seen = self._candidate.suites.get(rule.suite), self._candidate.seen_prompts
        bound = rule.at_most
        if seen is None or loaded is None:
            what = "checkpoint does" if loaded else "records do"
            why = f"the {what} not say what the model was trained on"
            return _result(rule, "contamination", None, bound, INCONCLUSIVE, why)
        n = len(loaded.problems)
        hits = [problem.id for problem in seen_problems(loaded, seen)]
        # A count of all problems, not a sample: there is nothing to be uncertain about.
        rate = len(hits) / n
        interval = Interval(rate, rate, rate, n)
        if rate <= bound:
            why = f"{len(hits)} of {n} problems are among {len(seen)} training prompts"
            return _result(rule, "contamination", interval, bound, PASS, why)
        why = f"{len(hits)} of {n} problems were in training, such as {', '.join(hits[:3])}"
        return _result(rule, "contamination", interval, bound, FAIL, why)

    def _health(self, rule: TrainingHealth) -> RuleResult:
        health, allowed = self._candidate.health, SEVERITY.index(rule.at_worst)
        if health is None:
            why = "nothing watched the training, or the records do not say"
            return _result(rule, "training_health", None, allowed, INCONCLUSIVE, why)
        found = SEVERITY.index(health.verdict)
        why = "; ".join(f"{f.symptom} at step {f.step}" for f in health.findings) or "no finding"
        return _result(
            rule, "training_health", _count(found), allowed, PASS if found <= allowed else FAIL, why
        )

    def _divergence(self, rule: RewardDivergence) -> RuleResult:
        health, rewarded = self._candidate.health, self._candidate.rewarded
        if health is None or (rewarded and not self._candidate.held_out):
            what = (
                "beside the reward was" if rewarded else "was, or the records do not say what was,"
            )
            why = f"nothing {what} watched in its training"
            return _result(rule, "reward_divergence", None, 0, INCONCLUSIVE, why)
        found = [f for f in health.findings if f.symptom in DIVERGED]
        fine = "reward and held-out check went together" if rewarded else "trained on no reward"
        why = "; ".join(f.why for f in found) or fine
        count = _count(len(found))
        return _result(rule, "reward_divergence", count, 0, FAIL if found else PASS, why)

    def _share(self, suite: str, metric: str) -> Interval | None:
        counts = counts_of(self._candidate.records[suite], SHARES[metric])
        return self._inference[suite].share(counts, self._confidence)

    def _compare(self, suite: str) -> Comparison:
        assert self._incumbent is not None
        return compare(self._candidate.records[suite], self._incumbent.records[suite])

    def _shared_alpha(self) -> dict[Comparative, float]:
        """The alpha of each comparative rule; one rule alone gets all of it."""
        rules, alpha = self._policy.comparative(), self._policy.alpha
        if self._policy.correction == "none":
            return dict.fromkeys(rules, alpha)
        p_values = [
            2 * self._inference[rule.suite].p_value(pair.differences, -getattr(rule, "margin", 0.0))
            if (pair := self._pairs[rule.suite]).differences
            else 1.0
            for rule in rules
        ]
        return dict(zip(rules, stats.holm_levels(p_values, alpha), strict=True))


def _absent(sides: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, int]]:
    """How many samples each side lacks, by problem: all problems of either side should have as many
    as one of them has.

    What is not there was not measured, and whoever left it away may have known why.
    """
    counts = {name: Counter(r.problem_id for r in records) for name, records in sides.items()}
    planned = max((n for each in counts.values() for n in each.values()), default=0)
    problems = {problem for each in counts.values() for problem in each}
    return {
        name: {p: planned - each[p] for p in problems if each[p] < planned}
        for name, each in counts.items()
    }


def _result(
    rule: SuiteRule | ModelRule,
    metric: str,
    interval: Interval | None,
    threshold: float,
    verdict: GateVerdict,
    why: str,
    more_samples: int | None = None,
) -> RuleResult:
    return RuleResult(
        rule=rule.rule,
        suite=MODEL if isinstance(rule, ModelRule) else rule.suite,
        metric=metric,
        estimate=interval.estimate if interval else None,
        low=interval.low if interval else None,
        high=interval.high if interval and math.isfinite(interval.high) else None,
        n=interval.n if interval else 0,
        threshold=threshold,
        verdict=verdict,
        why=why,
        more_samples=more_samples,
    )


def _count(number: int) -> Interval:
    """Counted, not sampled."""
    return Interval(number, number, number, 0)


def _points(difference: float) -> str:
    return points(difference) if difference else "0"
