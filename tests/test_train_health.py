"""The health watch: each symptom is seen in a history that has it, and in no healthy one."""

import json
import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkgate.checkpoint import HealthFinding, HealthVerdict
from thinkgate_train.health.verdict import SYMPTOMS, HealthWatch, RunFacts

GOLDEN = Path(__file__).parent / "golden"
STEPS = 60
Curve = Callable[[float], float]  # a metric's value at a share of the run, 0 to 1

FACTS = {
    "grpo": RunFacts(
        method="grpo",
        learning_rate=1e-5,
        max_completion_length=64,
        beta=0.04,
        reward_names=("correctness", "format"),
        reward_weights=(1.0, 0.2),
        max_steps=STEPS,
    ),
    "sft": RunFacts(method="sft", learning_rate=1e-4, max_steps=STEPS),
    "dpo": RunFacts(method="dpo", learning_rate=1e-6, beta=0.1, max_steps=STEPS),
    "reward_model": RunFacts(method="reward_model", learning_rate=1e-5, max_steps=STEPS),
    "ppo": RunFacts(method="ppo", learning_rate=1e-5, max_steps=STEPS),
}


def level(value: float) -> Curve:
    return lambda _: value


def line(start: float, end: float) -> Curve:
    return lambda done: start + (end - start) * done


def drop_at(when: float, before: float, after: float) -> Curve:
    return lambda done: before if done < when else after


GRPO: dict[str, Curve] = {
    "loss": line(-0.5, 0.0),
    "grad_norm": level(0.06),
    "reward": line(0.7, 1.1),
    "reward_std": line(0.5, 0.2),
    "accuracy": line(0.5, 0.9),
    "format": level(1.0),
    "zero_variance": line(0.1, 0.6),
    "kl": line(0.0, 0.1),
    "entropy": line(0.12, 0.015),
    "clip_ratio/region_mean": level(0.01),
    "completions/mean_length": line(18, 33),
    "completions/clipped_ratio": level(0.02),
    "truncated": level(0.01),
    "unopened": level(0.0),
    "rewards/second_opinion/mean": line(0.5, 0.88),
    "sampling/sampling_logp_difference/mean": level(0.02),
}
HEALTHY: dict[str, dict[str, Curve]] = {
    "grpo": GRPO,
    "sft": {
        "loss": lambda done: 0.1 + 5 * math.exp(-8 * done),
        "grad_norm": lambda done: 0.3 + 3 * math.exp(-5 * done),
        "eval_loss": lambda done: 0.15 + 5 * math.exp(-8 * done),
    },
    "dpo": {
        "loss": line(0.69, 0.5),
        "rewards/accuracies": line(0.5, 0.8),
        "rewards/margins": line(0.0, 0.6),
        "logps/chosen": line(-80, -85),
        "logps/rejected": line(-80, -120),
    },
    "reward_model": {
        "loss": line(0.69, 0.4),
        "accuracy": line(0.5, 0.85),
        "margin": line(0.0, 1.5),
    },
    "ppo": {
        **{k: v for k, v in GRPO.items() if k != "zero_variance"},
        "value_loss": line(0.2, 0.05),
        "approx_kl": level(0.01),
        "explained_variance": line(0.0, 0.6),
    },
}

SICK: dict[str, tuple[str, dict[str, Curve], bool]] = {
    "not_a_number": ("grpo", {"loss": drop_at(0.5, -0.1, math.nan)}, True),
    "no_reward": ("grpo", {"reward": drop_at(0.5, 0.7, math.nan)}, True),
    "wrong_prefill": ("grpo", {"unopened": level(0.9), "format": level(0.0)}, True),
    "logp_gap": ("grpo", {"sampling/sampling_logp_difference/mean": line(0.02, 0.8)}, True),
    "all_clipped": (
        "grpo",
        {
            "completions/clipped_ratio": level(1.0),
            "reward": level(0.0),
            "accuracy": level(0.0),
            "zero_variance": level(1.0),
        },
        True,
    ),
    "forgot_to_stop": (
        "grpo",
        {
            "completions/clipped_ratio": drop_at(0.3, 0.1, 1.0),
            "reward": drop_at(0.3, 0.5, 0.1),
            "zero_variance": drop_at(0.3, 0.2, 1.0),
        },
        True,
    ),
    "many_clipped": ("grpo", {"completions/clipped_ratio": level(0.6)}, False),
    "learning_rate_too_high": (
        "grpo",
        {"reward": drop_at(0.5, 0.7, 0.05), "entropy": drop_at(0.5, 0.1, 4.0)},
        True,
    ),
    "reward_hacking": (
        "grpo",
        {"accuracy": line(0.6, 0.2), "completions/mean_length": line(30, 6)},
        True,
    ),
    "held_out_divergence": ("grpo", {"rewards/second_opinion/mean": line(0.6, 0.3)}, True),
    "length_hacking": (
        "grpo",
        {
            "completions/mean_length": line(15, 63),
            "accuracy": level(0.5),
            "rewards/second_opinion/mean": level(0.5),
        },
        False,
    ),
    "kl_runaway": ("grpo", {"kl": lambda done: 0.01 * math.exp(8 * done)}, True),
    "format_lost": ("grpo", {"format": drop_at(0.5, 0.95, 0.02)}, True),
    "reward_collapse": ("grpo", {"reward": drop_at(0.5, 0.7, 0.2)}, True),
    "entropy_collapse": (
        "grpo",
        {
            "entropy": drop_at(0.3, 0.12, 0.001),
            "zero_variance": drop_at(0.3, 0.2, 0.95),
            "reward": level(0.7),
            "accuracy": level(0.5),
        },
        True,
    ),
    "constant_reward": (
        "grpo",
        {
            "reward": level(0.2),
            "accuracy": level(0.0),
            "reward_std": level(0.0),
            "zero_variance": level(1.0),
        },
        True,
    ),
    "solved": (
        "grpo",
        {"reward": level(1.2), "accuracy": level(1.0), "zero_variance": level(1.0)},
        False,
    ),
    "little_signal": (
        "grpo",
        {"reward": level(0.2), "accuracy": level(0.05), "zero_variance": level(0.9)},
        False,
    ),
    "format_never_found": ("grpo", {"format": level(0.0)}, False),
    "clip_ratio_high": ("grpo", {"clip_ratio/region_mean": level(0.5)}, False),
    "grad_norm_explosion": ("grpo", {"grad_norm": drop_at(0.5, 0.06, 5.0)}, False),
    "loss_jump": ("sft", {"loss": drop_at(0.5, 0.3, 2.0)}, False),
    "overfitting": ("sft", {"eval_loss": line(0.5, 1.5)}, False),
    "no_progress": ("grpo", {"reward": level(0.7), "accuracy": level(0.5)}, False),
    "preference_stuck": ("dpo", {"rewards/accuracies": level(0.5)}, False),
    "margin_falling": ("dpo", {"rewards/margins": drop_at(0.6, 0.6, -0.2)}, True),
    "both_crash": (
        "dpo",
        {"logps/chosen": line(-80, -300), "logps/rejected": line(-80, -400)},
        False,
    ),
    "reward_model_chance": ("reward_model", {"accuracy": level(0.5)}, False),
    "value_loss_explosion": ("ppo", {"value_loss": line(0.1, 50)}, False),
    "approx_kl_high": ("ppo", {"approx_kl": level(0.5)}, False),
}


def rows(curves: Mapping[str, Curve], seed: int = 0, steps: int = STEPS) -> list[dict[str, float]]:
    """A run whose metrics follow their curves with the noise of real batches on top."""
    draw = random.Random(seed)
    shares = {
        *("format", "truncated", "unopened", "zero_variance", "completions/clipped_ratio"),
        *("accuracy", "rewards/accuracies", "rewards/second_opinion/mean"),
    }
    found: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        row: dict[str, float] = {"step": step}
        for name, curve in curves.items():
            value = curve(step / steps)
            noisy = value + draw.gauss(0, 0.05 * (abs(value) or 0))
            if name in shares:  # all or none is not noisy
                noisy = value if value in (0.0, 1.0) else min(max(noisy, 0.0), 1.0)
            row[name] = noisy
        found.append(row)
    return found


def watch(
    facts: RunFacts, history: list[dict[str, float]]
) -> tuple[list[HealthFinding], HealthWatch]:
    health = HealthWatch(facts)
    raised = [f for row in history for f in health.update(int(row["step"]), row)]
    return raised, health


def golden(name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (GOLDEN / name).read_text().splitlines()]


def test_every_symptom_is_tested() -> None:
    assert set(SICK) == {check.__name__ for check in SYMPTOMS}


@pytest.mark.parametrize("symptom", SICK)
def test_a_sick_run_is_recognised_in_plain_words(symptom: str) -> None:
    method, changes, stop = SICK[symptom]
    facts = FACTS[method]
    raised, health = watch(facts, rows({**HEALTHY[method], **changes}))
    found = [f for f in raised if f.symptom == symptom]
    assert found, f"raised {[f.symptom for f in raised]} only"
    assert any(f.stop for f in found) is stop
    assert 0 <= health.since(found[0]) <= found[0].step
    assert health.record().verdict is HealthVerdict.WARNED
    assert health.record(stopped=True).verdict is HealthVerdict.STOPPED
    why = found[0].why  # a sentence that names a key to change
    keys = ("trl.", "rewards", "data", "model.", "method", "open_tag", "prompt.system")
    assert any(key in why for key in keys), why
    assert len(why) < 400 and not why.endswith(".") and "{" not in why


@pytest.mark.parametrize("method", HEALTHY)
def test_healthy_runs_are_left_alone(method: str) -> None:
    for seed in range(10):
        raised, health = watch(FACTS[method], rows(HEALTHY[method], seed))
        assert raised == [], f"seed {seed}"
        assert health.record().verdict is HealthVerdict.HEALTHY


@pytest.mark.parametrize(("name", "method"), [("grpo", "grpo"), ("sft", "sft"), ("kl", "grpo")])
def test_real_runs_that_went_well_are_left_alone(name: str, method: str) -> None:
    """The quickstart's own runs, GRPO from 53 % to 95 % and its cold start; and GRPO with a KL
    penalty, whose loss rises from -0.5 to 0 while the accuracy does from 63 % to 84 %."""
    raised, _ = watch(FACTS[method], golden(f"metrics_{name}.jsonl"))
    assert raised == []


def test_a_real_run_at_100_times_the_learning_rate() -> None:
    raised, health = watch(FACTS["grpo"], golden("metrics_lr100.jsonl"))
    first = raised[0]
    assert (first.symptom, first.step, health.since(first)) == ("learning_rate_too_high", 7, 1)


def test_a_real_run_whose_length_was_rewarded() -> None:
    """Reward: minus the length, and a tenth for a right answer. Accuracy fell from 63 % to 6 %."""
    raised, _ = watch(FACTS["grpo"], golden("metrics_hacked.jsonl"))
    assert [f.symptom for f in raised if f.stop] == ["reward_hacking", "held_out_divergence"]
    assert "completions went from 19 to 8 tokens" in raised[0].why


def test_a_loss_that_rises_with_kl_is_healthy() -> None:
    """The tutorial's note: the GRPO loss follows the KL term while the policy learns."""
    changes = {"kl": line(0.0, 0.8), "loss": line(0.0, 3.0)}
    raised, _ = watch(FACTS["grpo"], rows({**GRPO, **changes}))
    assert raised == []


@pytest.mark.parametrize(
    ("metric", "spike"),
    [
        ("grad_norm", 50.0),
        ("reward", 0.0),
        ("kl", 30.0),
        ("completions/clipped_ratio", 1.0),
        ("sampling/sampling_logp_difference/mean", 0.1),
        ("entropy", 3.0),
        ("reward", None),
        ("grad_norm", math.inf),
    ],
)
def test_one_bad_log_is_noise(metric: str, spike: float | None) -> None:
    history = rows(GRPO)
    history[30] |= {metric: spike}  # type: ignore[dict-item]
    raised, _ = watch(FACTS["grpo"], history)
    assert raised == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", ["loss", "grad_norm", "reward"])
def test_a_number_that_is_none_is_found(metric: str, value: float) -> None:
    history = rows(GRPO)
    for row in history[30:]:
        row[metric] = value
    raised, health = watch(FACTS["grpo"], history)
    assert raised[0].symptom in ("not_a_number", "no_reward") and raised[0].stop
    assert raised[0].step <= 33
    assert metric in raised[0].why or raised[0].symptom == "no_reward"
    assert 30 < health.since(raised[0]) <= raised[0].step


def test_a_symptom_is_said_once_and_again_after_it_cleared() -> None:
    sick = {**GRPO, "clip_ratio/region_mean": lambda d: 0.5 if d < 0.3 or d > 0.8 else 0.01}
    raised, _ = watch(FACTS["grpo"], rows(sick, steps=120))
    assert [f.symptom for f in raised] == ["clip_ratio_high"] * 2
    assert raised[0].step < 36 and raised[1].step > 96


def test_a_warning_that_becomes_serious_is_said_again() -> None:
    raised, _ = watch(FACTS["grpo"], rows({**GRPO, "kl": SICK["kl_runaway"][1]["kl"]}))
    assert [(f.symptom, f.stop) for f in raised] == [("kl_runaway", False), ("kl_runaway", True)]


def test_a_policy_destroyed_by_its_first_updates_is_seen_at_once() -> None:
    """As measured at 100 times the quickstart's learning rate: good for one log only."""
    reward = [0.825, 0.263, 0.0438, 0.0, 0.00625, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.00625, 0.0125]
    entropy = [0.081, 0.0998, 1.14, 4.98, 4.84, 4.01, 2.72, 2.59, 2.64, 2.77, 2.68, 2.87, 3.5]
    history = [
        {"step": i, "reward": r, "reward_std": 0.49 if i == 1 else 0.01, "entropy": e}
        for i, (r, e) in enumerate(zip(reward, entropy, strict=True), 1)
    ]
    raised, health = watch(FACTS["grpo"], history)
    assert [(f.symptom, f.step) for f in raised] == [
        ("learning_rate_too_high", 7),
        ("reward_collapse", 12),
    ]
    assert all(f.stop and health.since(f) == 1 for f in raised)


def test_few_rollouts_a_step_are_noise_not_collapse() -> None:
    """One group a step: the mean reward is all or nothing."""
    draw = random.Random(0)
    history = [
        {"step": i, "reward": float(draw.random() < 0.5), "reward_std": 0.0 if i % 2 else 0.4}
        for i in range(1, 200)
    ]
    history[0]["reward"] = 1.0
    raised, _ = watch(RunFacts(method="grpo"), history)
    assert raised == []


def noisy_run(seed: int, held_out: Curve, steps: int = 500) -> list[dict[str, float]]:
    """A long run whose accuracy rises from 40 % to 80 %, in few groups of 8 rollouts of problems
    that differ in difficulty; the second verifier sees one rollout in 16."""
    draw = random.Random(seed)
    groups = 2 ** draw.randrange(5)
    history: list[dict[str, float]] = []
    for step in range(1, steps + 1):
        p = 0.4 + 0.4 * step / steps
        chances = [draw.betavariate(1.6 * p, 1.6 * (1 - p)) for _ in range(groups)]
        accuracy = sum(draw.random() < c for c in chances for _ in range(8)) / (8 * groups)
        seen = max(1, groups // 2)
        checked = sum(draw.random() < held_out(step / steps) for _ in range(seen)) / seen
        equal = sum(not 0.03 < c < 0.97 for c in chances) / groups
        history.append(
            {
                "step": step,
                "reward": accuracy + 0.2,
                "accuracy": accuracy,
                "reward_std": 0.4,
                "zero_variance": equal,
                "rewards/second_opinion/mean": checked,
                "entropy": draw.gauss(0.3, 0.03),
                "grad_norm": draw.lognormvariate(-1, 0.7),
                "loss": draw.gauss(0, 0.1),
            }
        )
    return history


@pytest.mark.parametrize("seed", range(6))
def test_a_long_noisy_run_raises_no_false_alarm(seed: int) -> None:
    raised, _ = watch(FACTS["grpo"], noisy_run(seed, line(0.4, 0.8)))
    assert raised == []


@pytest.mark.parametrize("seed", range(6))
def test_a_slow_drift_in_noise_is_seen_in_a_long_run(seed: int) -> None:
    """No ten logs show it: the second verifier sees one to eight rollouts of a step."""
    raised, _ = watch(FACTS["grpo"], noisy_run(seed, line(0.75, 0.25)))
    assert {f.symptom for f in raised} == {"held_out_divergence"}


def test_a_solved_problem_set_is_no_constant_reward() -> None:
    changes = {"accuracy": level(1.0), "zero_variance": level(1.0), "reward_std": level(0.0)}
    raised, _ = watch(FACTS["grpo"], rows({**GRPO, **changes, "reward": level(1.2)}))
    assert [(f.symptom, f.stop) for f in raised] == [("solved", False)]


def test_a_length_reward_that_teaches_to_stop_is_not_stopped() -> None:
    """The tutorial's length reward: at first everything is cut off, and that is what it mends."""
    facts = RunFacts(
        method="grpo", max_completion_length=96, reward_names=("length",), max_steps=STEPS
    )
    curves = {
        "reward": line(-400, -30),
        "reward_std": level(100.0),
        "zero_variance": level(0.0),
        "completions/clipped_ratio": lambda d: 1.0 if d < 0.4 else 0.3,
        "completions/mean_length": lambda d: 96.0 if d < 0.4 else 30.0,
    }
    raised, _ = watch(facts, rows(curves))
    assert not any(f.stop for f in raised)


def test_ppo_without_groups_still_sees_a_constant_reward() -> None:
    curves = {**HEALTHY["ppo"], "reward": level(0.5), "accuracy": level(0.3)}
    history = rows({**curves, "reward_std": level(0.0)})
    for row in history:
        row["reward"] = 0.5
    raised, _ = watch(FACTS["ppo"], history)
    assert raised[0].symptom == "constant_reward" and raised[0].stop


@pytest.mark.parametrize("method", ["sft", "dpo", "reward_model"])
def test_a_loss_above_its_start_is_a_learning_rate_too_high(method: str) -> None:
    raised, _ = watch(FACTS[method], rows({**HEALTHY[method], "loss": line(0.7, 3.0)}))
    assert "learning_rate_too_high" in {f.symptom for f in raised if f.stop}
    assert f"now {FACTS[method].learning_rate:g}" in raised[0].why


def test_stale_weights_show_as_a_gap_that_grows_from_nothing() -> None:
    """Our own canary starts at float32 rounding."""
    gap = {"rollout/logp_gap": line(1e-6, 0.08)}
    raised, _ = watch(FACTS["grpo"], rows({**GRPO, **gap}))
    assert [(f.symptom, f.stop) for f in raised] == [("logp_gap", True)]
    assert "stale weights" in raised[0].why


def test_what_was_seen_before_a_resume_must_show_itself_anew() -> None:
    method, changes, _ = SICK["constant_reward"]
    facts = FACTS[method]
    raised, health = watch(facts, rows({**GRPO, **changes})[:30])
    assert [f.symptom for f in raised if f.stop] == ["constant_reward"]
    health.resume()
    mended = rows(GRPO)[30:]
    assert [f for row in mended for f in health.update(int(row["step"]), row)] == []
    health.resume()
    sick = rows({**GRPO, **changes}, steps=120)[60:]
    again = [f for row in sick for f in health.update(int(row["step"]), row)]
    assert "constant_reward" in {f.symptom for f in again}


def test_noise_that_would_hide_progress_is_no_lack_of_it() -> None:
    draw = random.Random(3)
    history = [
        {"step": step, "reward": draw.gauss(0.6, 0.12), "reward_std": 0.5} for step in range(1, 61)
    ]
    assert watch(FACTS["grpo"], history)[0] == []


def test_the_length_of_the_run_may_come_late() -> None:
    history = rows({**GRPO, **SICK["no_progress"][1]})
    health = HealthWatch(RunFacts(method="grpo", max_steps=-1))
    health.expect(STEPS)
    raised = [f for row in history for f in health.update(int(row["step"]), row)]
    assert [f.symptom for f in raised] == ["no_progress"]


NAMES = sorted({name for curves in HEALTHY.values() for name in curves} | {"rollout/logp_gap"})


@settings(max_examples=50)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(NAMES),
            st.floats(allow_nan=True, allow_infinity=True) | st.none() | st.integers(-3, 3),
        ),
        min_size=1,
        max_size=50,
    ),
    st.sampled_from(sorted(FACTS)),
)
def test_nothing_logged_can_crash_the_watch(logs: list[dict[str, float]], method: str) -> None:
    health = HealthWatch(FACTS[method])
    for step, row in enumerate(logs, 1):
        for finding in health.update(step, row):
            assert 0 <= health.since(finding) <= step
    assert health.record().model_dump_json()


@settings(max_examples=10)
@given(st.randoms(use_true_random=False), st.sampled_from(sorted(SICK)))
def test_the_order_of_keys_is_irrelevant(draw: random.Random, symptom: str) -> None:
    method, changes, _ = SICK[symptom]
    history = rows({**HEALTHY[method], **changes})
    shuffled = [dict(draw.sample(sorted(row.items()), len(row))) for row in history]
    assert watch(FACTS[method], history)[0] == watch(FACTS[method], shuffled)[0]
