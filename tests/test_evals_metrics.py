"""What records add up to, against definitions worked out by hand or by brute force."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinkgate.answers import Verdict
from thinkgate.format import SplitStatus
from thinkgate_evals.metrics import SHARES, summarise
from thinkgate_evals.records import Record
from thinkgate_evals.stats import Interval
from thinkgate_evals.voting import duplicate_rate, majority, pass_at, sizes

RIGHT, WRONG = Verdict.CORRECT, Verdict.WRONG


def record(problem: int, repeat: int, answer: str | None, gold: str = "4", **more: Any) -> Record:
    verdict = Verdict.NO_ANSWER if answer is None else RIGHT if answer == gold else WRONG
    fields: dict[str, Any] = {
        "problem_id": str(problem),
        "repeat": repeat,
        "seed": repeat,
        "prompt": "2+2",
        "prompt_hash": "",
        "gold": gold,
        "verdict": verdict,
        "reasoning": f"thought {repeat}",
        "answer": answer,
        "extracted": answer,
        "status": SplitStatus.CLOSED,
        "reasoning_tokens": 10,
        "answer_tokens": 5,
    }
    return Record.model_validate(fields | more)


def answers(*answers: str | None, problem: int = 0) -> list[Record]:
    return [record(problem, repeat, answer) for repeat, answer in enumerate(answers)]


def estimate(interval: Interval | None) -> float:
    assert interval is not None and interval.low <= interval.estimate <= interval.high
    return interval.estimate


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_pass_at_k_is_the_share_of_all_choices_with_a_right_answer(
    right: list[bool], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(right)))
    brute = [any(chosen) for chosen in itertools.combinations(right, k)]
    made = answers(*("4" if r else "5" for r in right))
    assert estimate(pass_at(k, [made])) == pytest.approx(sum(brute) / len(brute))


def test_pass_at_1_is_accuracy_and_problems_with_too_few_answers_are_left_out() -> None:
    made = [answers("4", "4", "5", "6"), answers("5", "4", problem=1)]
    assert estimate(pass_at(1, made)) == pytest.approx(0.5)
    four = pass_at(4, made)
    assert four is not None and (four.estimate, four.n) == (1.0, 1)
    assert pass_at(5, made) is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("4", "4", "5"), 1.0),
        (("5", "5", "4"), 0.0),
        (("5", "6", "4"), 1 / 3),  # a tie of three
        (("0.5", r"\frac{1}{2}", "4"), 0.0),  # two spellings of one wrong answer
        (("4", None, None), 1.0),  # no answer is no vote
        ((None, None, None), 0.0),
    ],
)
def test_majority_counts_equivalent_answers_as_one(
    given: Sequence[str | None], expected: float
) -> None:
    assert estimate(majority(3, [answers(*given)])) == pytest.approx(expected)


def test_right_answers_in_different_spellings_vote_together() -> None:
    made = answers("5", "5", "4")
    made += [record(0, n, text, verdict=RIGHT) for n, text in ((3, "4.0"), (4, "four"))]
    assert estimate(majority(5, [made])) == 1.0


def test_majority_of_few_uses_all_answers_in_groups() -> None:
    made = answers("4", "4", "5", "5", "4", "5", "4")  # 44 55 45 and one left over
    assert estimate(majority(2, [made])) == pytest.approx((1 + 0 + 0.5) / 3)


def test_the_k_that_are_reported() -> None:
    assert sizes([answers("4")]) == () == sizes([])
    assert sizes([answers(*"44")] * 2) == (2,)
    mixed = [answers(*("4" * n)) for n in (16, 15, 16)]
    assert sizes(mixed) == (2, 4, 8, 16)
    assert sizes([answers(*"4" * 6)]) == (2, 4, 6)


def test_samples_that_could_not_be_measured_neither_vote_nor_count() -> None:
    made = [*answers("5", "4", "4"), record(0, 3, None, verdict=Verdict.ERROR, status=None)]
    summary = summarise(made)
    assert set(summary.several) == {"pass@2", "maj@2", "pass@3", "maj@3"}
    assert estimate(summary.several["pass@3"]) == estimate(summary.several["maj@3"]) == 1.0


def test_copies_are_told_from_samples() -> None:
    same = [record(p, r, "4", reasoning="the same") for p in range(5) for r in range(3)]
    rate = duplicate_rate(same)
    assert rate is not None and (rate.estimate, rate.n) == (1.0, 5)
    assert estimate(duplicate_rate(answers("4", "4", "5"))) == 0.0
    half = [record(0, r, "4", reasoning=t) for r, t in enumerate("aab")]
    assert estimate(duplicate_rate(half)) == 0.5
    assert duplicate_rate(answers("4")) is None
    failed = [record(0, r, None, verdict=Verdict.ERROR, status=None) for r in range(3)]
    assert duplicate_rate(failed) is None


@pytest.mark.parametrize(
    ("thought", "reflects"),
    [
        ("2+2=5. Wait, that's not right. 2+2=4", True),
        ("Hmm, so x is 3", True),
        ("Let me double-check: 4", True),
        ("Let me check whether 7 divides it.", True),
        ("I think I made a small mistake above", True),
        ("wait no, it is 3", True),
        ("Rechecking gives 4", True),
        ("The passengers wait for 5 minutes in line, then wait until noon", False),
        ("They await the checkup of the waiter", False),
        ("2+2=4", False),
        ("", False),
    ],
)
def test_reflection_is_a_thought_that_turns_on_itself(thought: str, reflects: bool) -> None:
    assert SHARES["reflection_rate"](record(0, 0, "4", reasoning=thought)) is reflects


def test_a_failed_request_does_not_say_whether_it_reflects() -> None:
    failed = record(0, 0, None, verdict=Verdict.ERROR, status=None, reasoning=None)
    assert SHARES["reflection_rate"](failed) is None


def test_tokens_per_right_answer_counts_what_was_spent_on_wrong_ones() -> None:
    assert summarise(answers("4", "5", "5", "4")).tokens_per_correct == 30
    assert summarise(answers("5")).tokens_per_correct is None
    unknown = [*answers("4"), record(1, 0, "4", answer_tokens=None)]
    assert summarise(unknown).tokens_per_correct is None


def test_the_standard_error_is_over_problems() -> None:
    """Miller 2024: 40 alike samples of 10 problems are 10 observations, not 400."""
    made = [record(p, r, "4" if p < 5 else "5") for p in range(10) for r in range(40)]
    accuracy = summarise(made).shares["accuracy"]
    assert accuracy is not None and accuracy.error == pytest.approx((0.25 / 9) ** 0.5)
