"""What must hold for every answer, not just for the ones in the table."""

from fractions import Fraction
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from thinkgate.answers import Extracted, Verdict, check, equivalent, extract

SETTINGS = settings(suppress_health_check=[HealthCheck.too_slow], max_examples=100)

FRAMES = [
    "{}",
    "{}.",
    "${}$",
    "**{}**",
    "#### {}",
    "The answer is {}.",
    "The answer is ${}$.",
    "**Answer:** {}",
    "\\boxed{{{}}}",
    "Some steps, 1 + 1 = 2.\n\n$$\\boxed{{{}}}$$",
    "<answer>{}</answer>",
    "<answer>\\boxed{{{}}}</answer>",
    "We get x = {}",
]

integers = st.integers(-(10**12), 10**12)


def written(n: int) -> st.SearchStrategy[str]:
    plain = [str(n), f"{n:,}", f"{n}.0", f"{n}.00", f"{2 * n}/2", f"\\frac{{{3 * n}}}{{3}}"]
    return st.sampled_from(plain)


@SETTINGS
@given(st.data(), integers, st.sampled_from(FRAMES))
def test_an_integer_is_itself_in_every_frame(data: st.DataObject, n: int, frame: str) -> None:
    answer = frame.format(data.draw(written(n)))
    assert check(answer, n) is Verdict.CORRECT
    assert check(answer, str(n)) is Verdict.CORRECT
    assert check(answer, f"{n:,}") is Verdict.CORRECT


@SETTINGS
@given(st.data(), integers, integers, st.sampled_from(FRAMES))
def test_an_integer_is_no_other(data: st.DataObject, n: int, other: int, frame: str) -> None:
    if n != other:
        assert check(frame.format(data.draw(written(n))), other) is Verdict.WRONG


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> tuple[str, Fraction]:
    """LaTeX of a rational expression, and its value computed apart from it."""
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        n = draw(st.integers(0, 30))
        return str(n), Fraction(n)
    (a, x), (b, y) = draw(expressions(depth - 1)), draw(expressions(depth - 1))
    match draw(st.sampled_from("+-*/^")):
        case "+":
            return f"{a} + \\left({b}\\right)", x + y
        case "-":
            return f"{a} - ({b})", x - y
        case "*":
            return f"({a}) \\cdot ({b})", x * y
        case "/" if y != 0:
            return f"\\frac{{{a}}}{{{b}}}", x / y
        case "^" if abs(x) < 100:
            return f"({a})^{{2}}", x * x
        case _:
            return f"\\left({a}\\right)({b})", x * y


@SETTINGS
@given(expressions(), st.fractions(max_denominator=50).filter(bool))
def test_arithmetic_is_exact(expression: tuple[str, Fraction], error: Fraction) -> None:
    text, value = expression
    assert check(str(value), text) is Verdict.CORRECT
    # The other way round it is arithmetic left undone, unless something is to be solved for.
    text = f"x + ({text})"
    assert check(text, f"x + ({value})") is Verdict.CORRECT
    wrong = value + error * Fraction(1, 10**9)
    assert check(f"\\boxed{{{text}}}", f"x + ({wrong})") is Verdict.WRONG


@SETTINGS
@given(st.lists(st.integers(0, 99), min_size=2, max_size=6), st.sampled_from(FRAMES), st.data())
def test_a_question_copied_is_no_answer_to_it(
    terms: list[int], frame: str, data: st.DataObject
) -> None:
    signs = data.draw(st.lists(st.sampled_from("+-"), min_size=len(terms), max_size=len(terms)))
    chain = str(terms[0]) + "".join(s + str(t) for s, t in zip(signs, terms[1:], strict=False))
    value = terms[0] + sum(t if s == "+" else -t for s, t in zip(signs, terms[1:], strict=False))
    assert check(frame.format(chain), value) is not Verdict.CORRECT


@SETTINGS
@given(st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 5), st.integers(1, 9))
def test_a_polynomial_expanded_or_factored(a: int, b: int, c: int, off: int) -> None:
    factored = f"{c}(x - {a})(x - {b})" if a >= 0 and b >= 0 else f"{c}(x-({a}))(x-({b}))"
    expanded = f"{c}x^2 + ({-c * (a + b)})x + ({c * a * b})"
    assert check(expanded, factored) is Verdict.CORRECT
    assert check(f"y = {expanded}", f"y = {factored}") is Verdict.CORRECT
    assert check(f"{expanded} + {off}", factored) is Verdict.WRONG


@SETTINGS
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=5, unique=True), st.randoms())
def test_order_matters_in_tuples_only(values: list[int], random: Any) -> None:
    shuffled = values.copy()
    random.shuffle(shuffled)
    bare, shuffled_bare = (", ".join(map(str, some)) for some in (values, shuffled))
    assert check(f"\\boxed{{{shuffled_bare}}}", bare) is Verdict.CORRECT
    assert check(f"\\{{{shuffled_bare}\\}}", f"\\{{{bare}\\}}") is Verdict.CORRECT
    wanted = Verdict.CORRECT if values == shuffled else Verdict.WRONG
    assert check(f"({shuffled_bare})", f"({bare})") is wanted


# fmt: off
FRAGMENTS = st.sampled_from([
    "\\boxed{", "}", "{", "\\frac", "\\sqrt", "42", "-", "/", "^", "_", "$", "$$", "\\(", "\\)",
    "####", "<answer>", "</answer>", "**", "'", ".", "~", "\\text{", ",", ";", "(", ")", "[", "]",
    "\\{", "\\}", "|", "=", "<", "\\le", "\\cup", "\\pm", "\\infty", "x", "\\pi", "e", "i", "!",
    "%", "^\\circ", ":", "\\begin{pmatrix}", "\\end{pmatrix}", "&", "\\\\", "1,000", "\\log",
    "\\sin", "answer", "is", "or", "and", "not", "\n", "\u2212", "\u0664", "\U0001d7d2", "\u200b",
    '"', "\u00b2", "\u221a",
])
# fmt: on


@SETTINGS
@given(
    st.one_of(st.text(max_size=200), st.lists(FRAGMENTS, max_size=25).map(" ".join)),
    st.one_of(st.text(max_size=30), st.lists(FRAGMENTS, max_size=8).map("".join), st.floats()),
)
@example("\ud800", "\ud800")
@example("\x00", "0")
def test_no_text_breaks_it(answer: str, gold: str | float) -> None:
    assert check(answer, gold, timeout=2.0) in set(Verdict)
    found = extract(answer)
    assert found is None or (isinstance(found, Extracted) and found.text.strip() == found.text)


@SETTINGS
@given(st.lists(FRAGMENTS, max_size=25).map(" ".join))
def test_a_text_that_never_says_a_number_never_scores_it(answer: str) -> None:
    assert check(answer.replace("42", "41"), "9173") is not Verdict.CORRECT


@SETTINGS
@given(
    st.lists(st.sampled_from(["1/2", "0.5", "\\frac12", "x+1", "1+x", "2,1", "1,2", "(1,2)", "7"]))
)
def test_equivalence_is_symmetric_and_groups_the_same(answers: list[str]) -> None:
    for a in answers:
        assert equivalent(a, a)
        for b in answers:
            assert equivalent(a, b) is equivalent(b, a)
