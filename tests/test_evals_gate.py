"""The gate on evidence made up here: what passes, what fails, and what cannot be told."""

from pathlib import Path
from typing import Any

import pytest
from gate_evidence import SUITE, evidence, first, gate, records

from thinkgate.checkpoint import GateVerdict
from thinkgate.config import parse
from thinkgate.errors import ConfigError
from thinkgate.problems import prompt_key
from thinkgate_evals.evidence import Evidence
from thinkgate_evals.gate import decide
from thinkgate_evals.policy import ErrorRate, Policy, load_policy
from thinkgate_evals.suites import LoadedSuite, load_suite

PASS, FAIL, INCONCLUSIVE = GateVerdict.PASS, GateVerdict.FAIL, GateVerdict.INCONCLUSIVE
SHIPPED = Path(__file__).parent.parent / "evals" / "gates"

SUPERIOR = [{"rule": "superiority"}]
GAIN = [{"rule": "superiority", "min_gain": 0.08}]
NOT_WORSE = [{"rule": "non_inferiority", "margin": 0.03}]


@pytest.mark.parametrize(
    ("rules", "better_by", "n", "verdict"),
    [
        (SUPERIOR, 0.10, 1000, PASS),
        (SUPERIOR, 0.0, 1000, INCONCLUSIVE),  # equal is not superior
        (SUPERIOR, -0.10, 1000, FAIL),
        (SUPERIOR, 0.10, 20, INCONCLUSIVE),  # a tiny sample shows nothing
        (GAIN, 0.10, 1000, PASS),
        (GAIN, 0.08, 1000, PASS),
        (GAIN, 0.07, 1000, INCONCLUSIVE),  # surely better, perhaps by less than asked
        (GAIN, 0.02, 1000, FAIL),  # surely better, surely by less than asked
        (GAIN, 0.0, 1000, FAIL),
        (GAIN, 0.10, 20, INCONCLUSIVE),
        (NOT_WORSE, 0.0, 1000, PASS),  # equal is not inferior
        (NOT_WORSE, -0.01, 1000, PASS),
        (NOT_WORSE, -0.10, 1000, FAIL),
        (NOT_WORSE, 0.0, 20, INCONCLUSIVE),
    ],
)
def test_comparisons(rules: list[Any], better_by: float, n: int, verdict: GateVerdict) -> None:
    base = n * 7 // 10
    decision = gate(rules, records(base + round(better_by * n), n), records(base, n))
    result = first(decision)
    assert (result.verdict, decision.verdict) == (verdict, verdict)
    assert result.estimate == pytest.approx(better_by) and result.n == n
    assert result.low is not None and result.high is not None
    assert result.low < better_by < result.high


def test_what_is_gained_here_and_lost_there_is_weighed_pair_by_pair() -> None:
    """The same accuracies: with every problem changing hands, 8 points of gain show nothing."""
    same_problems = gate(SUPERIOR, records(58, 100), records(50, 100))
    other_problems = gate(SUPERIOR, records(58, 100, offset=45), records(50, 100))
    assert same_problems.verdict is PASS and "8 won, 0 lost" in first(same_problems).why
    assert other_problems.verdict is INCONCLUSIVE and "42 lost" in first(other_problems).why


def test_an_inconclusive_comparison_says_how_many_problems_would_settle_it() -> None:
    result = first(gate(SUPERIOR, records(15, 20), records(14, 20)))
    assert result.verdict is INCONCLUSIVE
    asked = int(result.why.partition("about ")[2].partition(" ")[0].replace(",", ""))
    assert asked > 20
    settled = gate(SUPERIOR, records(asked * 3 // 4, asked), records(asked * 7 // 10, asked))
    assert settled.verdict is PASS
    equal = first(gate(SUPERIOR, records(14, 20), records(14, 20)))
    assert "no reasonable number of problems" in equal.why


def test_several_comparisons_share_alpha() -> None:
    """A gain that is significant alone is not when it is one of two, and the other is nothing."""
    made, base = records(56, 100), records(50, 100)
    alone = first(gate(SUPERIOR, made, base))
    rules = [{"rule": "superiority", "suite": suite} for suite in ("a", "b")]
    policy = parse(Policy, {"name": "test", "rules": rules}, "test")
    sides = [
        Evidence(digest="d", suites={"a": SUITE, "b": SUITE}, records={"a": side, "b": base})
        for side in (made, base)
    ]
    together = first(decide(policy, *sides))
    assert (alone.verdict, together.verdict) == (PASS, INCONCLUSIVE)
    assert alone.estimate == together.estimate
    assert alone.low is not None and together.low is not None
    assert together.low < 0 < alone.low


@pytest.mark.parametrize(
    ("correct", "n", "verdict"),
    [(950, 1000, PASS), (850, 1000, FAIL), (905, 1000, INCONCLUSIVE), (19, 20, INCONCLUSIVE)],
)
def test_floor_is_cleared_by_the_interval(correct: int, n: int, verdict: GateVerdict) -> None:
    decision = gate([{"rule": "floor", "at_least": 0.9}], records(correct, n))
    assert decision.verdict is verdict
    assert ("problems would settle it" in first(decision).why) == (verdict is INCONCLUSIVE)


@pytest.mark.parametrize(
    ("cut", "verdict"), [(0, PASS), (30, PASS), (45, INCONCLUSIVE), (100, FAIL)]
)
def test_format_and_truncation(cut: int, verdict: GateVerdict) -> None:
    rules = [
        {"rule": "format_rate", "at_least": 0.95},
        {"rule": "truncation_rate", "at_most": 0.05},
    ]
    decision = gate(rules, records(900, 1000, cut=cut))
    assert [r.verdict for r in decision.rules[:2]] == [verdict, verdict]


def test_failed_measurements_never_pass_and_never_fail_a_candidate() -> None:
    rules = [{"rule": "floor", "at_least": 0.5}, {"rule": "error_rate", "at_most": 0.01}]
    for correct in (1000, 0):
        decision = gate(rules, records(correct, 1000, errors=20))
        assert decision.verdict is INCONCLUSIVE
        assert {r.verdict for r in decision.rules} == {INCONCLUSIVE}
        assert "server failed (500)" in decision.rules[1].why
    assert gate(rules, records(1000, 1000, errors=10)).verdict is PASS


def test_a_policy_silent_about_errors_is_held_to_one_percent() -> None:
    decision = gate([{"rule": "floor", "at_least": 0.5}], records(1000, 1000, errors=20))
    assert decision.verdict is INCONCLUSIVE
    assert [r.rule for r in decision.rules] == ["floor", "error_rate"]


def test_the_incumbents_errors_count_too() -> None:
    decision = gate(SUPERIOR, records(900, 1000), records(500, 1000, errors=200))
    assert decision.verdict is INCONCLUSIVE
    assert "incumbent" in decision.rules[1].why


def test_nothing_measured_is_inconclusive() -> None:
    everything = [
        *SUPERIOR,
        {"rule": "floor", "at_least": 0.0},
        {"rule": "truncation_rate", "at_most": 1.0},
    ]
    decision = gate(everything, records(0, 10, errors=10), records(5, 10))
    assert {r.verdict for r in decision.rules} == {INCONCLUSIVE}


def test_copies_instead_of_samples_settle_nothing() -> None:
    rules = [{"rule": "duplicate_rate", "at_most": 0.5}]
    copies = records(50, 100, samples=4)
    fresh = [r.model_copy(update={"reasoning": f"thought {r.repeat}"}) for r in copies]
    assert gate(rules, fresh).verdict is PASS
    decision = gate(rules, copies)
    assert decision.verdict is INCONCLUSIVE and "ignore seeds" in first(decision).why
    assert first(gate(rules, records(50, 100))).verdict is INCONCLUSIVE
    # The incumbent counts where it is compared with.
    both = [*rules, {"rule": "non_inferiority", "margin": 0.2}]
    assert first(gate(both, fresh, copies)).verdict is INCONCLUSIVE


def test_contamination_is_counted_over_all_problems() -> None:
    rules = [{"rule": "contamination"}]
    seen = frozenset(prompt_key(problem.prompt.upper()) for problem in SUITE.problems[:3])
    clean = gate(rules, records(5, 10))
    assert clean.verdict is PASS and first(clean).n == 1000
    dirty = gate(rules, records(5, 10), seen=seen)
    assert dirty.verdict is FAIL and first(dirty).estimate == 0.003
    assert SUITE.problems[0].id in first(dirty).why
    lenient = [{"rule": "contamination", "at_most": 0.01}]
    assert gate(lenient, records(5, 10), seen=seen).verdict is PASS


def test_contamination_is_found_under_the_prompt_as_it_was_asked() -> None:
    suite = load_suite("arithmetic", overrides=["prompt.template=Work out {prompt}, please"])
    seen = frozenset({prompt_key(f"Work out {suite.problems[0].prompt}, please")})
    policy = parse(
        Policy, {"name": "t", "rules": [{"rule": "contamination", "suite": "arithmetic"}]}, "t"
    )
    side = Evidence(
        digest="c",
        suites={"arithmetic": suite},
        records={"arithmetic": records(5, 10)},
        seen_prompts=seen,
    )
    assert decide(policy, side, None).verdict is FAIL


def test_unrecorded_training_data_cannot_be_clean() -> None:
    decision = gate([{"rule": "contamination"}], records(5, 10), seen=None)
    assert decision.verdict is INCONCLUSIVE and first(decision).estimate is None


def test_one_failing_rule_fails_and_one_open_rule_keeps_it_open() -> None:
    floor = {"rule": "floor", "at_least": 0.9}
    seen = frozenset({prompt_key(SUITE.problems[0].prompt)})
    assert gate([floor, {"rule": "contamination"}], records(950, 1000)).verdict is PASS
    assert gate([floor, {"rule": "contamination"}], records(905, 1000)).verdict is INCONCLUSIVE
    assert gate([floor, {"rule": "contamination"}], records(905, 1000), seen=seen).verdict is FAIL


def test_samples_of_one_problem_are_not_counted_as_problems() -> None:
    one = first(gate([{"rule": "floor", "at_least": 0.5}], records(70, 100)))
    four = first(gate([{"rule": "floor", "at_least": 0.5}], records(70, 100, samples=4)))
    assert one.n == four.n == 100
    # The repeats agree with each other here, so they add nothing.
    assert four.low is not None and four.low == pytest.approx(one.low, abs=0.005)


def test_the_same_evidence_gives_the_same_decision_id() -> None:
    ids = [gate(SUPERIOR, records(c, 100), records(50, 100)).id for c in (60, 60, 61)]
    assert ids[0] == ids[1] != ids[2]


def test_sides_that_answered_different_suites_are_not_compared() -> None:
    other: LoadedSuite = load_suite("arithmetic", overrides=["sampling.temperature=0.5"])
    policy = parse(Policy, {"name": "t", "rules": [{**SUPERIOR[0], "suite": "arithmetic"}]}, "t")
    base = Evidence(
        digest="b", suites={"arithmetic": other}, records={"arithmetic": records(5, 10)}
    )
    decision = decide(policy, evidence(records(5, 10)), base)
    assert {rule.verdict for rule in decision.rules} == {INCONCLUSIVE}
    assert "sampling.temperature" in first(decision).why
    with pytest.raises(ConfigError, match="--against"):
        decide(policy, evidence(records(5, 10)), None)


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_policies(file: Path) -> None:
    policy = load_policy(file.stem)
    assert policy.name == file.stem and policy.description
    errors = {rule.suite for rule in policy.rules if isinstance(rule, ErrorRate)}
    assert errors == set(policy.suites()), "each suite's error ceiling is written out"


def test_the_quickstart_policy_asks_what_its_issue_asks() -> None:
    rules = [rule.model_dump(exclude={"suite"}) for rule in load_policy("quickstart").rules]
    assert rules == [
        {"rule": "superiority", "min_gain": 0.08},
        {"rule": "format_rate", "at_least": 0.95},
        {"rule": "truncation_rate", "at_most": 0.05},
        {"rule": "error_rate", "at_most": 0.01},
        {"rule": "contamination", "at_most": 0.0},
    ]
    assert load_policy("quickstart").alpha == 0.05


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: p\nrules: []\n", "rules"),
        ("name: p\nrules: [{rule: floor, suite: s}]\n", "at_least' is missing"),
        ("name: p\nrules: [{rule: floor, suite: s, at_leest: 1}]\n", "did you mean 'at_least'"),
        ("name: p\nrules: [{rule: flor, suite: s, at_least: 1}]\n", "flor"),
        ("name: p\nrules: [{rule: floor, suite: s, at_least: 95}]\n", "95"),
        ("name: p\nrules: [{rule: non_inferiority, suite: s, margin: 0}]\n", "margin"),
        ("name: p\nalpha: 0.9\nrules: [{rule: floor, suite: s, at_least: 0.5}]\n", "alpha"),
        ("name: p\nrules: [{rule: floor, suite: '', at_least: 0.5}]\n", "suite' is ''"),
        # `true` is the number 1 to Python, and infinity a number: both clear every ceiling.
        ("name: p\nrules: [{rule: truncation_rate, suite: s, at_most: true}]\n", "is True"),
        ("name: p\nrules: [{rule: non_inferiority, suite: s, margin: true}]\n", "is True"),
        ("name: p\nrules: [{rule: tokens_per_correct, suite: s, at_most: .inf}]\n", "finite"),
        (
            "name: p\nrules: [{rule: floor, suite: s, at_least: 0.5},"
            " {rule: floor, suite: s, at_least: 0.7}]\n",
            "the rule floor for suite 's' is there 2 times; keep the one you mean",
        ),
    ],
)
def test_policy_mistakes_are_named(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_policy(str(file))
    assert words in str(caught.value) and "policy.yaml" in str(caught.value)
