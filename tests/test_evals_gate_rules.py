"""Rules on cost, length and training, unsound evidence, and policies as editors see them."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from gate_evidence import SUITE, first, gate, records

from thinkgate.answers import Verdict
from thinkgate.checkpoint import GateVerdict, HealthFinding, HealthRecord, HealthVerdict
from thinkgate.config import parse
from thinkgate.errors import ConfigError, DataError
from thinkgate_evals.evidence import Evidence
from thinkgate_evals.gate import decide
from thinkgate_evals.policy import SCHEMA_FILE, Policy, load_policy, policy_schema
from thinkgate_evals.record_sets import find_record_sets
from thinkgate_evals.records import Record
from thinkgate_evals.stats import quantile, ratio, share

PASS, FAIL, INCONCLUSIVE = GateVerdict.PASS, GateVerdict.FAIL, GateVerdict.INCONCLUSIVE
SHIPPED = Path(__file__).parent.parent / "evals" / "gates"
FLOOR: dict[str, Any] = {"rule": "floor", "at_least": 0.5}
NOT_WORSE: dict[str, Any] = {"rule": "non_inferiority", "margin": 0.1}


def counted(made: list[Record], *, long: int = 0) -> list[Record]:
    """The same with token counts; of every 100, `long` thoughts have 90 tokens, the others 20."""
    return [
        r.model_copy(update={"reasoning_tokens": 90 if n % 100 < long else 20, "answer_tokens": 2})
        for n, r in enumerate(made)
    ]


@pytest.mark.parametrize(
    ("n", "long", "verdict"),
    [(1000, 1, PASS), (1000, 10, FAIL), (1000, 5, INCONCLUSIVE), (50, 0, INCONCLUSIVE)],
)
def test_the_longest_thoughts(n: int, long: int, verdict: GateVerdict) -> None:
    rules = [{"rule": "p95_thinking_tokens", "at_most": 50}]
    result = first(gate(rules, counted(records(n // 2, n), long=long)))
    assert result.verdict is verdict and result.estimate == (90 if long > 5 else 20)
    # Fifty problems say nothing about one in twenty: there is no upper end.
    assert (result.high is None) == (n == 50)


@pytest.mark.parametrize(
    ("correct", "at_most", "verdict"), [(900, 30, PASS), (500, 30, FAIL), (740, 30, INCONCLUSIVE)]
)
def test_what_a_right_answer_costs(correct: int, at_most: int, verdict: GateVerdict) -> None:
    rules = [{"rule": "tokens_per_correct", "at_most": at_most}]
    result = first(gate(rules, counted(records(correct, 1000))))
    assert result.verdict is verdict
    assert result.estimate == pytest.approx(22 * 1000 / correct)
    assert (result.more_samples is not None) == (verdict is INCONCLUSIVE)


def test_nothing_right_has_no_cost_and_uncounted_tokens_no_length() -> None:
    cost = [{"rule": "tokens_per_correct", "at_most": 1e6}]
    assert first(gate(cost, counted(records(0, 100)))).verdict is INCONCLUSIVE
    for rule in (cost, [{"rule": "p95_thinking_tokens", "at_most": 1e6}]):
        result = first(gate(rule, records(50, 100)))
        assert result.verdict is INCONCLUSIVE and result.estimate is None


def test_intervals_of_a_quantile_and_a_ratio_cover_the_truth() -> None:
    draw, covered = np.random.default_rng(0), {"quantile": 0, "ratio": 0}
    for _ in range(400):
        tokens = draw.geometric(0.01, 300)
        q = quantile([[int(t)] for t in tokens], 0.95, share)
        assert q is not None
        covered["quantile"] += q.low <= 298 <= q.high  # P(tokens > 298) is 5 %
        right = draw.binomial(1, 0.5, 300)
        r = ratio(list(zip(tokens.tolist(), right.tolist(), strict=True)))
        assert r is not None
        covered["ratio"] += r.low <= 200 <= r.high
    assert all(0.93 <= times / 400 <= 0.99 for times in covered.values()), covered


def health(verdict: HealthVerdict, *symptoms: str) -> HealthRecord:
    findings = (HealthFinding(symptom=s, step=7, stop=True, why=f"saw {s}") for s in symptoms)
    return HealthRecord(verdict=verdict, findings=tuple(findings))


@pytest.mark.parametrize(
    ("at_worst", "found", "verdict"),
    [
        ("healthy", HealthVerdict.HEALTHY, PASS),
        ("healthy", HealthVerdict.WARNED, FAIL),
        ("warned", HealthVerdict.WARNED, PASS),
        ("warned", HealthVerdict.STOPPED, FAIL),
        ("warned", None, INCONCLUSIVE),
    ],
)
def test_how_training_went(
    at_worst: str, found: HealthVerdict | None, verdict: GateVerdict
) -> None:
    rules = [FLOOR, {"rule": "training_health", "at_worst": at_worst}]
    seen = (
        health(found, *([] if found is HealthVerdict.HEALTHY else ["loss_jump"])) if found else None
    )
    result = gate(rules, records(900, 1000), health=seen).rules[1]
    assert (result.verdict, result.suite) == (verdict, "training")
    assert found in (None, HealthVerdict.HEALTHY) or "loss_jump at step 7" in result.why


@pytest.mark.parametrize(
    ("symptom", "rewarded", "held_out", "verdict"),
    [
        ("held_out_divergence", True, True, FAIL),
        ("reward_hacking", True, False, INCONCLUSIVE),  # and the health rule has it
        ("loss_jump", True, True, PASS),
        ("loss_jump", False, False, PASS),  # no reward, nothing to diverge from
    ],
)
def test_a_reward_that_rises_alone(
    symptom: str, rewarded: bool, held_out: bool, verdict: GateVerdict
) -> None:
    rules = [FLOOR, {"rule": "reward_divergence"}]
    seen = health(HealthVerdict.WARNED, symptom)
    made = records(900, 1000)
    decision = gate(rules, made, health=seen, rewarded=rewarded, held_out=held_out)
    assert decision.rules[1].verdict is decision.verdict is verdict
    assert gate(rules, made).verdict is INCONCLUSIVE, "without a manifest nothing is known"


def test_a_policy_that_measures_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="names a suite"):
        parse(Policy, {"name": "p", "rules": [{"rule": "training_health"}]}, "p")


def test_without_correction_each_comparison_has_all_of_alpha() -> None:
    rules = [{"rule": "superiority", "suite": suite} for suite in ("a", "b")]
    sides = [
        Evidence(digest="d", suites={}, records={"a": side, "b": records(50, 100)})
        for side in (records(56, 100), records(50, 100))
    ]
    verdicts = {
        correction: first(
            decide(
                parse(Policy, {"name": "t", "correction": correction, "rules": rules}, "t"), *sides
            )
        ).verdict
        for correction in ("holm", "none")
    }
    assert verdicts == {"holm": INCONCLUSIVE, "none": PASS}


# What is not sound decides nothing: the best results do not pass.

GOOD = records(1000, 1000)
EMPTY_GOLD = [GOOD[0].model_copy(update={"gold": " "}), *GOOD[1:]]
TWICE = [*GOOD, GOOD[0]]
FAILED = records(1000, 1000, errors=20)
ONLY_HALF = GOOD[:500]


@pytest.mark.parametrize(
    ("candidate", "incumbent", "why"),
    [
        (FAILED, GOOD, "server failed (500)"),
        (GOOD, FAILED, "incumbent's samples failed"),
        (EMPTY_GOLD, GOOD, "empty gold"),
        (GOOD, EMPTY_GOLD, "incumbent's records: 1 problems have an empty gold"),
        (TWICE, GOOD, "is there 2 times"),
        (GOOD, TWICE, "is there 2 times"),
        (ONLY_HALF, GOOD, "only on the other side"),
        ([], GOOD, "only on the other side"),
    ],
)
def test_unsound_evidence_decides_nothing(
    candidate: list[Record], incumbent: list[Record], why: str
) -> None:
    assert gate([FLOOR, NOT_WORSE], GOOD, GOOD).verdict is PASS
    decision = gate([FLOOR, NOT_WORSE], candidate, incumbent)
    assert {rule.verdict for rule in decision.rules} == {INCONCLUSIVE}
    assert all(why in rule.why for rule in decision.rules)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("version", {"version": 2}),
        ("sampling.temperature", {"sampling": {"temperature": 0.5}}),
        ("samples", {"samples": 4}),
    ],
)
def test_records_of_another_suite_version_or_sampling_are_not_compared(
    key: str, change: dict[str, Any]
) -> None:
    def side(identity: dict[str, Any]) -> Evidence:
        return Evidence(
            digest="d",
            suites={},
            records={"arithmetic": GOOD},
            fingerprints={"arithmetic": json.dumps(identity)},
            identities={"arithmetic": identity},
        )

    policy = parse(Policy, {"name": "t", "rules": [{"suite": "arithmetic", **NOT_WORSE}]}, "t")
    same = SUITE.identity()
    other = same | {k: same[k] | v if isinstance(v, dict) else v for k, v in change.items()}
    assert decide(policy, side(same), side(dict(same))).verdict is PASS
    decision = decide(policy, side(other), side(same))
    assert {rule.verdict for rule in decision.rules} == {INCONCLUSIVE}
    assert f"({key})" in first(decision).why


def test_a_sample_that_is_recorded_twice_is_refused(tmp_path: Path) -> None:
    line = json.dumps({"problem_id": "1", "correct": True}) + "\n"
    (tmp_path / "x.jsonl").write_text(line * 2)
    with pytest.raises(DataError, match="occurs twice"):
        find_record_sets(tmp_path / "x.jsonl")


# How many more samples would settle it.


@pytest.mark.parametrize("repeats", [1, 4])
@pytest.mark.parametrize("comparative", [False, True])
def test_the_samples_asked_for_settle_it_four_times_in_five(
    comparative: bool, repeats: int
) -> None:
    """Draw the same world again with as many samples as the gate asked for."""
    draw = np.random.default_rng(3)
    rule: dict[str, Any] = {"rule": "floor", "at_least": 0.6}
    if comparative:
        rule = {"rule": "superiority"}
    skills = (0.65, 0.6) if comparative else (0.65,)

    def world(n: int) -> list[list[Record]]:
        """Problems of differing difficulty, the same ones for all sides."""
        ease = 0.6 * draw.beta(3, 3, n) - 0.3
        return [
            [
                Record(
                    problem_id=str(i),
                    repeat=k,
                    verdict=Verdict.CORRECT if hit else Verdict.WRONG,
                )
                for i, row in enumerate(draw.random((n, repeats)) < (ease + skill)[:, None])
                for k, hit in enumerate(row)
            ]
            for skill in skills
        ]

    # The estimate is taken for the truth, so ask samples whose estimates are near it.
    settled = pilots = 0
    while pilots < 10:
        result = first(gate([rule], *world(60)))
        assert result.estimate is not None
        if abs(result.estimate - (0.05 if comparative else 0.65)) < 0.005:
            asked = result.more_samples
            assert result.verdict is INCONCLUSIVE and asked and f"{asked:,}" in result.why
            problems, pilots = 60 + asked // repeats, pilots + 1
            settled += sum(first(gate([rule], *world(problems))).verdict is PASS for _ in range(6))
    assert 0.7 <= settled / 60 <= 0.9


# Policies as editors see them.


def test_the_schema_is_of_this_version() -> None:
    assert (SHIPPED / SCHEMA_FILE).read_text() == policy_schema(), (
        "write it again: python -c 'from thinkgate_evals.policy import policy_schema; "
        f'print(policy_schema(), end="")\' > evals/gates/{SCHEMA_FILE}'
    )


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_policies_name_the_schema_and_fit_it(file: Path) -> None:
    text = file.read_text()
    assert text.startswith(f"# yaml-language-server: $schema={SCHEMA_FILE}\n")
    jsonschema.validate(yaml.safe_load(text), json.loads(policy_schema()))
    assert load_policy(file.stem).name == file.stem


@pytest.mark.parametrize(
    "rule",
    [
        {"rule": "floor", "suite": "s", "at_leest": 0.5},
        {"rule": "flor", "suite": "s", "at_least": 0.5},
        {"rule": "floor", "suite": "s", "at_least": 95},
        {"rule": "training_health", "at_worst": "stopped"},
    ],
)
def test_what_the_parser_refuses_the_schema_refuses(rule: dict[str, Any]) -> None:
    policy = {"name": "p", "rules": [FLOOR | {"suite": "s"}, rule]}
    with pytest.raises(ConfigError):
        parse(Policy, policy, "p")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(policy, json.loads(policy_schema()))
