"""Generated problems: right golds, halves that share nothing, and Countdown's own kind of gold."""

import random
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from thinkgate.answers import Verdict, check, check_many
from thinkgate.contamination import overlaps
from thinkgate.countdown import Puzzle, draw_puzzle
from thinkgate.errors import DataError
from thinkgate.problems import Problem, ProblemSet, load

SOURCES = ("symbolic-word", "countdown")
RIGHT, WRONG, NONE = Verdict.CORRECT, Verdict.WRONG, Verdict.NO_ANSWER


def problems(source: str, half: str = "eval", seed: int = 0, count: int = 300, **more: object):
    fields = {"source": source, "half": half, "seed": seed, "count": count, **more}
    return load(TypeAdapter(ProblemSet).validate_python(fields))


@pytest.mark.parametrize("source", SOURCES)
def test_a_seed_repeats_and_another_differs(source: str) -> None:
    assert problems(source) == problems(source)
    assert {p.prompt for p in problems(source)} != {p.prompt for p in problems(source, seed=1)}
    assert len({p.id for p in problems(source)}) == 300


@pytest.mark.parametrize("source", SOURCES)
def test_the_halves_share_nothing(source: str) -> None:
    """By id, which leaves names out: `Ada buys 3` and `Zoe buys 3` are one problem."""
    train, held_out = problems(source, "train", count=2000), problems(source, count=300)
    assert not {p.id for p in train} & {p.id for p in held_out}
    texts = ["\n".join([p.prompt, *p.steps, p.answer or p.gold]) for p in train]
    assert overlaps(texts, [(p.id, p.prompt) for p in held_out]) == []


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("half", ["train", "eval"])
def test_every_step_is_true_and_the_last_one_is_the_answer(source: str, half: str) -> None:
    for problem in problems(source, half):
        for step in problem.steps:
            left, _, right = step.partition("=")
            assert re.fullmatch(r"[0-9]+[-+*/][0-9]+", left), step
            assert Fraction(eval(re.sub(r"[0-9]+", r"Fraction(\g<0>)", left))) == int(right)
        target = problem.gold.partition(" from ")[0]
        assert problem.steps[-1].endswith(f"={target}")


@pytest.mark.parametrize("source", SOURCES)
def test_the_worked_answer_is_right_and_a_changed_one_wrong(source: str) -> None:
    made = problems(source)
    answers = [p.answer or p.gold for p in made]
    pairs = [(rf"So it is \boxed{{{a}}}.", p.gold) for a, p in zip(answers, made, strict=True)]
    assert set(check_many(pairs)) == {RIGHT}
    off = [(f"{a}+1", p.gold) for a, p in zip(answers, made, strict=True)]
    assert set(check_many(off)) == {WRONG}


def test_word_problems_use_every_template_with_its_own_numbers() -> None:
    made = problems("symbolic-word", count=520)
    questions = {re.sub(r"[A-Z][a-z]+ |[0-9]+", "", p.prompt.split(". ")[-1]) for p in made}
    assert len(questions) >= 13
    for problem in made:
        numbers = re.findall(r"[0-9]+", problem.prompt)
        used = re.findall(r"[0-9]+", " ".join(s.partition("=")[0] for s in problem.steps))
        assert set(numbers) <= {*used}, problem
        assert "{" not in problem.prompt and "  " not in problem.prompt


def test_a_distractor_changes_the_text_and_nothing_else() -> None:
    plain = problems("symbolic-word", seed=3)
    noisy = problems("symbolic-word", seed=3, distractors=True)
    for one, other in zip(plain, noisy, strict=True):
        assert (one.id, one.gold, one.steps) == (other.id, other.gold, other.steps)
        assert len(other.prompt) > len(one.prompt) + 10
        assert other.prompt.split(". ")[-1] == one.prompt.split(". ")[-1]
        assert one.prompt.split(". ")[0] == other.prompt.split(". ")[0]


PUZZLE = "46 from [3, 7, 8, 25]"


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("25+7*3", RIGHT),
        (r"\boxed{25 + 7 \times 3}", RIGHT),
        (r"\boxed{25+7\cdot 3 = 46}", RIGHT),
        (r"\boxed{46 = 3(7) + 25}", RIGHT),
        ("<answer>25+3*7</answer>", RIGHT),
        ("First 7*3=21, then\n21+25=46.\nSo the expression is 25 + (7 * 3).", RIGHT),
        ("The expression 25 + (7 * 3) uses each number once and equals 46.", RIGHT),
        ("**25+7*3 = 25+21 = 46**", RIGHT),
        (r"$\frac{25}{1}+3*7$", WRONG),  # there is no 1
        (r"\boxed{\frac{3*7+25}{8-7}}", WRONG),  # 7 twice
        (r"I tried 25+7*3, but \boxed{25+8+7+3}", WRONG),  # the box is what counts
        ("25+7*3=47", WRONG),  # an equation that does not hold
        ("25+21", WRONG),
        ("25+7*3+8-8", WRONG),
        ("46", WRONG),
        (r"\boxed{46}", WRONG),
        ("25/(8-8)", WRONG),
        ("9" * 50, NONE),
        ("There is none.", NONE),
        ("((((", NONE),
        ("2**5+14", NONE),  # powers are not allowed, and not computed
        ("__import__('os')", NONE),
        ("", NONE),
        (None, NONE),
    ],
)
def test_an_expression_is_graded_by_what_it_uses_and_what_it_makes(
    answer: str | None, verdict: Verdict
) -> None:
    assert check(answer, PUZZLE) is verdict


def test_a_number_may_be_used_as_often_as_it_is_given() -> None:
    assert check("5*5", "25 from [5, 5, 2]") is RIGHT
    assert check("5*5", "25 from [5, 2]") is WRONG
    assert check("5*5", "25 from [5, 5]") is RIGHT


@given(st.integers(0, 10**9), st.integers(2, 6))
def test_every_drawn_puzzle_is_solved_by_its_solution(seed: int, count: int) -> None:
    draw = random.Random(seed)
    drawn = None
    while drawn is None:
        drawn = draw_puzzle(draw, count, 25, (1, 1000))
    assert Puzzle.read(drawn.puzzle.gold()) == drawn.puzzle
    assert drawn.puzzle.solved_by(drawn.solution) is True
    assert drawn.puzzle.solved_by(f"{drawn.solution}+0") is False
    assert len(drawn.steps) == count - 1


@given(st.text(alphabet="0123456789+-*/()= \\{}fracboxed.", max_size=80))
def test_any_text_is_graded(answer: str) -> None:
    assert check(answer, PUZZLE) in (RIGHT, WRONG, NONE)


@given(st.text(max_size=60))
def test_other_golds_are_no_puzzles(gold: str) -> None:
    assert Puzzle.read(gold) is None or gold.strip().endswith("]")


def test_long_and_deep_answers_are_refused_quickly() -> None:
    deep = "(" * 150 + "46" + ")" * 150
    assert check(deep, PUZZLE) is WRONG
    assert check("(" * 100_000 + "1" + ")" * 100_000, PUZZLE) is NONE
    assert check("1+" * 100_000 + "1", PUZZLE) is NONE


def test_more_puzzles_than_exist_is_an_error() -> None:
    with pytest.raises(DataError, match="different problems exist; lower count"):
        problems("countdown", numbers=2, largest=5, min_target=10, max_target=12, count=50)


def test_a_problem_without_an_answer_of_its_own_is_its_gold() -> None:
    assert Problem("a", "p", "7").answer is None
