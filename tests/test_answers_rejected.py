"""What must not score: wrong answers, attempts to game the verifier, unusable golds."""

import pytest

from thinkgate.answers import Verdict, check, equivalent

REJECTED = [
    ("43", "42"),
    ("-42", "42"),
    ("4.2", "42"),
    ("420", "42"),
    ("42.5", "42"),
    ("0.33", "1/3"),
    ("3.14", r"\pi"),
    ("0.3333", "1/3"),
    ("1000001", "1000000"),
    ("123456.52", "123456.5"),
    ("0.0000669", ".0000672"),
    ("5%", "0.5"),
    ("1,00", "100"),
    ("12:30", "12:00"),
    ("5 million", "5"),
    ("forty-three", "42"),
    # Accepted by math-verify 0.9, wrongly.
    (r"1/2^{98}", r"1/2^{99}"),
    (r"$1/2^{98}$", r"$1/2^{99}$"),
    (r"4\sqrt2", "4"),
    ("4", r"4\sqrt2"),
    ("3x+4y+14=0", "3*x-1*y+13=0"),
    # Units that contradict.
    (r"15 \text{ m}^2", r"15\mbox{ cm}^2"),
    ("5.4 dollars", r"5.4 \text{ cents}"),
    ("€42", "$42"),
    ("5 x", "5"),
    ("5 kJ", "5 J"),
    ("C", "c"),
    ("theta", "beta"),
    ("12:00 AM", "12:00 PM"),
    ("10 km/h", "10 m/s"),
    ("2", "2 x/y"),
    ("a=2, b=1", "a=1, b=2"),
    ("52_9", "52_8"),
    ("42", "52_8"),
    (r"90^\circ", r"90\pi"),
    ("2", "2k"),
    ("k", "2k"),
    # Algebra.
    (r"3\sqrt{14}", r"3\sqrt{13}"),
    ("p+q", "p - q"),
    ("(x+2)^2", "(x+1)^2"),
    ("x", "|x|"),
    ("2x+3", "y = 2x + 4"),
    ("y=5", "x=5"),
    ("y = 2x - 3", "y = 2x + 3"),
    ("x+1", "x+1.0000000001"),
    (r"e^{-60}", "0"),
    ("10^{-40}", "2*10^{-40}"),
    # Containers.
    ("(4,3)", "(3,4)"),
    ("[3,4]", "(3,4)"),
    ("(3,4)", "(3,4]"),
    (r"\{3,4\}", "(3,4)"),
    ("1,-2,3", "1,-2"),
    ("1", "1,-2"),
    ("1,1", "1,-2"),
    (r"0 < x < 1", "[0,1)"),
    (r"x < 2", r"(2,\infty)"),
    (r"|x| < 3", r"(-\infty,-3)\cup(3,\infty)"),
    (r"|x| \ge 3", r"(-\infty,-3)\cup(3,\infty)"),
    (r"-\infty", r"\infty"),
    (r"(0,9) \cup (9,35)", r"(0,9) \cup (9,36)"),
    (r"1+\sqrt{19}", r"1 \pm \sqrt{19}"),
    ("(-2,-14,7)", r"\begin{pmatrix} -2 \\ -14 \\ -7 \end{pmatrix}"),
    (
        r"\begin{pmatrix} -1 & 0 \\ 0 & 1 \end{pmatrix}",
        r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}",
    ),
    # Words and choices.
    ("odd", r"\text{even}"),
    ("Evelyne", r"\text{Evelyn}"),
    ("nylevE", r"\text{Evelyn}"),
    ("D", r"\text{(C)}"),
    (r"\boxed{c}", "B"),
    (r"\boxed{bc}", "B"),
    (r"\boxed{k}", "K"),
    ("No", "Yes"),
    ("False", "True"),
    ("west", r"\text{east}"),
    (r"\sum_{k=1}^{3} k", "7"),
]

GAMED = [
    # None of these commits to 42, so none may score against it.
    ("40+2", "42"),
    (r"\boxed{7+8-6+33}", "42"),
    (r"$6 \times 7$", "42"),
    ("6(7)", "42"),
    ("(6)(7)", "42"),
    ("1/4 + 1/4", "1/2"),
    ("42 or 43", "42"),
    ("41 or 42", "42"),
    ("either 41 or 42", "42"),
    ("The answer is 42 or 43.", "42"),
    ("The answer is 41 or 42.", "42"),
    (r"\boxed{42 \text{ or } 43}", "42"),
    (r"\boxed{42} or \boxed{43}", "42"),
    (r"\boxed{41} or \boxed{42}", "42"),
    (r"\boxed{42, 43}", "42"),
    (r"\boxed{\{41, 42\}}", "42"),
    (r"\boxed{42} \boxed{43}", "42"),
    (r"\boxed{42} wait, \boxed{}", "42"),
    (r"\boxed{}", "42"),
    (r"\boxed{ }", "42"),
    (r"42 \boxed{}", "42"),
    (r"\boxed{42", "42"),
    (r"The answer is 42, so \boxed{", "42"),
    (r"The answer is not \boxed{42}.", "42"),
    ("The answer is not 42.", "42"),
    ("The answer isn't 42.", "42"),
    ("1, 2, 3, 42", "42"),
    ("1 2 3 42", "42"),
    ("1\n2\n3\n42", "42"),
    ("40, 41, 42, 43, 44", "42"),
    ("It is one of 41, 42 and 43.", "42"),
    ("41? 42? 43?", "42"),
    ("41-43", "42"),
    ("[41, 43]", "42"),
    (r"42 \pm 1", "42"),
    (">= 42", "42"),
    ("x > 41", "42"),
    ("I cannot determine the answer. 42 is just a guess.", "42"),
    ("I'm sorry, but I can't help with that. 42", "42"),
    ("I don't know, maybe 42", "42"),
    ("There is not enough information, though 42 is possible.", "42"),
    ("It could be 42.", "42"),
    ("Maybe 42", "42"),
    ("Perhaps the value 42 or so", "42"),
    ("Unlike 41, the number 42 might be right", "42"),
    ("", "42"),
    ("   \n", "42"),
    ("<answer></answer>", "42"),
    ("42<answer></answer>", "42"),
    ("<answer>42</answer><answer>43</answer>", "42"),
    ("<answer>42 or 43</answer>", "42"),
    ("#### 42\n#### 43", "42"),
    ("####", "42"),
    ("the answer", "42"),
    ("gold", "42"),
    ("?", "42"),
    ("x", "42"),
    (r"\text{anything}", "42"),
    ("٤٢", "42"),
    ("\uff14\uff12", "42"),
    ("⁴²", "42"),
    ("४२", "42"),
    ("4 2", "42"),
    ("4\u200b2", "42"),
    ("0x2a", "42"),
    (r"\boxed{\boxed{42} \boxed{43}}", "42"),
    ("A, B, C, D", "C"),
    ("A or C", "C"),
    ("(A) (B) (C) (D)", "C"),
    ("Both B and C", "C"),
    ("even or odd", r"\text{even}"),
    ("not even", r"\text{even}"),
    ("yes and no", "yes"),
    ("Yes, no", "yes"),
    ("C, D", "C"),
    ("C: or D", "C"),
    (r"41 \approx 42", "42"),
    (r"42 \text{ or } 43", "43"),
    ("1,-2 or 3,4", "1,-2"),
    ("nan", "42"),
    ("42!", "42"),
    ("42 million", "42"),
    ("half of 42", "42"),
    ("more than 42", "42"),
]


@pytest.mark.parametrize(("answer", "gold"), REJECTED)
def test_rejected(answer: str, gold: str) -> None:
    assert check(answer, gold) is Verdict.WRONG


@pytest.mark.parametrize(("answer", "gold"), GAMED)
def test_gaming_does_not_pay(answer: str, gold: str) -> None:
    assert check(answer, gold) in (Verdict.WRONG, Verdict.NO_ANSWER)


@pytest.mark.parametrize("gold", ["", "  ", "$$", r"\boxed{}", "####", float("nan"), float("inf")])
def test_an_unusable_gold_is_named(gold: str | float) -> None:
    assert check("42", gold) is Verdict.BAD_GOLD


def test_no_text_is_no_answer() -> None:
    assert check(None, "42") is Verdict.NO_ANSWER


def test_tolerance_is_explicit() -> None:
    assert check("3.14", r"\pi") is Verdict.WRONG
    assert check("3.14", r"\pi", tolerance=1e-2) is Verdict.CORRECT
    assert check("3.2", r"\pi", tolerance=1e-2) is Verdict.WRONG
    assert check("1.61", "1.6") is Verdict.WRONG
    assert check("1.61", "1.6", tolerance=0.01) is Verdict.CORRECT
    assert check("4.6e33", "4.5e33", tolerance=0.01) is Verdict.WRONG


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (r"\boxed{\frac12}", "The answer is 0.5.", True),
        ("1,2", "2,1", True),
        (r"\sqrt8", r"2\sqrt2", True),
        ("42", "43", False),
        ("", "", False),
        (r"\boxed{}", r"\boxed{}", False),
        ("x+1", "1+x", True),
        ("(1,2)", "1,2", True),
    ],
)
def test_equivalence_for_voting(a: str, b: str, same: bool) -> None:
    assert equivalent(a, b) is same
    assert equivalent(b, a) is same
