"""One meaning of "correct": compares the final answer of a text with the gold.

Owns the verdict. Plain quantities and texts are settled here in microseconds; expressions go to
`answer_pool`, whose processes own algebra and math-verify and are killed when they overrun.
Knows nothing about reasoning: callers pass the answer part of a completion
(`format.split(...).answer`) and only that is graded.
"""

import math
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from thinkgate import quantities
from thinkgate.answer_pool import shared_pool
from thinkgate.answer_text import Extracted, How, extract, tidy
from thinkgate.countdown import Puzzle
from thinkgate.latex_tokens import CONSTANTS, FUNCTIONS, GREEK
from thinkgate.quantities import Quantity

__all__ = [
    "Extracted",
    "How",
    "Verdict",
    "check",
    "check_many",
    "equivalent",
    "extract",
    "second_opinion",
]

MAX_EXPRESSION = 4000
"""Characters of a claim that is not plain; longer is refused (ERROR), not parsed."""


class Verdict(StrEnum):
    """What grading one answer came to. Only CORRECT and WRONG are statements about the answer."""

    CORRECT = "correct"

    WRONG = "wrong"

    NO_ANSWER = "no_answer"
    """The text makes no claim: empty, truncated, a refusal, or several candidates unchosen."""

    BAD_GOLD = "bad_gold"
    """The reference itself is empty or unreadable: nothing can be said about the answer."""

    ERROR = "error"
    """Comparing took too long, too much memory, or is refused for its size. Never a WRONG."""


@dataclass(slots=True)
class _Gold:
    text: str
    key: str
    quantity: Quantity | None
    words: str | None
    choice: str | None
    clock: re.Match[str] | None
    integer: int | None = None
    puzzle: Puzzle | None = None


def check(
    answer: str | None,
    gold: str | int | float,
    *,
    timeout: float = 5.0,
    tolerance: float | None = None,
) -> Verdict:
    """Grade the answer part of a completion against `gold`; never raises on any text.

    `timeout` bounds the seconds of CPU time one comparison may take (wall-clock: four times
    that). `tolerance` is relative and off by default: 3.14 is not π unless asked for. A gold may
    be a whole reference solution that ends in `#### 42` or `\\boxed{42}`.
    """
    outcome = _quick(answer, gold, tolerance)
    if isinstance(outcome, Verdict):
        return outcome
    return _ask_pool(outcome, tolerance, timeout)


def check_many(
    pairs: Iterable[tuple[str | None, str | int | float]],
    *,
    workers: int = 1,
    timeout: float = 5.0,
    tolerance: float | None = None,
) -> list[Verdict]:
    """Grade many (answer, gold) pairs in order, up to `workers` hard comparisons at a time."""
    outcomes = [_quick(answer, gold, tolerance) for answer, gold in pairs]

    def settle(outcome: Verdict | _Pair) -> Verdict:
        return outcome if isinstance(outcome, Verdict) else _ask_pool(outcome, tolerance, timeout)

    if workers <= 1:
        return [settle(outcome) for outcome in outcomes]
    shared_pool().grow(workers)
    hard = [i for i, outcome in enumerate(outcomes) if not isinstance(outcome, Verdict)]
    with ThreadPoolExecutor(workers) as threads:
        for i, verdict in zip(hard, threads.map(settle, (outcomes[i] for i in hard)), strict=True):
            outcomes[i] = verdict
    return [settle(outcome) for outcome in outcomes]


def equivalent(a: str, b: str, *, timeout: float = 5.0) -> bool:
    """Whether two answers claim the same thing: the relation majority voting counts with.

    An answer without a claim is equivalent to nothing, itself included. `timeout` is that of
    `check`; two answers that take longer to compare count as different.
    """
    first, second = extract(a), extract(b)
    if first is None or second is None:
        return False
    if first.text == second.text:
        return True
    for gold, answer in ((first.text, second.text), (second.text, first.text)):
        reference = _read_gold(gold)
        if reference is None:
            continue
        outcome = _compare(answer, reference, None)
        if not isinstance(outcome, Verdict):
            outcome = _ask_pool(outcome, None, timeout)
        if outcome is Verdict.CORRECT:
            return True
    return False


def second_opinion(answer: str | None, gold: str | int | float, *, timeout: float = 5.0) -> Verdict:
    """Grade with math-verify alone, which shares no code with `check` but the killable processes.

    For looking at a run whose reward is `check`: where the two part, the reward is being gamed.
    BAD_GOLD is also a gold math-verify cannot read, such as a word. Of a long text the end is read.
    """
    reference = str(gold).strip()[-MAX_EXPRESSION:]
    if not reference:
        return Verdict.BAD_GOLD
    if answer is None or not answer.strip():
        return Verdict.NO_ANSWER
    return _ask_pool((answer.strip()[-MAX_EXPRESSION:], reference), None, timeout, alone=True)


@lru_cache(maxsize=4096, typed=True)
def _read_gold(gold: str | int | float) -> _Gold | None:
    if isinstance(gold, float):
        if not math.isfinite(gold):
            return None
        gold = int(gold) if gold.is_integer() else repr(gold)
    text = str(gold).strip()
    if _INTEGER.fullmatch(text):
        value = int(text)
        return _Gold(text, text, Quantity(value), None, None, None, value)
    if "\\boxed" in text or "####" in text or "<answer>" in text:
        found = extract(text)
        text = found.text if found else ""
    puzzle = Puzzle.read(text)
    text = tidy(text)
    if not text or len(text) > MAX_EXPRESSION:
        return None
    return _Gold(
        text=text,
        key=_key(text),
        quantity=_quantity(text),
        words=_words(text) if _is_worded(text) else None,
        choice=_choice(text),
        clock=_clock(text),
        puzzle=puzzle,
    )


_Pair = tuple[str, str]
"""An answer and a gold, both tidied, that only algebra can compare."""


def _quick(answer: str | None, gold: str | int | float, tolerance: float | None) -> Verdict | _Pair:
    """The verdict, when it takes no algebra; otherwise the pair of expressions to compare."""
    reference = _read_gold(gold)
    if reference is None:
        return Verdict.BAD_GOLD
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance must be a number of at least 0, not {tolerance}")
    if (
        tolerance is None
        and answer is not None
        and reference.integer is not None
        and _INTEGER.fullmatch(answer)
    ):
        return _verdict(int(answer) == reference.integer)
    if reference.puzzle is not None:
        solved = reference.puzzle.solved_by(answer)
        return Verdict.NO_ANSWER if solved is None else _verdict(solved)
    found = extract(answer)
    return Verdict.NO_ANSWER if found is None else _compare(found.text, reference, tolerance)


def _compare(text: str, gold: _Gold, tolerance: float | None) -> Verdict | _Pair:
    text = tidy(text)
    if text == gold.text:
        return Verdict.CORRECT
    if not text:
        return Verdict.NO_ANSWER
    if gold.quantity is not None:
        quantity = _quantity(text, letters=True)
        if quantity is None and gold.quantity.places and _DECIMAL_COMMA.fullmatch(text):
            # 3,14 for 3.14: a list of two whole numbers could not be right here anyway.
            quantity = quantities.read(text.replace(",", "."))
        if quantity is not None:
            return _verdict(quantities.same(gold.quantity, quantity, tolerance))
        if _left_undone(text):
            return Verdict.WRONG
    # Beside an option a lone `b` is an option; as a gold it is a variable, and `B` another.
    if gold.choice is not None and (choice := _choice(text, small=True)) is not None:
        return _verdict(choice == gold.choice)
    if gold.words is not None:
        return _verdict(_says(text, gold.words))
    if gold.clock is not None:
        return _verdict(_same_clock(gold.clock, _clock(text)))
    if len(text) > MAX_EXPRESSION:
        return Verdict.ERROR
    if _key(text) == gold.key or _same_text(text, gold.text):
        return Verdict.CORRECT
    return text, gold.text


class _Unsettled(Exception):
    """No verdict this time; raised so that `lru_cache` forgets it and a longer limit may help."""


def _ask_pool(
    pair: _Pair, tolerance: float | None, timeout: float, *, alone: bool = False
) -> Verdict:
    if not timeout > 0:
        raise ValueError(f"timeout must be a positive number of seconds, not {timeout}")
    try:
        return _settle(pair, tolerance, timeout, alone)
    except _Unsettled:
        return Verdict.ERROR


@lru_cache(maxsize=2048)
def _settle(pair: _Pair, tolerance: float | None, timeout: float, alone: bool) -> Verdict:
    """Remembered, because the answers of one GRPO group repeat each other."""
    answer, gold = pair
    job = {"answer": answer, "gold": gold, "tolerance": tolerance, "alone": alone}
    word = shared_pool().compare(job, timeout)
    if word is None or word == Verdict.ERROR:
        raise _Unsettled
    return Verdict(word)


def _verdict(correct: bool) -> Verdict:
    return Verdict.CORRECT if correct else Verdict.WRONG


def _key(text: str) -> str:
    """The expression without spacing and optional braces: equal keys are the same expression."""
    text = re.sub(r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"([_^])\{([0-9A-Za-z])\}", r"\1\2", text)
    return re.sub(r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])", "", text)


_INTEGER = re.compile(r"-?[0-9]{1,18}")
"""The whole of most answers and most golds, and so the fastest path."""

_LATEX_PRODUCT = re.compile(r"\\(?:cdot|times|div)(?![A-Za-z])|[×÷·]")  # noqa: RUF001
_ARITHMETIC = re.compile(r"[0-9 .,()+*/-]+")
_OPERATOR = re.compile(r"[0-9)]\s*(?:[+*-]\s*[0-9(.+-]|\()")
_DECIMAL_COMMA = re.compile(r"-?[0-9]+,[0-9]+")
_TEXT = re.compile(
    r"\\(?:text|mbox|mathrm|textbf|textit|textrm|textnormal|mathbf|boldsymbol|underline)"
    r"\s*\{([^{}]*)\}"
)
_PROSE = re.compile(r"(?=.*[^\W\d_]{2})[^\W\d_](?:[^\W\d_]|[ ,'.-])*")
_LONG_WORD = re.compile(r"[^\W\d_]{4}")
_MATH_WORDS = FUNCTIONS | GREEK | frozenset(CONSTANTS)
_OPPOSITE = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?\s*(?:([aApP])\.?[mM]\.?)?")
_ARTICLE = re.compile(r"^(?:the|an?)\s+")
_CHOICE = re.compile(
    r"(?:(?i:option|choice|answer)\s+)?"
    r"(?:\(([A-Ja-j])\)(?=\W|$)|([A-J])\s*[).:,](?=\s|$)|([A-J])$)(.*)",
    re.DOTALL,
)
_SMALL_CHOICE = re.compile(r"[a-j]\s*[).:]?")
_SECOND_CHOICE = re.compile(r"\([A-Ja-j]\)|(?:^|[\s,;/])[A-J](?:[\s,;/.):]|$)")


def _quantity(text: str, *, letters: bool = False) -> Quantity | None:
    if "\\" in text:
        text = _TEXT.sub(r" \1 ", text).strip()
    return quantities.read(text, letters=letters)


def _is_worded(gold: str) -> bool:
    """Whether a gold is words, not algebra: `abc` may be a product, `Evelyn` and `Yes` are not."""
    if gold in _MATH_WORDS:
        return False
    wrapped = _TEXT.search(gold) is not None
    return wrapped or gold.casefold() in _OPPOSITE or _LONG_WORD.search(gold) is not None


def _words(text: str) -> str | None:
    """The text of a worded answer, case and wrapping aside; None when it is not words."""
    plain = _TEXT.sub(r"\1", text).strip(" .\"'()")
    if not _PROSE.fullmatch(plain):
        return None
    return _ARTICLE.sub("", " ".join(plain.casefold().split()))


def _same_text(a: str, b: str) -> bool:
    """`red` and `Red` are one word, `January 5` one date; `ab` and `AB` may be two products."""
    if a.casefold() != b.casefold() or "\\" in a:
        return False
    return _LONG_WORD.search(a) is not None or all(
        len(word) > 2 and word.isalpha() and (word.istitle() or word.islower()) for word in (a, b)
    )


def _says(text: str, gold: str) -> bool:
    """Whether `text` is the worded `gold`; "Yes, because …" says yes unless it also says no."""
    words = _words(text)
    if words == gold:
        return True
    if gold not in _OPPOSITE:
        return False
    first, *others = re.findall(r"[a-z]+", text.casefold()) or [""]
    followed = re.match(r"\W*[A-Za-z]+\s*[,.;:!]", text) is not None
    return first == gold and followed and _OPPOSITE[gold] not in others


def _clock(text: str) -> re.Match[str] | None:
    return _CLOCK.fullmatch(_TEXT.sub(r"\1", text).strip()) if ":" in text else None


def _left_undone(text: str) -> bool:
    """Whether an answer to a question for a number is arithmetic: `7+8-6+3` repeats the question.

    Were it right, copying the question would earn a policy the whole reward. Powers, roots,
    fractions and functions are forms a number is given in, and stay so.
    """
    plain = _LATEX_PRODUCT.sub("*", text.replace("\\left", "").replace("\\right", ""))
    return _ARITHMETIC.fullmatch(plain) is not None and _OPERATOR.search(plain) is not None


def _same_clock(gold: re.Match[str], answer: re.Match[str] | None) -> bool:
    """Times of day: 9:05 is 09:05; am and pm may be left out but not contradicted."""
    if answer is None or any(int(gold[i] or 0) != int(answer[i] or 0) for i in (1, 2, 3)):
        return False
    halves = {half.lower() for half in (gold[4], answer[4]) if half}
    return len(halves) < 2


def _choice(text: str, *, small: bool = False) -> str | None:
    """The letter of a multiple-choice answer such as `(C)`, `C.` or `C) 42`; None otherwise.

    `small` also takes a lone `c`.
    """
    plain = _TEXT.sub(r"\1", text).strip()
    if small and _SMALL_CHOICE.fullmatch(plain):
        return plain[0].upper()
    match = _CHOICE.fullmatch(plain)
    if match is None or _SECOND_CHOICE.search(match[4]):
        return None
    return (match[1] or match[2] or match[3]).upper()
