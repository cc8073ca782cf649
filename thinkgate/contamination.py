r"""Which benchmark problems lie in the training data: word for word, nearly, or in long pieces.

Owns what "the same problem" means across spelling. It does not know where the texts come from or
what is done about an overlap.

Texts are compared as tokens: words, numbers, operators, single letters; case, spacing, punctuation,
Unicode forms and LaTeX dress do not count, so `$\dfrac{1}{2}\times3$` is `1/2 * 3`. Numbers and
operators do count, always: `8+7-6` and `8+7-5` are two problems, not near duplicates.

The n-gram test is that of GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C) with n = 13. Like
Llama 2 (arXiv 2307.09288, A.6) and PaLM (arXiv 2204.02311) it asks how much of a problem was found
instead of flagging one collision, and like ConTAM (arXiv 2411.03923), which found that to predict
inflated scores best, it counts within one training text, not over all of them together.

Why not lm-eval's janitor: it deletes ASCII punctuation, so that `8+7-6` and `87-6` are one word;
problems shorter than n words have no n-gram there and are always clean; and it wants the training
data sorted into bucket files beforehand.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

__all__ = ["FOUND", "Kind", "Overlap", "every_overlap", "overlaps"]

NEAR = 0.8
"""Share of their tokens two texts with the same mathematics must have in common (Jaccard)."""

FOUND = 0.5
"""Share of a problem's n-grams one training text must have."""

STOCK = 10
"""An n-gram of more problems than this is the benchmark's own wording ("put your final answer
within \\boxed{}"), not a problem. GPT-3 leaves out n-grams by the same number."""

START = 3
"""Tokens by which n-grams are looked up first."""

SHORTEST = 5
"""Tokens of a problem that is looked for inside longer texts; a shorter one must be all of it."""

EXCERPT = 200
"""Characters of the training text that are shown."""


class Kind(StrEnum):
    """How a problem was found, the surest first."""

    EXACT = "exact"
    """A training text is the problem."""

    NEAR = "near"
    """A training text has the same numbers and operators in the same order, and nearly the same
    words."""

    NGRAM = "ngram"
    """A training text contains at least half of the problem's n-grams, and all its numbers in their
    order: the same sentences about other numbers are another problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """One benchmark problem and the training text that is most like it."""

    problem_id: str
    kind: Kind
    share: float
    """Of the problem's n-grams, in this one text; of the tokens in common, for NEAR."""

    text: int
    """The number of the training text, from 0 in the order they came."""

    excerpt: str
    """Where the match begins, one line."""

    texts: int
    """How many training texts overlap with the problem."""


def overlaps(
    train: Iterable[str],
    benchmark: Sequence[tuple[str, str]],
    *,
    n: int = 13,
    found: float = FOUND,
) -> list[Overlap]:
    """The problems (id, text) of `benchmark` that occur in `train`, the surest first.

    One overlap a problem, the strongest. `train` is read once; memory is bounded by the benchmark.
    A problem of fewer than `n` tokens is its own only n-gram. `found` is the share of n-grams that
    makes an overlap; 0 flags a single one, as GPT-3's authors did.
    """
    best: dict[int, Overlap] = {}
    for problem, overlap in _search(train, benchmark, n, found):
        old = best.get(problem)
        stronger = overlap if old is None or _strength(overlap) > _strength(old) else old
        best[problem] = replace(stronger, texts=old.texts + 1 if old else 1)
    ranked = sorted(best.items(), key=lambda item: (_strength(item[1]), -item[0]), reverse=True)
    return [overlap for _, overlap in ranked]


def every_overlap(
    train: Iterable[str],
    benchmark: Sequence[tuple[str, str]],
    *,
    n: int = 13,
    found: float = FOUND,
) -> Iterator[Overlap]:
    """Each pair of a training text and a problem in it, text by text: what to remove."""
    return (overlap for _, overlap in _search(train, benchmark, n, found))


def _search(
    train: Iterable[str], benchmark: Sequence[tuple[str, str]], n: int, found: float
) -> Iterator[tuple[int, Overlap]]:
    if n < SHORTEST:
        raise ValueError(f"n is {n}; n-grams of fewer than {SHORTEST} tokens are in every text")
    index = _Index(benchmark, n, found)
    return (hit for number, text in enumerate(train) for hit in index.search(number, text))


def _strength(overlap: Overlap) -> tuple[int, float]:
    return -list(Kind).index(overlap.kind), overlap.share


class _Index:
    """The benchmark, arranged so that one pass over a training text finds all it contains."""

    def __init__(self, benchmark: Sequence[tuple[str, str]], n: int, found: float) -> None:
        self._found = found
        self._ids = [problem_id for problem_id, _ in benchmark]
        self._tokens = [_words(_tokens(_plain(text))) for _, text in benchmark]
        self._numbers = [list(filter(_is_number, tokens)) for tokens in self._tokens]
        self._whole: defaultdict[str, list[int]] = defaultdict(list)
        self._mathematics: defaultdict[str, list[int]] = defaultdict(list)
        grams: defaultdict[str, set[int]] = defaultdict(set)
        for problem, tokens in enumerate(self._tokens):
            if tokens:
                self._whole[" ".join(tokens)].append(problem)
                self._mathematics[_mathematics(tokens)].append(problem)
            if len(tokens) >= SHORTEST:
                for gram in _grams(tokens, min(n, len(tokens))):
                    grams[gram].add(problem)
        # An n-gram that is a whole problem is never stock: then many problems are the same.
        self._grams = {g: p for g, p in grams.items() if len(p) <= STOCK or g in self._whole}
        self._counts = Counter(problem for found in self._grams.values() for problem in found)
        # By their first tokens, so that most places in a text cost one look-up.
        self._lengths: defaultdict[str, set[int]] = defaultdict(set)
        for gram in self._grams:
            pieces = gram.split(" ")
            self._lengths[" ".join(pieces[:START])].add(len(pieces))

    def search(self, number: int, text: str) -> Iterable[tuple[int, Overlap]]:
        """Each problem that training text `number` overlaps with, once."""
        plain = _plain(text)
        matches = _tokens(plain)
        tokens = _words(matches)
        if not tokens:
            return
        hits = self._hits(tokens)
        whole = set(self._whole.get(" ".join(tokens), ()))
        near = self._near(tokens)
        for problem in sorted(whole | near.keys() | hits.keys()):
            start = 0
            if problem in whole:
                kind, share = Kind.EXACT, 1.0
            elif problem in near:
                kind, share = Kind.NEAR, near[problem]
            else:
                kind = Kind.NGRAM
                share = len(hits[problem]) / self._counts[problem]
                start = matches[min(hits[problem].values())].start()
                if share < self._found or not self._has_numbers(problem, tokens):
                    continue
            # Where normal forms moved the text, the normal form is what can be shown.
            shown = text if len(text) == len(plain) else plain
            overlap = Overlap(
                problem_id=self._ids[problem],
                kind=kind,
                share=share,
                text=number,
                excerpt=" ".join(shown[start : start + EXCERPT].split()),
                texts=1,
            )
            yield problem, overlap

    def _hits(self, tokens: Sequence[str]) -> dict[int, dict[str, int]]:
        """By problem: its n-grams in the text, with the token at which each begins."""
        hits: dict[int, dict[str, int]] = {}
        for start, first in enumerate(_grams(tokens, START)):
            for length in self._lengths.get(first, ()):
                end = start + length
                gram = " ".join(tokens[start:end])
                if end > len(tokens) or (gram in self._whole and _goes_on(tokens, start, end)):
                    continue
                for problem in self._grams.get(gram, ()):
                    hits.setdefault(problem, {}).setdefault(gram, start)
        return hits

    def _has_numbers(self, problem: int, tokens: Sequence[str]) -> bool:
        """Whether the text has the problem's numbers in their order, others between them or not."""
        rest = iter(tokens)
        return not self._found or all(number in rest for number in self._numbers[problem])

    def _near(self, tokens: Sequence[str]) -> dict[int, float]:
        ours = Counter(tokens)
        near: dict[int, float] = {}
        for problem in self._mathematics.get(_mathematics(tokens), ()):
            theirs = self._tokens[problem]
            if not NEAR <= len(tokens) / len(theirs) <= 1 / NEAR:
                continue
            common = (ours & Counter(theirs)).total()
            share = common / (len(tokens) + len(theirs) - common)
            if share >= NEAR:
                near[problem] = share
        return near


def _grams(tokens: Sequence[str], length: int) -> Iterable[str]:
    for start in range(len(tokens) - length + 1):
        yield " ".join(tokens[start : start + length])


def _goes_on(tokens: Sequence[str], start: int, end: int) -> bool:
    """Whether an expression goes on beyond the piece: `8+7-6` is no part of `8+7-6+3`.

    What follows an equals sign is a result, so `8+7-6=9` contains the problem; what stands before
    one is the rest of a calculation.
    """
    before = tokens[start - 1] if start else ""
    after = tokens[end] if end < len(tokens) else ""
    first, last = tokens[start], tokens[end - 1]
    return (
        (_is_figure(first) and before in _OPERATORS)
        or (first in _OPERATORS and _is_figure(before))
        or (_is_figure(last) and after in _OPERATORS and after != "=")
    )


def _mathematics(tokens: Sequence[str]) -> str:
    """What must be the same in near duplicates: numbers, also in words, operators and letters."""
    return " ".join(
        token
        for token in tokens
        if _is_number(token) or (len(token) == 1 and token.isascii() and token not in "ai")
    )


def _is_figure(token: str) -> bool:
    return token[:1].isdigit()


def _is_number(token: str) -> bool:
    return _is_figure(token) or token in _NUMBER_WORDS


_OPERATORS = frozenset("+-*/^=<>")
# fmt: off
_NUMBER_WORDS = frozenset({
    "zero", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
    "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred",
    "thousand", "million", "billion", "half", "third", "quarter", "fifth", "once", "twice",
    "double", "triple", "thrice", "not", "no", "least", "most",
})
# fmt: on
"""Words that make another problem of the same sentence."""

_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|([0-9a-z]))\s*(?:\{([^{}]*)\}|([0-9a-z]))")
_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|,?\\[!,])(?=[0-9]{3}(?![0-9]))")
_DRESS = re.compile(
    r"\\(?:(?:left|right|bigg?[lr]?|displaystyle|quad|qquad|text|textbf|mathrm|mathbf|operatorname"
    r"|mbox)(?![a-z])|[()\[\],;:! ])"
)
_TOKEN = re.compile(
    # Without a name, and so dropped: punctuation, markup, bold type, dashes between words.
    r"[\s.,;:?$\"]+|<\|?/?[a-z_]+\|?>"
    r"|(?<![0-9a-z)])\*\*+|\*\*+(?![0-9a-z(])"
    r"|-(?=\s*[^\W\d_]{2})|(?<=[^\W\d_]{2})/(?=[^\W\d_]{2})"
    r"|\\(?P<command>[a-z]+)"
    r"|(?P<number>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?)"
    # Chinese and Japanese are written without spaces: each character is a word.
    r"|(?P<word>[\u3040-\u30ff\u3400-\u9fff]|(?:(?![\u3040-\u30ff\u3400-\u9fff])[^\W\d_]|(?<=\w)'(?=\w))+)"
    # Round brackets belong to mathematics or to prose; what they touch tells.
    r"|(?P<operator>\*\*|[-+*/^=<>%]|(?<=[0-9)])!|\((?=\s*(?:[-+0-9(\\]|[a-z](?![a-z])))"
    r"|(?<=[0-9)])\)|(?<=[^a-z][a-z])\))"
)
_SPELLINGS = {
    "times": "*", "cdot": "*", "div": "/", "le": "leq", "ge": "geq", "ne": "neq", "lt": "<",
    "gt": ">", "to": "rightarrow", "**": "^",
}  # fmt: skip
_SIGNS = str.maketrans(
    {
        **dict.fromkeys("\u00d7\u22c5\u00b7\u2217", "*"),
        **dict.fromkeys("\u00f7\u2215\u2044", "/"),
        **dict.fromkeys("\u2212\u2010\u2011\u2013\u2014", "-"),
        "\u2264": "\\leq ",
        "\u2265": "\\geq ",
        "\u2260": "\\neq ",
        "\u03c0": "\\pi ",
        "\u221a": "\\sqrt ",
        "\u2019": "'",
    }
)


def _plain(text: str) -> str:
    # Signs first: NFKC would turn some of them into letters.
    text = unicodedata.normalize("NFKC", text.translate(_SIGNS)).casefold()
    if "\\" in text or "{" in text:
        text = _FRACTION.sub(_written_out, _DRESS.sub("", _THOUSANDS.sub("", text)))
    return text


def _written_out(fraction: re.Match[str]) -> str:
    above, below = (a or b for a, b in (fraction.group(1, 2), fraction.group(3, 4)))
    parts = (part if part.strip().isalnum() else f"({part})" for part in (above, below))
    return "/".join(parts)


def _tokens(plain: str) -> list[re.Match[str]]:
    return [match for match in _TOKEN.finditer(plain) if match.lastgroup]


def _words(matches: Iterable[re.Match[str]]) -> list[str]:
    return [_spelling(match) for match in matches]


def _spelling(match: re.Match[str]) -> str:
    token = match[match.lastgroup or 0]
    if match.lastgroup == "number":
        return token.replace(",", "")
    return token if match.lastgroup == "word" else _SPELLINGS.get(token, token)
