"""The gate: a policy, evidence about a candidate and its incumbent, and one of three verdicts.

Owns the decision and nothing else: it draws no sample and writes no file. Whatever could not be
measured keeps a candidate out; it never lets one in.

PASS when the data show what a rule asks, FAIL when they show the opposite, INCONCLUSIVE when they
show neither: then it says how many problems would.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from thinkgate.checkpoint import Decision, GateVerdict, RuleResult, now
from thinkgate.errors import ConfigError
from thinkgate.problems import Problem, prompt_key
from thinkgate_evals.comparison import Comparison, compare
from thinkgate_evals.metrics import SHARES, interval_of
from thinkgate_evals.policy import (
    Contamination,
    DuplicateRate,
    ErrorRate,
    Floor,
    FormatRate,
    NonInferiority,
    Policy,
    Rule,
    Superiority,
    TruncationRate,
)
from thinkgate_evals.records import Record
from thinkgate_evals.second_grader import Grader, grader_name, under_second
from thinkgate_evals.stats import (
    Interval,
    holm_levels,
    paired_p_value,
    problems_for_difference,
    problems_for_share,
)
from thinkgate_evals.suites import LoadedSuite
from thinkgate_evals.voting import duplicate_rate
from thinkgate_evals.wording import estimate_text

__all__ = ["Evidence", "decide", "seen_problems"]

PASS, FAIL, INCONCLUSIVE = GateVerdict.PASS, GateVerdict.FAIL, GateVerdict.INCONCLUSIVE
Comparative = Superiority | NonInferiority
ABOUT_ACCURACY = ("floor", "superiority", "non_inferiority")
ROUNDING = 1e-9
UNKNOWN = "unknown"
"""Fingerprint of records that do not say how they were drawn."""

LACKING = {
    "format_rate": "the records have no 'status'",
    "truncation_rate": "the records have no 'status'",
}
"""Why a share is not known though samples were graded: records from elsewhere may lack it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was measured about one model, by the suite names of the policy."""

    digest: str
    """Of the model's files; of the records where nothing but those is known."""

    suites: Mapping[str, LoadedSuite]
    """Without those whose records come from elsewhere."""

    records: Mapping[str, Sequence[Record]]
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Of the suites that are not loaded, where the records say."""

    seen_prompts: frozenset[str] | None = None
    """Keys of the prompts it was trained on; None when that was not recorded."""

    def under_second(self, grader: Grader) -> "Evidence":
        """The same answers as the second grader sees them."""
        records = {suite: under_second(found, grader) for suite, found in self.records.items()}
        return replace(self, records=records)

    def fingerprint(self, suite: str) -> str | None:
        """What the results depend on beside the model; None where that is not known."""
        loaded = self.suites.get(suite)
        return loaded.fingerprint if loaded else self.fingerprints.get(suite)


def decide(policy: Policy, candidate: Evidence, incumbent: Evidence | None) -> Decision:
    """Apply every rule. ConfigError when the two sides did not answer the same suites."""
    if incumbent is None and policy.compares():
        raise ConfigError(
            f"policy '{policy.name}' compares with an incumbent; name one with --against, for "
            "example the checkpoint it was trained from"
        )
    if incumbent is not None:
        _same_suites(policy, candidate, incumbent)
    rules = policy.all_rules()
    results = _Judge(policy, candidate, incumbent).judge(rules)
    if (grader := policy.second_grader) is not None:
        others = incumbent.under_second(grader) if incumbent else None
        again = _Judge(policy, candidate.under_second(grader), others).judge(rules)
        pairs = zip(results, again, strict=True)
        results = [_under_both(ours, theirs, grader_name(grader)) for ours, theirs in pairs]
    fingerprints = {s: candidate.fingerprint(s) or UNKNOWN for s in policy.suites()}
    evidence = [candidate.digest, policy.digest(), fingerprints, [r.model_dump() for r in results]]
    return Decision(
        id=hashlib.sha256(json.dumps(evidence, sort_keys=True).encode()).hexdigest()[:12],
        verdict=_overall(results),
        policy=policy.name,
        policy_sha256=policy.digest(),
        candidate=candidate.digest,
        incumbent=incumbent.digest if incumbent else None,
        suites=fingerprints,
        rules=tuple(results),
        created=now(),
    )


def _same_suites(policy: Policy, candidate: Evidence, incumbent: Evidence) -> None:
    for suite in policy.suites():
        ours, theirs = candidate.fingerprint(suite), incumbent.fingerprint(suite)
        if None not in (ours, theirs) and ours != theirs:
            raise ConfigError(
                f"suite '{suite}' of candidate and incumbent differ (fingerprints "
                f"{str(ours)[:12]} and {str(theirs)[:12]}); measure both again"
            )


def _under_both(ours: RuleResult, theirs: RuleResult, grader: str) -> RuleResult:
    """A rule about accuracy that passes passes under both graders; others have one verdict."""
    if ours.rule not in ABOUT_ACCURACY:
        return ours
    says = f"{grader} says {theirs.verdict.upper()}, {estimate_text(theirs)}"
    holds = ours.verdict is not PASS or theirs.verdict is PASS
    why = f"{ours.why}; {says}" if holds else f"{says}: {theirs.why}"
    return ours.model_copy(update={"verdict": ours.verdict if holds else INCONCLUSIVE, "why": why})


def _overall(results: Sequence[RuleResult]) -> GateVerdict:
    verdicts = {result.verdict for result in results}
    return FAIL if FAIL in verdicts else INCONCLUSIVE if INCONCLUSIVE in verdicts else PASS


class _Judge:
    """Applies rules to one pair of evidence."""

    def __init__(self, policy: Policy, candidate: Evidence, incumbent: Evidence | None) -> None:
        self._confidence = 1 - policy.alpha
        self._candidate = candidate
        self._incumbent = incumbent
        compared = {rule.suite for rule in policy.rules if isinstance(rule, Comparative)}
        self._pairs = {suite: self._compare(suite) for suite in compared}
        self._levels = self._holm(policy)

    def judge(self, rules: Sequence[Rule]) -> list[RuleResult]:
        """What all rules say."""
        return self.distrust([self.apply(rule) for rule in rules])

    def apply(self, rule: Rule) -> RuleResult:
        """What one rule says."""
        match rule:
            case Floor():
                return self._at_least(rule, "accuracy", rule.at_least)
            case FormatRate():
                return self._at_least(rule, "format_rate", rule.at_least)
            case TruncationRate():
                return self._at_most(rule, "truncation_rate", rule.at_most)
            case Superiority() | NonInferiority():
                return self._comparative(rule)
            case ErrorRate():
                return self._errors(rule)
            case DuplicateRate():
                return self._duplicates(rule)
            case Contamination():
                return self._contamination(rule)

    def distrust(self, results: Sequence[RuleResult]) -> list[RuleResult]:
        """Where too many measurements failed, what was sampled on that suite decides nothing."""
        unsound = {r.suite for r in results if r.rule == "error_rate" and r.verdict is not PASS}
        why = "too many measurements on this suite failed to say"
        return [
            result.model_copy(update={"verdict": INCONCLUSIVE, "why": why})
            if result.suite in unsound and result.rule not in ("error_rate", "contamination")
            else result
            for result in results
        ]

    def _at_least(self, rule: Rule, metric: str, bound: float) -> RuleResult:
        interval = self._share(rule.suite, metric)
        if interval is None:
            return _result(rule, metric, None, bound, INCONCLUSIVE, self._lacks(rule, metric))
        if interval.low >= bound:
            why = f"{interval.low:.1%} or more, {self._confidence:.0%} confident"
            return _result(rule, metric, interval, bound, PASS, why)
        if interval.high < bound:
            why = f"at most {interval.high:.1%}; {bound:.1%} is required"
            return _result(rule, metric, interval, bound, FAIL, why)
        return self._open(rule, metric, interval, bound)

    def _at_most(self, rule: Rule, metric: str, bound: float) -> RuleResult:
        interval = self._share(rule.suite, metric)
        if interval is None:
            return _result(rule, metric, None, bound, INCONCLUSIVE, self._lacks(rule, metric))
        if interval.high <= bound:
            why = f"{interval.high:.1%} or less, {self._confidence:.0%} confident"
            return _result(rule, metric, interval, bound, PASS, why)
        if interval.low > bound:
            why = f"at least {interval.low:.1%}; {bound:.1%} is allowed"
            return _result(rule, metric, interval, bound, FAIL, why)
        return self._open(rule, metric, interval, bound)

    def _lacks(self, rule: Rule, metric: str) -> str:
        graded = any(record.graded for record in self._candidate.records[rule.suite])
        return LACKING[metric] if graded and metric in LACKING else "no sample could be measured"

    def _open(self, rule: Rule, metric: str, interval: Interval, bound: float) -> RuleResult:
        needed = problems_for_share(interval, bound, self._confidence)
        why = f"the interval contains {bound:.1%}; {_more(interval.n, needed)}"
        return _result(rule, metric, interval, bound, INCONCLUSIVE, why)

    def _comparative(self, rule: Comparative) -> RuleResult:
        pair, level = self._pairs[rule.suite], self._levels[rule]
        bound = rule.min_gain if isinstance(rule, Superiority) else -rule.margin
        interval = pair.interval(1 - level)
        if interval is None:
            why = "no problem was measured on both sides"
            return _result(rule, "accuracy_gain", None, bound, INCONCLUSIVE, why)
        line = 0.0 if isinstance(rule, Superiority) else bound
        enough = not isinstance(rule, Superiority) or interval.estimate >= bound - ROUNDING
        if interval.low > line and enough:
            verdict, why = PASS, f"above {_points(line)}, {1 - level:.1%} confident"
        elif interval.high < bound:
            verdict = FAIL
            why = f"at most {_points(interval.high)}; {_points(bound)} is required"
        else:
            aim = line if enough else bound
            needed = problems_for_difference(pair.differences, aim, 1 - level)
            verdict = INCONCLUSIVE
            why = f"cannot be told from {_points(aim)}; {_more(interval.n, needed)}"
        return _result(rule, "accuracy_gain", interval, bound, verdict, f"{why}; {_score(pair)}")

    def _sides(self, rule: Rule) -> dict[str, Evidence]:
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
        problems = {record.problem_id for records in sides.values() for record in records}
        absent = {
            name: len(problems - {record.problem_id for record in records})
            for name, records in sides.items()
        }
        # A problem only the other side answered was not measured: its difference is not known.
        rates = {
            name: interval_of(records, SHARES["error_rate"], self._confidence, absent[name])
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
            reason = f"{absent[worst]:,} problems are only on the other side"
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

    def _share(self, suite: str, metric: str) -> Interval | None:
        return interval_of(self._candidate.records[suite], SHARES[metric], self._confidence)

    def _compare(self, suite: str) -> Comparison:
        assert self._incumbent is not None
        return compare(self._candidate.records[suite], self._incumbent.records[suite])

    def _holm(self, policy: Policy) -> dict[Rule, float]:
        """The alpha of each comparative rule; one rule alone gets all of it."""
        rules = [rule for rule in policy.rules if isinstance(rule, Comparative)]
        p_values = [
            2 * paired_p_value(pair.differences, -getattr(rule, "margin", 0.0))
            if (pair := self._pairs[rule.suite]).differences
            else 1.0
            for rule in rules
        ]
        return dict(zip(rules, holm_levels(p_values, policy.alpha), strict=True))


def _result(
    rule: Rule,
    metric: str,
    interval: Interval | None,
    threshold: float,
    verdict: GateVerdict,
    why: str,
) -> RuleResult:
    return RuleResult(
        rule=rule.rule,
        suite=rule.suite,
        metric=metric,
        estimate=interval.estimate if interval else None,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        n=interval.n if interval else 0,
        threshold=threshold,
        verdict=verdict,
        why=why,
    )


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f} points" if difference else "0"


def _more(n: int, needed: int | None) -> str:
    if needed is None:
        return f"no reasonable number of problems would settle it (these are {n})"
    return f"about {needed:,} problems would settle it (these are {n:,})"


def _score(pair: Comparison) -> str:
    score = f"{pair.wins} won, {pair.losses} lost"
    if pair.p_value is None:
        return score
    return f"{score}, {pair.test} p = {pair.p_value:.2g}"


def seen_problems(loaded: LoadedSuite, seen: frozenset[str]) -> list[Problem]:
    """The problems of a suite that are among the prompts a model was trained on, by their keys."""
    return [problem for problem in loaded.problems if seen & _keys(loaded, problem.prompt)]


def _keys(loaded: LoadedSuite, prompt: str) -> set[str]:
    """Keys under which training may have recorded this problem: as it is, or as it is asked."""
    return {prompt_key(prompt), prompt_key(loaded.suite.prompt.messages(prompt)[-1]["content"])}
