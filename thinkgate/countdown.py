"""Countdown: make a number from others. Draws such puzzles and tells whether an answer solves one.

Many answers are right, so the gold is not one of them: it is the puzzle itself, such as
`46 from [3, 7, 25]`, which `answers.check` recognises. An expression is evaluated exactly, as
fractions, by a reader of its own that knows numbers, + - * / and brackets and nothing else.
"""

import random
import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import Self

from thinkgate.answer_text import How, extract

__all__ = ["Drawn", "Puzzle", "draw_puzzle"]

LONGEST = 400
"""Characters of an expression; no puzzle needs more."""


@dataclass(frozen=True, slots=True)
class Puzzle:
    """A target, and the numbers it is to be made from, each used once at most."""

    target: int
    numbers: tuple[int, ...]

    @classmethod
    def read(cls, gold: str) -> Self | None:
        """The puzzle a gold stands for; None for any other gold."""
        found = _GOLD.fullmatch(gold.strip())
        if found is None:
            return None
        return cls(int(found[1]), tuple(int(number) for number in found[2].split(",")))

    def gold(self) -> str:
        """The text `read` reads."""
        return f"{self.target} from [{', '.join(map(str, self.numbers))}]"

    def solved_by(self, answer: str | None) -> bool | None:
        """Whether the answer's expression makes the target from the numbers; None without one."""
        expression = _claimed(answer or "")
        if expression is None:
            return None
        used, value = expression
        return value == self.target and not Counter(used) - Counter(self.numbers)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A puzzle that can be solved, and one way to."""

    puzzle: Puzzle
    steps: tuple[str, ...]
    """One operation each, such as `25-3=22`."""

    solution: str
    """The same as one expression."""


def draw_puzzle(
    draw: random.Random, count: int, largest: int, targets: tuple[int, int]
) -> Drawn | None:
    """Numbers up to `largest` and a target between `targets` that all of them together make.

    Every intermediate value is a positive whole number, as in the game. None when what was drawn
    does not come out like that.
    """
    numbers = tuple(draw.randint(1, largest) for _ in range(count))
    parts = [(number, str(number), ATOM) for number in numbers]
    steps: list[str] = []
    while len(parts) > 1:
        joined = _join(draw, parts)
        if joined is None:
            return None
        steps.append(joined)
    value, text, _ = parts[0]
    if not targets[0] <= value <= targets[1] or value in numbers:
        return None
    return Drawn(Puzzle(value, numbers), tuple(steps), text)


SUM, PRODUCT, ATOM = range(3)
_Part = tuple[int, str, int]
"""A value, the expression that makes it, and how tightly that binds."""


def _join(draw: random.Random, parts: list[_Part]) -> str | None:
    """Replace two parts by what one operation makes of them; None when the one drawn cannot be."""
    draw.shuffle(parts)
    a, b = sorted(parts[:2], key=lambda part: -part[0])
    sign = draw.choice("+-*/")
    match sign:
        case "+":
            value = a[0] + b[0]
        case "-":
            value = a[0] - b[0]
        case "*":
            value = a[0] * b[0]
        case _:
            value = a[0] // b[0] if a[0] % b[0] == 0 and b[0] > 1 else 0
    if value <= 0 or (sign == "*" and b[0] == 1):
        return None
    kind = SUM if sign in "+-" else PRODUCT
    left = f"({a[1]})" if a[2] < kind else a[1]
    # What is taken away or divided by is taken as a whole.
    right = f"({b[1]})" if b[2] < kind + (sign in "-/") else b[1]
    parts[:2] = [(value, f"{left}{sign}{right}", kind)]
    return f"{a[0]}{sign}{b[0]}={value}"


_GOLD = re.compile(r"(-?[0-9]{1,9}) from \[([0-9]{1,9}(?:, [0-9]{1,9})*)\]")
_Value = tuple[list[int], Fraction | None]
"""The numbers an expression uses and what it comes to; None where it divides by zero."""


def _claimed(answer: str) -> _Value | None:
    """The expression an answer ends with; of one that boxes or tags something, only that."""
    found = extract(answer)
    if found is not None and found.how in (How.BOXED, How.ANSWER_TAG):
        return _read_equation(found.text)
    runs = [run for line in _plain(answer).splitlines() for run in _RUN.findall(line)]
    values = [value for run in reversed(runs) if (value := _read_equation(run)) is not None]
    # A lone number is what an expression comes to, unless nothing else was said.
    return next((value for value in values if len(value[0]) != 1), values[0] if values else None)


def _read_equation(text: str) -> _Value | None:
    """An expression, alone or with what it comes to on either side of an equals sign."""
    plain = _plain(text)
    if len(plain) > LONGEST:
        return None
    if plain.count(")") > plain.count("("):  # the end of a bracket in the sentence around it
        plain = plain.removesuffix(")")
    read = [_Reader(side).read() for side in plain.split("=")]
    sides = [side for side in read if side is not None]
    if len(sides) < len(read):
        return None
    if len({value for _, value in sides}) > 1:
        return [], None  # an equation that does not hold is no solution
    return max(sides, key=lambda side: len(side[0]))


_RUN = re.compile(r"[-(\s]*[0-9][-+*/()=0-9\s]*")
_FRACTION = re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_SPELLINGS = str.maketrans(
    {"\u00d7": "*", "\u22c5": "*", "\u00b7": "*", "\u00f7": "/", "\u2212": "-", "[": "(", "]": ")"}
)


def _plain(text: str) -> str:
    text = _FRACTION.sub(r"((\1)/(\2))", text)
    text = re.sub(r"\\(?:times|cdot)(?![A-Za-z])", "*", text)
    text = re.sub(r"\\div(?![A-Za-z])", "/", text)
    text = re.sub(r"\\(?:left|right)(?![A-Za-z])|\\[()\[\],;! ]", "", text)
    return text.replace("$", "").translate(_SPELLINGS).strip(" \t.`*_;,")


class _Reader:
    """A recursive descent over `sum := product (+- product)*`, and so on down to numbers."""

    def __init__(self, text: str) -> None:
        self._tokens = re.findall(r"[0-9]{1,9}|[^\s0-9]", text)
        self._at = 0
        self._used: list[int] = []

    def read(self) -> _Value | None:
        """None when the text is anything but one expression."""
        try:
            value = self._sum()
        except (_NotRead, RecursionError):
            return None
        except ZeroDivisionError:
            return self._used, None
        return (self._used, value) if self._at == len(self._tokens) else None

    def _sum(self) -> Fraction:
        value = self._product()
        while (sign := self._take("+", "-")) is not None:
            other = self._product()
            value = value + other if sign == "+" else value - other
        return value

    def _product(self) -> Fraction:
        value = self._factor()
        while True:
            sign = self._take("*", "/")
            if sign is None and not self._next_is("("):  # 3(4+1) is a product
                return value
            other = self._factor()
            value = value / other if sign == "/" else value * other

    def _factor(self) -> Fraction:
        if self._take("-") is not None:
            return -self._factor()
        if self._take("(") is not None:
            value = self._sum()
            if self._take(")") is None:
                raise _NotRead
            return value
        token = self._tokens[self._at] if self._at < len(self._tokens) else ""
        if not (token.isascii() and token.isdigit()):
            raise _NotRead
        self._at += 1
        self._used.append(int(token))
        return Fraction(self._used[-1])

    def _next_is(self, token: str) -> bool:
        return self._at < len(self._tokens) and self._tokens[self._at] == token

    def _take(self, *wanted: str) -> str | None:
        if self._at < len(self._tokens) and self._tokens[self._at] in wanted:
            self._at += 1
            return self._tokens[self._at - 1]
        return None


class _NotRead(Exception):
    """The text is no expression."""
