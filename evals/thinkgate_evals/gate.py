"""The gate: a policy, evidence about a candidate and its incumbent, and one of three verdicts.

Owns the decision and nothing else: it draws no sample and writes no file. Whatever could not be
measured keeps a candidate out; it never lets one in.

PASS when the data show what a rule asks, FAIL when they show the opposite, INCONCLUSIVE when they
show neither: then it says how many problems would.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

from thinkgate.checkpoint import Decision, GateVerdict, RuleResult, SequentialRun, now
from thinkgate.errors import ConfigError
from thinkgate_evals.evidence import Evidence
from thinkgate_evals.inference import Inference
from thinkgate_evals.judge import Judge
from thinkgate_evals.policy import Policy
from thinkgate_evals.second_grader import grader_name
from thinkgate_evals.wording import estimate_text

__all__ = ["decide", "judge"]

PASS, FAIL, INCONCLUSIVE = GateVerdict.PASS, GateVerdict.FAIL, GateVerdict.INCONCLUSIVE
ABOUT_ACCURACY = ("floor", "superiority", "non_inferiority")
UNKNOWN = "unknown"
"""Fingerprint of records that do not say how they were drawn."""


def decide(
    policy: Policy,
    candidate: Evidence,
    incumbent: Evidence | None,
    inferences: Mapping[str, Inference] | None = None,
    sequential: SequentialRun | None = None,
) -> Decision:
    """Apply every rule. `inferences` and `sequential` belong to samples looked at while drawn."""
    results = judge(policy, candidate, incumbent, inferences)
    fingerprints = {s: candidate.fingerprint(s) or UNKNOWN for s in policy.suites()}
    evidence = [candidate.digest, policy.digest(), fingerprints, [r.model_dump() for r in results]]
    return Decision(
        id=hashlib.sha256(json.dumps(evidence, sort_keys=True).encode()).hexdigest()[:12],
        verdict=_overall(results),
        policy=policy.name,
        policy_sha256=policy.digest(),
        candidate=candidate.digest,
        template=candidate.template,
        incumbent=incumbent.digest if incumbent else None,
        suites=fingerprints,
        rules=tuple(results),
        sequential=sequential,
        created=now(),
    )


def judge(
    policy: Policy,
    candidate: Evidence,
    incumbent: Evidence | None,
    inferences: Mapping[str, Inference] | None = None,
) -> list[RuleResult]:
    """What each rule says, under both graders where the policy names a second one."""
    if incumbent is None and policy.comparative():
        raise ConfigError(
            f"policy '{policy.name}' compares with an incumbent; name one with --against, for "
            "example the checkpoint it was trained from"
        )
    rules = policy.all_rules()
    results = Judge(policy, candidate, incumbent, inferences).judge(rules)
    grader = policy.second_grader
    if grader is None:
        return results
    others = incumbent.under_second(grader) if incumbent else None
    again = Judge(policy, candidate.under_second(grader), others, inferences).judge(rules)
    pairs = zip(results, again, strict=True)
    return [_under_both(ours, theirs, grader_name(grader)) for ours, theirs in pairs]


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
