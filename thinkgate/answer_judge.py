"""Compares two answers that are not plain, and has the last word on them.

Owns the order of attempts: units aside, both are read by `latex` and compared by
`answer_shapes`; what that cannot read or decide goes to math-verify, whose yes is checked
numerically before it is believed. Runs in the answer worker only.
"""

import importlib
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from thinkgate import algebra, latex
from thinkgate.answer_shapes import matches, spread
from thinkgate.latex import Node
from thinkgate.units import Unit, read_unit

_UNIT_TEXT = re.compile(
    r"(?<=[0-9A-Za-z})!|\]])(?:\s*[/\\]?(?:cdot)?\s*\\(?:text|mbox|mathrm|textrm|textit|textnormal)"
    r"\s*\{[A-Za-z .,()~^0-9/-]*\}(?:\s*\^\s*\{?-?[0-9]\}?)?)+$"
)
"""Upright text behind a value is its unit, or a remark: nothing else is typeset so."""

_UPRIGHT = re.compile(r"\\(?:text|mbox|mathrm|textrm|textit|textnormal)\s*\{([^{}]*)\}")
_EXPONENT = re.compile(r"\^\s*\{?-?[0-9]\}?")
_CLAIMS_MORE = re.compile(r"\b(?:or|and|not)\b|[0-9]")
_UNIT_WORDS = re.compile(
    r"(?<=[0-9A-Za-z})!])\s+((?:(?:square|sq\.?|cubic)\s+)?[A-Za-z]{2,}(?:\s*\^\s*\{?[23]\}?)?)\.?$"
)
_UNIT_LETTER = re.compile(r"(?<=[0-9})])\s+[mgshlLJNWVKCA]$")
_ALL_REALS = re.compile(
    r"(?:x\s*\\in\s*)?\\mathbb\s*\{?R\}?|all real (?:numbers|x|values).*|all reals"
)
_FORMULA = re.compile(r"[\\^_+*=]|[(\[].*,")
_ANSWER_TAGS = re.compile(r"</?answer>")
_PROSE_OR_DELIMITER = re.compile(r"\$|\\boxed|\\[(\[]|#|\n|(?<![\\A-Za-z])[A-Za-z]{2}")
_IGNORED_WORDS = frozenset({"units", "unit", "degrees", "degree", "radians"})


class Judge:
    """Holds math-verify once loaded; `on_load` hears "loading" and "loaded" around its import."""

    def __init__(self, on_load: Callable[[str], None]) -> None:
        self._on_load = on_load
        self._math_verify: Any = None

    def compare(self, gold: str, answer: str, tolerance: float | None) -> str:
        """Return a verdict word: correct, wrong, bad_gold or error."""
        try:
            return self._compare(gold, answer, tolerance)
        except (algebra.TooLarge, latex.Refused):
            return "error"

    def second_opinion(self, gold: str, answer: str) -> str:
        """What math-verify alone says of two whole texts: it also picks the claim out of them."""
        library = self._load_math_verify()
        golds = library.parse(_delimited(gold), parsing_timeout=None)
        if not golds:
            return "bad_gold"
        bare = _ANSWER_TAGS.sub(" ", answer).strip()
        answers = library.parse(_delimited(bare), parsing_timeout=None)
        if not answers:
            return "no_answer"
        return "correct" if library.verify(golds, answers, timeout_seconds=None) else "wrong"

    def _compare(self, gold: str, answer: str, tolerance: float | None) -> str:
        # A dollar sign left here is a price's or a formula's broken in two: no part of the value.
        gold, answer = gold.replace("$", " "), answer.replace("$", " ")
        gold_tree, gold_unit = _read(gold, letters=False)
        answer_tree, answer_unit = _read(answer, letters=True)
        if gold_tree is not None and answer_tree is not None:
            factor = _unit_factor(gold_unit, answer_unit)
            if factor is None:
                return "wrong"
            if factor != 1 and algebra.is_expression(answer_tree):
                answer_tree = Node("*", (Node("number", value=factor), answer_tree))
            same = matches(gold_tree, answer_tree, tolerance)
            if same is not None:
                return "correct" if same else "wrong"
        elif gold_tree is not None and "\\" not in answer:
            return "wrong"  # not an expression, and no LaTeX that math-verify might know
        return self._ask_math_verify(gold, answer, gold_tree is not None)

    def _ask_math_verify(self, gold: str, answer: str, gold_is_readable: bool) -> str:
        library = self._load_math_verify()
        golds = _parse_with(library, gold)
        if not golds and not gold_is_readable:
            return "bad_gold"
        answers = _parse_with(library, answer)
        if not golds or not answers:
            return "wrong"
        if not library.verify(golds, answers, timeout_seconds=None):
            return "wrong"
        # It is known to take small numbers for zero; its yes must survive exact comparison.
        return "wrong" if _refuted(golds[0], answers[0]) else "correct"

    def _load_math_verify(self) -> Any:
        if self._math_verify is None:
            self._on_load("loading")
            import logging

            import math_verify  # pyright: ignore[reportMissingTypeStubs]

            logging.getLogger("math_verify").setLevel(logging.CRITICAL)
            self._math_verify = math_verify
            self._on_load("loaded")
        return self._math_verify


def _delimited(text: str) -> str:
    """A bare formula between dollar signs, where math-verify looks for formulas; else `text`."""
    bare = _FORMULA.search(text) and not _PROSE_OR_DELIMITER.search(text)
    return f"${text}$" if bare else text


def _parse_with(library: Any, text: str) -> list[Any]:
    """Parse `text` as one LaTeX formula: never let the library pick a number out of it."""
    config = library.LatexExtractionConfig(boxed_match_priority=-1)
    return library.parse(
        f"${text}$",
        extraction_config=[config],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )


def _refuted(gold: Any, answer: Any) -> bool:
    """Whether two sympy values accepted as equal differ, relative to their size."""
    sympy: Any = importlib.import_module("sympy")
    if isinstance(gold, sympy.core.relational.Relational):
        return bool(gold != answer)  # it compares equations by their sorted solutions: not enough
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return False
    names = sorted(gold.free_symbols | answer.free_symbols, key=str)
    point = {name: sympy.Rational(7 * i + 5, 3 * i + 4) for i, name in enumerate(names)}
    x, y = (sympy.N(side.doit().subs(point), 40) for side in (gold, answer))
    if not (x.is_number and y.is_number) or x.has(sympy.nan, sympy.zoo, sympy.oo):
        return False
    size = max(abs(x), abs(y))
    return bool(size > 0 and abs(x - y) > size * sympy.Float("1e-12"))


def _read(text: str, *, letters: bool) -> tuple[Node | None, Unit | None]:
    """Parse `text` without its trailing unit; the unit comes back when it is a known one."""
    if _ALL_REALS.fullmatch(text):
        text = r"(-\infty,\infty)"
    text, unit = _split_unit(text, letters)
    try:
        return spread(latex.parse(text)), unit
    except latex.Malformed:
        return None, unit


def _split_unit(text: str, letters: bool) -> tuple[str, Unit | None]:
    if match := _UNIT_TEXT.search(text):
        words = _UPRIGHT.sub(r"\1", match[0]).replace("~", " ").strip()
        if not _CLAIMS_MORE.search(_UPRIGHT.sub(r"\1", _EXPONENT.sub("", match[0]))):
            return text[: match.start()], read_unit(words)
    if match := _UNIT_WORDS.search(text):
        unit = read_unit(match[1])
        if unit is not None or match[1].lower() in _IGNORED_WORDS:
            return text[: match.start()], unit
    if letters and (match := _UNIT_LETTER.search(text)):
        return text[: match.start()], read_unit(match[0])
    return text, None


def _unit_factor(gold: Unit | None, answer: Unit | None) -> Fraction | None:
    """What turns the answer's unit into the gold's; None when they cannot be compared."""
    if gold is None or answer is None:
        return Fraction(1)
    return answer[1] / gold[1] if gold[0] == answer[0] else None
