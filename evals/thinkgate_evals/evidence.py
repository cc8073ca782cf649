"""Evidence: what was measured about one model, and why it may be worth nothing.

Owns what makes measurements unsound before any rule looks at them: it fails closed. It draws no
sample and knows no rule.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from thinkgate.checkpoint import SEEN, Checkpoint, HealthRecord
from thinkgate.problems import Problem, prompt_key
from thinkgate_evals.measure import Measurement
from thinkgate_evals.record_sets import RecordSet
from thinkgate_evals.records import Record
from thinkgate_evals.second_grader import Grader, under_second
from thinkgate_evals.suites import LoadedSuite, changed_keys

__all__ = [
    "Evidence",
    "evidence_of",
    "evidence_of_records",
    "incomparable",
    "seen_problems",
    "unsound",
]

REWARD, HELD_OUT = "reward", ("rewards/second_opinion/", "eval_rewards/")
"""Metrics of a training run: what it maximised, and how checks begin that it did not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was measured about one model, by the suite names of the policy."""

    digest: str
    """Of the model's files; of the records where nothing but those is known."""

    suites: Mapping[str, LoadedSuite]
    """Without those whose records come from elsewhere."""

    records: Mapping[str, Sequence[Record]]
    """In the order in which the problems were drawn."""

    fingerprints: Mapping[str, str] = field(default_factory=dict)
    """Of the suites that are not loaded, where the records say."""

    identities: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What those fingerprints are made of."""

    template: str | None = None
    """Digest of chat template, tags and sampling defaults; None where that is not known."""

    seen_prompts: frozenset[str] | None = None
    """Keys of the prompts it was trained on; None when that was not recorded."""

    health: HealthRecord | None = None
    """What the health watch saw of its training; None where nothing watched, or nothing says."""

    rewarded: bool = False
    """Whether its last training maximised a reward."""

    held_out: bool = False
    """Whether something it did not maximise was measured meanwhile."""

    def under_second(self, grader: Grader) -> "Evidence":
        """The same answers as the second grader sees them."""
        records = {suite: under_second(found, grader) for suite, found in self.records.items()}
        return replace(self, records=records)

    def fingerprint(self, suite: str) -> str | None:
        """What the results depend on beside the model; None where that is not known."""
        loaded = self.suites.get(suite)
        return loaded.fingerprint if loaded else self.fingerprints.get(suite)

    def identity(self, suite: str) -> Mapping[str, Any]:
        """What the fingerprint is made of; empty where that is not known."""
        loaded = self.suites.get(suite)
        return loaded.identity() if loaded else self.identities.get(suite, {})


def evidence_of(
    checkpoint: Checkpoint, suites: Mapping[str, LoadedSuite], measured: Sequence[Measurement]
) -> Evidence:
    """What was measured of a checkpoint, suite by suite, and what its manifest says."""
    manifest = checkpoint.manifest
    seen = checkpoint.seen_prompts()
    # An empty list is what a deleted or emptied file leaves, not what training leaves.
    recorded = bool(seen) or (not manifest.data and checkpoint.meta(SEEN).is_file())
    return Evidence(
        digest=checkpoint.digest,
        suites=suites,
        records={name: m.records for name, m in zip(suites, measured, strict=True)},
        template=manifest.template.digest,
        seen_prompts=seen if recorded else None,
        health=manifest.health,
        rewarded=REWARD in manifest.metrics,
        held_out=any(name.startswith(HELD_OUT) for name in manifest.metrics),
    )


def evidence_of_records(sets: Mapping[str, RecordSet]) -> Evidence:
    """Records alone, by suite; what only a manifest tells is not known."""
    digests = sorted({found.digest for found in sets.values()})
    joined = hashlib.sha256(" ".join(digests).encode()).hexdigest()
    headers = {suite: found.header for suite, found in sets.items() if found.header is not None}
    return Evidence(
        digest=digests[0] if len(digests) == 1 else f"records:{joined}",
        suites={},
        records={suite: found.records for suite, found in sets.items()},
        fingerprints={suite: header.fingerprint for suite, header in headers.items()},
        identities={suite: header.identity for suite, header in headers.items()},
    )


def unsound(records: Sequence[Record]) -> str | None:
    """Why nothing may be concluded from these records, or None."""
    [(key, times)] = Counter(record.key for record in records).most_common(1) or [(None, 0)]
    if times > 1 and key is not None:
        return f"problem {key[0]}, sample {key[1]} is there {times} times: intervals too narrow"
    blank = [r.problem_id for r in records if r.gold is not None and not r.gold.strip()]
    if blank:
        return f"{len(set(blank)):,} problems have an empty gold answer, such as {blank[0]}"
    return None


def incomparable(suite: str, ours: Evidence, theirs: Evidence) -> str | None:
    """Why the two models' results on `suite` cannot be compared, or None."""
    first, second = ours.fingerprint(suite), theirs.fingerprint(suite)
    if None in (first, second) or first == second:
        return None
    before, after = theirs.identity(suite), ours.identity(suite)
    changed = changed_keys(before, after) if before and after else []
    what = ", ".join(changed) or f"fingerprints {str(second)[:12]} and {str(first)[:12]}"
    return f"the incumbent was measured otherwise ({what}); measure both again"


def seen_problems(loaded: LoadedSuite, seen: frozenset[str]) -> list[Problem]:
    """The problems of a suite that are among the prompts a model was trained on, by their keys."""
    return [problem for problem in loaded.problems if seen & _keys(loaded, problem.prompt)]


def _keys(loaded: LoadedSuite, prompt: str) -> set[str]:
    """Keys under which training may have recorded this problem: as it is, or as it is asked."""
    return {prompt_key(prompt), prompt_key(loaded.suite.prompt.messages(prompt)[-1]["content"])}
