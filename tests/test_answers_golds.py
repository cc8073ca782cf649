"""Gold answers of every shape the benchmarks use: each is itself, and nothing one digit away.

`bench/verifier.py --data-dir DIR` runs the same two checks over the real data sets.
"""

import pytest

from thinkgate.answers import Verdict, check

GOLDS = [
    # GSM8K, AIME, AMC
    "72", "5,280", "1,250,000", "-14", "073", "27.0", "0",
    # MATH: numbers
    "0.35", ".0000481", "7.25", "26,\\!400", "14,\\! 222,\\! 333,\\! 500", "\\$24,\\!615",
    "\\$7.35",
    "\\frac{17}{6}", "\\frac58", "\\frac 47", "\\frac7{23}", "-\\frac{9}{16}",
    "\\dfrac{13}{40}",
    "2\\frac{3}{7}", "218 \\frac{1}{4}", "36^\\circ", "64_7", "3104_{5}", "4212_6",
    "\\frac{310}9\\text{ degrees}", "6.2 \\text{ cents}", "24\\mbox{ cm}^3",
    "735 \\mbox{ inches}^2",
    # MATH: radicals, constants, complex
    "5\\sqrt{17}", "13\\sqrt3", "40 \\sqrt{2}", "\\frac{5\\sqrt{3}}{8}", "1+3\\sqrt{7}", "\\pi",
    "34 \\pi", "21+4\\pi", "\\frac{30000}{\\pi}", "4 - 7i", "2+158i", "-\\frac{\\pi}{3}",
    # MATH: expressions and equations
    "p + 3q", "x^3+5x-8", "7r^5", "(a+4)(b+3)", "\\frac{13+7a}{30}", "\\tan x", "3k+4",
    "9n^2 + 6n + 2",
    "x=8", "y = 4x + 7", "3x - 5y + 8z + 6 = 0", "x^4 - x^3 + x^2 - x + 1",
    # MATH: several values
    "3,-4", "2, 4, 9", "5 \\pm \\sqrt{23}", "4 \\pm 3 \\sqrt{2}", "\\{2\\pm\\sqrt{7},-3\\}",
    "(7,22,-5)", "\\left( \\frac{7}{2}, -11 \\right)", "\\left( 4, \\frac{\\pi}{3} \\right)",
    "(4,7]", "(-\\infty, 3]", "(6,\\infty)", "\\left(\\frac{2}{7},\\frac{9}{4}\\right]",
    "[-3,8]",
    "(0,4) \\cup (4,25)", "(-\\infty, 1) \\cup (6, \\infty)", "x \\in [-4,9]",
    "(-\\sqrt{2}, \\sqrt{2})",
    "\\left[ \\frac{\\pi^2}{6}, \\frac{7 \\pi^2}{3} \\right]",
    "\\begin{pmatrix} -2/5 \\\\ 3/5 \\\\ 7/5 \\end{pmatrix}",
    "\\begin{pmatrix} 2 & 0 \\\\ 0 & -3 \\end{pmatrix}",
    # MATH: words
    "\\text{Nadia}", "\\text{odd}", "\\text{hyperbola}", "\\text{north}", "\\text{(D)}",
    "\\text{A}",
    # Minerva
    "4.1e35", "7.2e-19", "1.60e4", "\\arcsin{1.4 \\sin{\\theta_w}}", "np.arcsin(7/13)", "-1./3",
    "I(0) e^{-\\frac{t}{R C}}", "\\frac{1}{\\sqrt{2}}c", "x_{0} \\cos (\\omega t)+2",
    "\\frac{e^{t}} {5}+c e^{-3 t}", "y^{\\prime}+r y-r x(t)=0", "m \\frac{d v}{d t}+b v=f",
    "\\frac{2 \\pi c^{2} R^{2}}{\\lambda^{3}\\left[e^{h c /(\\lambda k T)}-1\\right] d^{2}}",
    "\\left[P_{0}^{3 / 5}-\\frac{3}{5} g K^{-2 / 5} z\\right]^{5 / 3}",
    "\\hbar \\omega(v+1 / 2)",
    "E_{1},E_{2}", "MR=SRMC", "\\ln 3 + i\\pi / 4", "(1 - 2e^{-3t} + 3e^{-4t}) u(t)", "6.4 Z",
]  # fmt: skip


@pytest.mark.parametrize("gold", GOLDS)
def test_a_gold_is_itself(gold: str) -> None:
    for answer in (gold, f"Therefore $\\boxed{{{gold}}}$.", f"<answer>{gold}</answer>"):
        assert check(answer, gold) is Verdict.CORRECT


@pytest.mark.parametrize("gold", GOLDS)
def test_a_gold_with_one_digit_changed_is_wrong(gold: str) -> None:
    places = [i for i, character in enumerate(gold) if character in "0123456789"]
    changed = [gold[:i] + ("7" if gold[i] != "7" else "4") + gold[i + 1 :] for i in places]
    # Without a digit, a letter more or a term more.
    changed = changed or [gold[:-1] + "q}" if gold.endswith("}") else gold + "+q"]
    for answer in changed:
        assert check(f"\\boxed{{{answer}}}", gold) is Verdict.WRONG


def test_no_gold_is_another() -> None:
    pairs = [(a, b) for i, a in enumerate(GOLDS) for b in GOLDS[i + 1 :: 7]]
    assert len(pairs) > 500
    for a, b in pairs:
        assert check(f"\\boxed{{{a}}}", b) is Verdict.WRONG, (a, b)
