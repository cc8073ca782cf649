"""Contamination: what is the same problem in other dress, and what only looks like it."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinkgate.contamination import Kind, Overlap, every_overlap, overlaps
from thinkgate.problems import Arithmetic, load

WORDY = (
    "Every morning Aya goes for a 9-kilometer-long walk and stops at a coffee shop afterwards. "
    "When she walks at a constant speed of s kilometers per hour, the walk takes her 4 hours, "
    "including t minutes spent in the coffee shop."
)
OTHER = "Nadia counts 31 red and 12 green marbles in the jar her uncle left on the kitchen table."


def found(train: str | list[str], problem: str, **options: float) -> Overlap | None:
    texts = [train] if isinstance(train, str) else train
    result = overlaps(texts, [("p", problem), ("other", OTHER)], **options)  # type: ignore[arg-type]
    assert all(overlap.problem_id == "p" for overlap in result)
    return result[0] if result else None


def kind(train: str, problem: str) -> Kind | None:
    overlap = found(train, problem)
    return overlap.kind if overlap else None


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        ("  what is\n2+2 ?", "What is 2 + 2?"),
        (r"Compute $\dfrac{1}{2}\times 3$.", "compute 1/2 * 3"),
        (r"Compute \(\frac12\cdot3\)", "Compute 1/2 \u00d7 3"),
        (r"Find \left(0,3\right) \le \text{that}.", "Find (0, 3) ≤ that"),
        ("\uff18\uff0b\uff17\u2212\uff16", "8+7-6"),
        ("He paid 1,000 dollars", r"He paid $1{,}000$ dollars"),
        ("**Tom\u2019s** well-known dog", "Tom's well known dog"),
        ("a 9 kilometer walk — at night", "a 9-kilometer walk at night"),
        ("x**2 + 1", "x^2+1"),
        ("Wie weit ist STRASSE 5", "wie weit ist straße 5"),
    ],
)
def test_spelling_does_not_count(train: str, problem: str) -> None:
    assert kind(train, problem) is Kind.EXACT


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        ("8+7-5", "8+7-6"),
        ("8-7+6", "8+7-6"),
        ("87-6", "8+7-6"),
        ("8+7-6+3", "8+7-6"),  # a part of a longer expression is another problem
        ("9-8+7-6", "8+7-6"),
        ("5-3+5-2", "-3+5-2"),
        ("9+8+7-6=16+8-6", "8+7-6"),
        ("(8+7)-6*2", "8+(7-6)*2"),
        ("Find x.", "Find y."),
        (WORDY.replace("4", "5"), WORDY),
        (WORDY.replace("4 hours", "four hours"), WORDY.replace("4 hours", "five hours")),
        (OTHER.replace("31", "three"), OTHER.replace("31", "four")),
        ("1.5 litres of milk", "15 litres of milk"),
        ("", "!?"),
    ],
)
def test_other_numbers_are_another_problem(train: str, problem: str) -> None:
    assert kind(train, problem) is None


@pytest.mark.parametrize(
    "train",
    [
        "What is 8+7-6?",
        "8+7-6=9",
        "<|user|>\n8+7-6\n<|assistant|>\n<think>8+7=15, 15-6=9</think>9",
        "First: 8 + 7 - 6; second: 3+3",
    ],
)
def test_a_short_problem_is_found_inside_a_longer_text(train: str) -> None:
    overlap = found(train, "8+7-6")
    assert overlap is not None and overlap.kind is Kind.NGRAM and overlap.share == 1.0
    assert overlap.excerpt.startswith("8")


def test_a_problem_of_a_few_tokens_must_be_the_whole_text() -> None:
    assert found("Then find x. After that, find y.", "Find x") is None
    assert kind("find X", "Find x.") is Kind.EXACT


def test_a_near_duplicate_has_the_same_mathematics_and_nearly_the_same_words() -> None:
    renamed = WORDY.replace("Aya", "Mia").replace("morning", "evening")
    overlap = found(renamed, WORDY)
    assert overlap is not None and overlap.kind is Kind.NEAR and 0.8 <= overlap.share < 1
    assert found(f"A shop has {re.sub('[^0-9 ]', '', WORDY)} s t", WORDY) is None


def test_the_larger_part_of_a_problem_in_a_page_is_found_and_a_phrase_is_not() -> None:
    page = "So much for walks. " * 20
    overlap = found(f"{page} {WORDY} {page}", WORDY)
    assert overlap is not None and overlap.kind is Kind.NGRAM and overlap.share == 1.0
    assert overlap.excerpt.startswith("Every morning Aya")
    edited = WORDY.replace("coffee shop afterwards", "bar")
    part = found(page + edited, WORDY)
    assert part is not None and 0.5 <= part.share < 1
    phrase = "when she walks at a constant speed of s kilometers per hour the walk takes longer"
    assert found(phrase, WORDY) is None
    strict = found(phrase, WORDY, found=0)
    assert strict is not None and 0 < strict.share < 0.2


def test_the_benchmarks_own_wording_is_nobodys_problem() -> None:
    ask = "Reason step by step and then put your final answer within one box at the very end"
    benchmark = [(str(n), f"What is {n} plus {n} times {n + 1} in all? {ask}") for n in range(40)]
    assert overlaps([f"Name the capital of Peru. {ask}"], benchmark, found=0) == []
    assert [o.problem_id for o in overlaps([benchmark[7][1]], benchmark, found=0)] == ["7"]


def test_the_strongest_overlap_of_each_problem_is_kept_and_the_surest_come_first() -> None:
    page = f"Look: {WORDY}"
    train = ["nothing here", page, WORDY.replace("Aya", "Mia"), f" {WORDY} ", page, "2+2-1=3"]
    result = overlaps(iter(train), [("short", "2+2-1"), ("walk", WORDY), ("other", OTHER)])
    assert [(o.problem_id, o.kind, o.text, o.texts) for o in result] == [
        ("walk", Kind.EXACT, 3, 4),
        ("short", Kind.NGRAM, 5, 1),
    ]


def test_every_text_that_holds_a_problem_can_be_removed() -> None:
    train = ["8+7-6", "clean", f"Look: {WORDY} And 8+7-6=9.", "8 + 7 - 6", "clean too"]
    found = list(every_overlap(iter(train), [("short", "8+7-6"), ("walk", WORDY)]))
    assert [(o.text, o.problem_id) for o in found] == [
        (0, "short"),
        (2, "short"),
        (2, "walk"),
        (3, "short"),
    ]
    kept = [text for n, text in enumerate(train) if n not in {o.text for o in found}]
    assert kept == ["clean", "clean too"]


def test_two_problems_that_are_the_same_are_both_found() -> None:
    result = overlaps(["What is two plus two?"], [(s, "what is two plus two") for s in "ab"])
    assert {o.problem_id for o in result} == {"a", "b"}


def test_the_halves_of_procedural_problems_do_not_overlap() -> None:
    """Also with the steps written out, as training sees them, and with chains inside chains."""
    shape = {"source": "arithmetic", "min_terms": 3, "max_terms": 6}
    train = load(Arithmetic.model_validate(shape | {"half": "train", "count": 3000}))
    held_out = load(Arithmetic.model_validate(shape | {"half": "eval", "count": 1000}))
    texts = ["\n".join([p.prompt, "<think>", *p.steps, "</think>", p.gold]) for p in train]
    benchmark = [(p.id, p.prompt) for p in held_out]
    assert overlaps([p.prompt for p in train], benchmark) == []
    assert overlaps(texts, benchmark) == []
    assert len(overlaps([held_out[5].prompt, *texts], benchmark)) == 1


WORDS = (
    "Tom",
    "buys",
    "3",
    "apples",
    "12",
    "for $4.50",
    "each",
    r"\frac{1}{2}",
    "x",
    "+",
    "7",
    "-",
)
SENTENCE = st.lists(st.sampled_from(WORDS), min_size=1, max_size=40).map(" ".join)


@given(st.lists(SENTENCE, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_every_problem_is_found_in_its_own_benchmark(
    problems: list[str], shuffle: random.Random
) -> None:
    benchmark = [(str(n), problem) for n, problem in enumerate(problems)]
    dressed = [f" {p.upper().replace(' ', '  ')}. " if "\\" not in p else p for p in problems]
    shuffle.shuffle(dressed)
    result = overlaps(dressed, benchmark)
    assert {o.problem_id: o.kind for o in result} == {i: Kind.EXACT for i, _ in benchmark}


@given(SENTENCE, st.data())
def test_a_changed_number_is_never_the_same_problem(problem: str, data: st.DataObject) -> None:
    figures = [m.span() for m in re.finditer(r"\d+", problem)]
    if not figures:
        return
    start, end = data.draw(st.sampled_from(figures))
    changed = f"{problem[:start]}{int(problem[start:end]) + 90}{problem[end:]}"
    assert found(changed, problem) is None or problem[start:end] in re.findall(r"\d+", changed)
    assert kind(changed, problem) not in (Kind.EXACT, Kind.NEAR)


@settings(max_examples=300)
@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_can_be_searched(train: str, problem: str) -> None:
    for overlap in overlaps([train], [("p", problem)]):
        assert 0 < overlap.share <= 1 and "\n" not in overlap.excerpt


def test_n_grams_too_short_to_mean_anything_are_refused() -> None:
    with pytest.raises(ValueError, match="n is 2"):
        overlaps([], [], n=2)
