"""Plain quantities: numbers as people write them, exactly, in microseconds and without imports.

Owns reading `1,000`, `$18.90`, `3/4`, `1\\frac{4}{5}`, `6.02e23`, `50%`, `90^\\circ`, `12 cm`,
`5 million`, `a total of 42 apples`, and comparing two of them. Anything with algebra in it is
not plain and is left to `latex`. Only ASCII digits are digits: Unicode has hundreds more, no
model needs them, and every one is a way to smuggle a string past another tool's reader.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from thinkgate.units import read_unit

MAX_DIGITS = 400
"""Longer numerals and exponents are not plain: exact arithmetic on them has a price."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """An exact number with what was written around it."""

    value: Fraction | int

    unit: str = ""
    """Dimension of a known unit (`length`, `$`, `%`, `deg`, `base 8`), "" for none or unknown."""

    scale: Fraction | int = 1
    """How many base units of `unit` one of these is."""

    label: str = ""
    """The variable it was assigned to, as in `x = 5`."""

    places: int = 0
    """Digits after the decimal point, as written; 0 for integers and fractions."""


_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PERCENT = frozenset({"%", "percent", "percents", "per cent", "pct", "percentage points"})
_DEGREES = frozenset({"°", "degree", "degrees", "deg", "^\\circ", "^{\\circ}", "\\degree", "^o"})
_CURRENCIES = {"$": "$", "€": "€", "£": "£", "¥": "¥", "₹": "₹"}

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]{1,3}(?: [0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)"
_POWER_OF_TEN = r"(?:\\times|\\cdot|[*x])\s*10\s*(?:\^|\*\*)\s*(?:\{\s*(-?[0-9]+)\s*\}|(-?[0-9]+))"
_HEAD = (
    r"(?:(?P<label>[A-Za-z]|\\[a-z]+)\s*=\s*)?"
    r"(?P<sign>[-+]?)\s*(?P<cur>[$€£¥₹]?)\s*(?P<sign2>-?)\s*"
)

_INTEGER = re.compile(r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,15})")
_NUMBER = re.compile(
    rf"{_HEAD}(?P<number>{_DECIMAL})(?:[eE](?P<exp>[-+]?[0-9]+)(?![0-9.])|\s*{_POWER_OF_TEN})?"
)
_FRACTION = re.compile(
    rf"{_HEAD}(?:(?P<whole>{_DIGITS})\s*)??(?:"
    r"\\frac\s*(?:\{\s*(?P<n1>-?[0-9.]+)\s*\}|\s?(?P<n2>[0-9]))\s*"
    r"(?:\{\s*(?P<d1>-?[0-9.]+)\s*\}|(?P<d2>[0-9]))"
    rf"|(?<![0-9])(?P<n3>{_DIGITS})\s*/\s*(?P<d3>{_DIGITS}))(?![0-9.])"
)
_WORDS_BEFORE = re.compile(r"[A-Za-z ,':()-]*?(?<![A-Za-z])(?=[-+]?\s?[$€£¥₹]?\s?-?\s?\.?[0-9])")
_WORDS_AFTER = re.compile(r"\s*[A-Za-z ,.'()/-]*")
_WORD = re.compile(r"[A-Za-z]{3,}")
_BEFORE_CHANGES_IT = re.compile(
    r"\b(?:nor|neither|or|either|unknown|unsure|unclear|maybe|perhaps|possibly|might|could be|"
    r"guess\w*|wrong|incorrect|false)\b"
    r"|\b(?:not|never|cannot|\w+n't)\b[^,;:]*$"
    r"|\b(?:no|half|quarter|twice|double|triple|thrice|plus|than|between|above|below|"
    r"(?:square|cube|root|log|power|factorial))(?:\s+(?:of|the|a))*\W*$",
    re.IGNORECASE,
)
_AFTER_CHANGES_IT = re.compile(
    r"\b(?:not|nor|or|plus|minus|over|divided|multiplied|mod|squared|cubed|factorial|hundred|"
    r"thousand|million|billion|trillion|pi|sqrt|maybe|perhaps|possibly|wrong|incorrect|false)\b"
)
_SUBSCRIPT = re.compile(r"_(?:\{\s*([0-9]+)\s*\}|([0-9]+))|\s+(?:in\s+)?base[\s-]+([0-9]+)")


def read(text: str, *, letters: bool = False) -> Quantity | None:
    """Read `text`, already tidied, as one plain quantity; None when it is anything else.

    `letters` also takes a letter glued to the number for a unit (`5m`): right for an answer,
    wrong for a gold, where `2k` is algebra.
    """
    if len(text) > MAX_DIGITS:
        return None
    if _INTEGER.fullmatch(text):
        return Quantity(int(text.replace(",", "")))
    return _read_number(text, 0, letters) or _read_among_words(text) or _read_in_words(text)


def _read_number(text: str, start: int, letters: bool) -> Quantity | None:
    match = _FRACTION.match(text, start) or _NUMBER.match(text, start)
    if match is None:
        return None
    if match.re is _FRACTION:
        value, places = _fraction_value(match), 0
    else:
        value, places = _decimal_value(match)
    if value is None:
        return None
    if "-" in (match["sign"], match["sign2"]):
        value = -value
    rest = text[match.end() :]
    suffix = _read_suffix(rest, value, letters) if rest else (value, "", 1)
    if suffix is None:
        return None
    value, unit, scale = suffix
    if match["cur"]:
        if unit not in ("", match["cur"]):
            return None
        unit, scale = _CURRENCIES[match["cur"]], scale
    return Quantity(value, unit, scale, match["label"] or "", places)


def _fraction_value(match: re.Match[str]) -> Fraction | None:
    try:
        numerator = Fraction((match["n1"] or match["n2"] or match["n3"]).replace(",", ""))
        denominator = Fraction((match["d1"] or match["d2"] or match["d3"]).replace(",", ""))
        value = numerator / denominator
    except (ValueError, ZeroDivisionError):
        return None
    if match["whole"]:
        # A mixed number: 1\frac{4}{5} is 1.8, as every gold that writes it means.
        value += int(match["whole"].replace(",", "").replace(" ", ""))
    return value


def _decimal_value(match: re.Match[str]) -> tuple[Fraction | int | None, int]:
    number = match["number"].replace(",", "").replace(" ", "")
    exponent = match["exp"] or match[7] or match[8]
    _, point, decimals = number.partition(".")
    if exponent:
        if len(exponent) > 4 or abs(int(exponent)) > MAX_DIGITS:
            return None, 0
        return Fraction(number) * Fraction(10) ** int(exponent), 0
    return (Fraction(number) if point else int(number)), len(decimals)


Suffix = tuple[Fraction | int, str, Fraction | int]


def _read_suffix(rest: str, value: Fraction | int, letters: bool) -> Suffix | None:
    """What follows the number: nothing, a percent or degree sign, a base, a unit, or words."""
    word = rest.strip().lower()
    if word in _PERCENT:
        return value, "%", 1
    if word in _DEGREES:
        return value, "deg", 1
    if word in _CURRENCIES:
        return value, word, 1
    if base := _SUBSCRIPT.fullmatch(rest):
        return value, f"base {base[1] or base[2] or base[3]}", 1
    first, _, others = word.partition(" ")
    if first in _SCALES:
        value *= _SCALES[first]
        word = others.strip()
        if not word:
            return value, "", 1
    if unit := read_unit(rest if word == rest.strip().lower() else word):
        # A single letter against the number is algebra (2k, 5m) unless the caller knows better.
        if len(word) == 1 and not letters and not rest[0].isspace():
            return None
        return value, *unit
    if not _WORDS_AFTER.fullmatch(rest) or _AFTER_CHANGES_IT.search(word):
        return None
    return (value, "", 1) if _WORD.search(word) else None


def _read_among_words(text: str) -> Quantity | None:
    """Read `a total of 42 apples`: one number, and around it words that claim nothing else."""
    before = _WORDS_BEFORE.match(text)
    if before is None or not before.end() or _BEFORE_CHANGES_IT.search(before[0]):
        return None
    if not re.search(r"[A-Za-z]{2}", before[0]):
        return None
    sign = -1 if re.search(r"\b(?:negative|minus)\s*$", before[0], re.IGNORECASE) else 1
    quantity = _read_number(text, before.end(), letters=True)
    if quantity is None or quantity.label:
        return None
    return Quantity(sign * quantity.value, quantity.unit, quantity.scale, "", quantity.places)


# fmt: off
_ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
# fmt: on
_NUMBER_WORDS = {word: i for i, word in enumerate(_ONES)} | {
    word: 10 * i for i, word in enumerate(_TENS, 2)
}


def _read_in_words(text: str) -> Quantity | None:
    """Read `forty-two` or `one hundred and five`: nothing but number words, below a trillion."""
    words = [w for w in re.split(r"[\s-]+", text.lower()) if w != "and"]
    if not 1 <= len(words) <= 20 or words[0] not in _NUMBER_WORDS:
        return None
    total = group = 0
    for word in words:
        if word in _NUMBER_WORDS:
            # "four two" is two numbers; a tens word may only be followed by a ones word.
            if group % 100 and not (group % 100 >= 20 and 0 < _NUMBER_WORDS[word] < 10):
                return None
            group += _NUMBER_WORDS[word]
        elif word == "hundred" and 0 < group < 100:
            group *= 100
        elif word in _SCALES and group:
            total, group = total + group * _SCALES[word], 0
        else:
            return None
    return Quantity(total + group)


def same(gold: Quantity, answer: Quantity, tolerance: float | None = None) -> bool:
    """Whether the two mean the same number; units, labels and signs of percent are optional.

    What only one side writes is taken as understood; what both write must agree.
    """
    if gold.label and answer.label and gold.label != answer.label:
        return False
    if gold.unit == answer.unit:
        return equal(gold.value * gold.scale, answer.value * answer.scale, gold, answer, tolerance)
    if gold.unit and answer.unit:
        pounds = {gold.unit, answer.unit} == {"£", "mass"}  # £5 is spelled "5 pounds"
        return pounds and equal(gold.value, answer.value, gold, answer, tolerance)
    if equal(gold.value, answer.value, gold, answer, tolerance):
        return True
    # 50% is also 0.5, and 3 dozen is also 36; 5 km is 5 or "5 km" but never a bare 5000.
    worth = {"%": Fraction(1, 100), "dozen": 12}
    factor = worth.get(gold.unit or answer.unit)
    if factor is None:
        return False
    if gold.unit:
        return equal(gold.value * factor, answer.value, gold, answer, tolerance)
    return equal(gold.value, answer.value * factor, gold, answer, tolerance)


def equal(
    a: Fraction | int,
    b: Fraction | int,
    gold: Quantity,
    answer: Quantity,
    tolerance: float | None,
) -> bool:
    """Exact equality, or a long decimal that rounds the other, or within a given tolerance."""
    if a == b:
        return True
    if tolerance is not None and abs(a - b) <= Fraction(tolerance) * max(abs(a), abs(b)):
        return True
    return rounds_to(a, gold.places, b) or rounds_to(b, answer.places, a)


def rounds_to(decimal: Fraction | int, places: int, exact: Fraction | int) -> bool:
    """Whether `decimal`, written with many digits, is `exact` rounded or cut to those digits.

    Six places and five significant digits make a rounding (0.333333 for 1/3); fewer make a
    number of its own (0.33 is not 1/3).
    """
    if places < 6 or abs(decimal) < Fraction(1, 10 ** (places - 4)):
        return False
    last = Fraction(1, 10**places)
    rounded = 2 * abs(decimal - exact) <= last
    cut = decimal * exact > 0 and 0 <= abs(exact) - abs(decimal) < last
    return rounded or cut
