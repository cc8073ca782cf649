"""Finds the claim in an answer: which few characters of the text are the final answer.

Owns the order in which marks are trusted (`<answer>` tags, `\\boxed{}`, `####`, "the answer is",
emphasis, a lone number) and the tidying of LaTeX and Markdown around the claim. It never looks
at the gold, so it cannot be led to it: a text that names several candidates without choosing
one, or refuses, makes no claim at all.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from thinkgate.quantities import read

WINDOW = 20_000
"""Only the end of a longer answer is searched: the claim is there, and so is the cost bound."""


MAX_BARE = 2000
"""Characters an unmarked run of figures and signs may have and still be a claim."""


class How(StrEnum):
    """What marked the claim as the final answer, most explicit first."""

    ANSWER_TAG = "answer_tag"
    BOXED = "boxed"
    HASHES = "hashes"
    PHRASE = "phrase"
    BARE = "bare"
    EMPHASIS = "emphasis"
    MATH = "math"
    LAST_NUMBER = "last_number"


@dataclass(frozen=True, slots=True)
class Extracted:
    """The final answer as written, and how it was found."""

    text: str
    how: How


_RUN = re.compile(r"\s{3,}")
_PLAIN = re.compile(r"-?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?")
_FIGURES = re.compile(r"[-+*/=.,0-9\s]+")
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")
_BOX_JOINT = re.compile(r"[\s$]*(?:,|;|&|\\text\{\s*(?:and|or)\s*\}|(?:,\s*)?\b(?:and|or)\b)[\s$]*")
_DENIED = re.compile(r"(?:\bnot|n't(?: be)?|≠|\\neq?)[\s$(:*\\\[]*$")
_PHRASE = re.compile(
    r"\b(?:answers?|(?:correct|right|best|final) (?:choice|option))\b[^\n.?!]{0,80}?"
    r"(?:\s(?:is|are|equals|was|will be|would be|must be|should be)\b|[*_]*\s*[:=]|[*_:\s]*\n)",
    re.IGNORECASE,
)
_AFTER_PHRASE = re.compile(r"^[\s:]*(?:[*_]+(?=\s))?[\s:]*")
_REASON = re.compile(r",?\s+\b(?:because|since|which|where|as we|so that|given that)\b")
_SENTENCE_END = re.compile(r"[.!?]['\")*\]]*(?=\s|$)")
_EMPHASIS = re.compile(r"\*\*([^*\n]+)\*\*")
_MATH = re.compile(
    # No alternative can cross its own opener, so a text of ten thousand openers is read once.
    r"\$\$((?:[^$]|\$(?!\$))+)\$\$|\\\[((?:[^\\]|\\[^\[\]])+)\\\]|\\\(((?:[^\\]|\\[^()])+)\\\)"
    r"|(?<![\\$])\$(?![\s$])([^$\n]+?)(?<![\s\\])\$(?![0-9])"
)
_MATH_JOINT = re.compile(r"\s*(?:,|;|&|(?:,\s*)?\b(?:and|or)\b)\s*")
_VERB = re.compile(
    r"(?:\b(?:is|are|was|were|be|equals?|gives?|gets?|makes?|obtain)\b|[:=])\s*$", re.IGNORECASE
)
_IS = re.compile(
    r"\b(?:is|are|was|were|(?<!to )be|equals)\s+"
    r"(?:(?:just|only|exactly|about|approximately|equal to|therefore|thus|now|then)\s+)*",
    re.IGNORECASE,
)
_UNDECIDED = re.compile(
    r"\b(?:not|no|nor|never|neither|or|either|\w+n't|cannot|maybe|perhaps|possibly|might|"
    r"wrong|incorrect|false)\b",
    re.IGNORECASE,
)
_RESULT = re.compile(r"\s*([-+]?\s?[$€£]?-?[0-9][0-9,]*(?:\.[0-9]+)?%?)(?=\s+[A-Za-z]|[\"']|$)")
_ALTERNATIVE = re.compile(
    r"\b(?:or|and|to)\s+[$€£]?[0-9]|\b(?:hundred|thousand|[mb]illion|dozen)\b"
)
_FIGURE = re.compile(r"[0-9]")
_NOTATION = re.compile(r"[\\^\u221a\u03c0]")
_TAKEN_BACK = re.compile(
    r"(?:\bnot|n't|\bcannot|\bnever|\bdoubt|\bunsure|\bunable|\bwhether|\bunknown)\b[^,.;:!?\n]*$",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\b(?:I|we)(?: am| are|'m|'re)? (?:\w+ )?(?:cannot|can't|can not|could not|couldn't|unable to|"
    r"won't|refuse to|decline to) (?:\w+ )?(?:determine|solve|answer|say|tell|know|help|compute|"
    r"calculate|find|confirm|provide|do|give)\b"
    r"|\b(?:I|we) (?:\w+ )?(?:don't|do not|didn't|did not) (?:\w+ )?(?:know|think|believe|have)\b"
    r"|\bI guess\b|\b(?:unsure|not sure|no idea|as an AI|not enough information)\b"
    r"|\b(?:I am|I'm|^) ?sorry\b|\bcannot be (?:determined|solved|answered|known)\b"
    r"|\bimpossible to (?:determine|say|know|tell)\b",
    re.IGNORECASE,
)
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|possibly|(?:could|might|may) (?:be|also be|well be)(?=\W*[0-9]))(?!\w)",
    re.IGNORECASE,
)
_COMMANDS = re.compile(
    r"\\(?:text|mbox|mathrm|textbf|textrm|mathbf|operatorname|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+"
)
_WORD = re.compile(
    r"(?<![A-Za-z\\])(?!(?:and|for|sqrt|(?:arc)?(?:sin|cos|tan)|log|exp|abs|inf)(?![A-Za-z]))[A-Za-z]{3,}"
)


def extract(answer: str | None) -> Extracted | None:
    """Find the final answer in the answer part of a completion; None when it makes no claim.

    The last mark wins. An empty or unclosed box or tag is no claim, even if a number precedes it;
    nor is a run of thousands of figures and signs that nothing marks: generation ran away.
    """
    found = None if answer is None else _find(answer)
    if found is None or found.how is not How.BARE or len(found.text) <= MAX_BARE:
        return found
    return None if _FIGURES.fullmatch(found.text) else found


def _find(answer: str) -> Extracted | None:
    text = answer.replace("\u2019", "'").strip()
    if _PLAIN.fullmatch(text):
        return Extracted(text, How.BARE)
    if len(text) > WINDOW:
        text = text[-WINDOW:]
    if len(text) > 200:  # long runs of whitespace would cost the patterns below quadratic time
        text = _RUN.sub(lambda run: "\n\n" if "\n" in run[0] else " ", text)
    tagged = False
    if "answer>" in text:
        tagged, text = _unwrap_tag(text)
    if not text:
        return None
    if "box" in text and (boxes := list(_BOX.finditer(text))):
        return _as(How.BOXED, _last_box(text, boxes))
    if "####" in text and (line := _after_hashes(text)):
        return _as(How.HASHES, claim(line))
    phrases = list(_PHRASE.finditer(text)) if _may_have_phrase(text) else []
    if phrases and (stated := _statement(text[phrases[-1].end() :])):
        # "I cannot confirm that the answer is 42" does not.
        denied = _TAKEN_BACK.search(text[max(0, phrases[-1].start() - 80) : phrases[-1].end()])
        stated = claim(stated)
        if "=" in stated and _WORD.search(stated) and not _UNDECIDED.search(stated):
            stated = _after_equals(stated) or stated
        return None if denied else _as(How.PHRASE, stated)
    found = _unmarked(text)
    if tagged:
        return _as(How.ANSWER_TAG, found.text if found else claim(text))
    return found


def _as(how: How, text: str | None) -> Extracted | None:
    text = text.strip() if text else ""
    return Extracted(text, how) if text else None


def _may_have_phrase(text: str) -> bool:
    return "nswer" in text or "NSWER" in text or "hoice" in text or "ption" in text


def _unwrap_tag(text: str) -> tuple[bool, str]:
    start, end = text.rfind("<answer>"), text.rfind("</answer>")
    if start < 0 and end < 0:
        return False, text
    # Opened and not closed, or the opening was in the prompt: the rest of that side is meant.
    inside = text[start + len("<answer>") if start >= 0 else 0 : end if end > start else None]
    return True, inside.strip()


def _last_box(text: str, boxes: list[re.Match[str]]) -> str | None:
    """Content of the last box; boxes joined by "and", "or" or a comma are one list."""
    last = boxes[-1]
    end = _closing_brace(text, last.end())
    if end is None or _DENIED.search(text[max(0, last.start() - 40) : last.start()]):
        return None
    contents = [text[last.end() : end]]
    for box in reversed(boxes[:-1]):
        closing = _closing_brace(text, box.end())
        if closing is None or not _BOX_JOINT.fullmatch(text, closing + 1, last.start()):
            break
        contents.insert(0, text[box.end() : closing])
        last = box
    distinct = list(dict.fromkeys(contents))
    return ", ".join(distinct) if all(c.strip() for c in distinct) else None


def _closing_brace(text: str, start: int) -> int | None:
    depth = 1
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        if match[0] == "{":
            depth += 1
        elif match[0] == "}":
            depth -= 1
            if depth == 0:
                return match.start()
    return None


def _after_hashes(text: str) -> str | None:
    """The line after the last `####`, unless it is a Markdown heading above more text."""
    line, _, below = text[text.rfind("####") + 4 :].partition("\n")
    line = line.strip()
    is_heading = bool(below.strip()) and not re.match(r"[-+$€£\\(\[]*[0-9\\]", line)
    return None if is_heading else line


def _statement(rest: str) -> str:
    """What follows "the answer is": a displayed formula, or the rest of the line's sentence."""
    rest = _AFTER_PHRASE.sub("", rest, count=1)
    display = _MATH.match(rest)
    if display and (display[1] or display[2]):
        return display[0]
    line = rest.partition("\n")[0]
    return _REASON.split(_first_sentence(line), maxsplit=1)[0]


def _first_sentence(line: str) -> str:
    spans = [match.span() for match in _MATH.finditer(line)] if "$" in line or "\\" in line else []
    for end in _SENTENCE_END.finditer(line):
        if not any(a <= end.start() < b for a, b in spans):
            return line[: end.start()]
    return line


def claim(text: str) -> str:
    """Reduce a sentence to the one formula it states; text that states none comes back whole."""
    text = text.strip()
    if "*" in text:
        text = _only_bold(text) or text
    if "$" not in text and "\\(" not in text and "\\[" not in text:
        return text
    spans = list(_MATH.finditer(text))
    if not spans:
        return text
    formulas = [next(filter(None, span.groups())) for span in spans]
    before, after = text[: spans[0].start()], text[spans[-1].end() :]
    if _UNDECIDED.search(before) or _UNDECIDED.search(after):
        return text
    joined = all(_MATH_JOINT.fullmatch(text, a.end(), b.start()) for a, b in pairwise(spans))
    if joined and not _FIGURE.search(before + after):
        unit = after.strip(" .") if len(spans) == 1 else ""
        return f"{formulas[0]} {unit}".strip() if len(spans) == 1 else ", ".join(formulas)
    stated = [
        f for f, span in zip(formulas, spans, strict=True) if _VERB.search(text, 0, span.start())
    ]
    return stated[0] if len(stated) == 1 and not _UNDECIDED.search(text) else text


def _only_bold(text: str) -> str | None:
    """The one thing in bold, when the words around it do not take it back."""
    bold = {part.strip() for part in _EMPHASIS.findall(text)}
    if len(bold) != 1 or _UNDECIDED.search(_EMPHASIS.sub("", text)):
        return None
    only = bold.pop()
    return None if only.endswith(":") else only


def _unmarked(text: str) -> Extracted | None:
    """An answer without any mark: one expression, or prose whose last figures are its claim."""
    prose = _WORD.search(_COMMANDS.sub(" ", text)) is not None
    if prose and _REFUSAL.search(text):
        return None
    if "\n" in text and _MATH.fullmatch(text) is None:
        # Lines of bare figures are a list of guesses, not an answer.
        return _last_claim(text[-2000:]) if prose else None
    whole = claim(text)
    how = How.BARE
    if prose and len(whole) < len(tidy(text)):
        how = How.EMPHASIS if "**" in text else How.MATH
    words = len(_WORD.findall(_COMMANDS.sub(" ", whole)))
    figures = _FIGURE.search(whole) is not None
    if words == 0 or (words <= 4 and not figures) or read(tidy(whole), letters=True) is not None:
        return None if prose and _HEDGE.search(text) else Extracted(whole, how)
    found = _last_claim(text[-2000:])
    if found is None and words <= 3 and _NOTATION.search(whole) and not _UNDECIDED.search(whole):
        return Extracted(whole, how)  # 12\pi square inches
    return found


def _last_claim(text: str) -> Extracted | None:
    sentences = [s for line in text.split("\n") for s in _sentences(line) if s.strip()]
    for sentence in reversed(sentences[-4:]):
        formulas = _MATH.search(sentence) is not None
        if not formulas and not _FIGURE.search(sentence) and "**" not in sentence:
            continue
        if _HEDGE.search(sentence):
            return None
        if bold := _only_bold(sentence):
            return _as(How.EMPHASIS, claim(bold))
        if formulas:
            stated = claim(sentence)
            return _as(How.MATH, stated) if stated != sentence.strip() else None
        if stated := _after_verb(sentence):
            return _as(How.MATH if _NOTATION.search(stated) else How.LAST_NUMBER, stated)
        # With several figures and no equals sign there is no way to tell which is meant.
        return _as(How.LAST_NUMBER, _after_equals(sentence))
    return None


def _after_verb(sentence: str) -> str | None:
    """What a sentence says something is: `In 5 days the total is 42`, `The area is 12\\pi`."""
    *_, last = [None, *_IS.finditer(sentence)]
    if last is None:
        return None
    stated = sentence[last.end() :]
    if read(tidy(stated), letters=True) is not None:
        return stated
    prose = _WORD.search(_COMMANDS.sub(" ", stated)) is not None
    return stated if not prose and _NOTATION.search(stated) else None


def _after_equals(sentence: str) -> str | None:
    """What a sentence's last equation comes to, or its only number: `…, so 40-32=8 are left`."""
    _, equals, tail = sentence.rpartition("=")
    if read(tidy(tail), letters=True) is not None:
        return tail
    result = _RESULT.match(tail) if equals else None
    if result is None or _ALTERNATIVE.search(tail, result.end()):
        return None
    return result[1]


def _sentences(line: str) -> list[str]:
    found: list[str] = []
    while line.strip():
        first = _first_sentence(line)
        found.append(first)
        line = line[len(first) :].lstrip(".!?'\")*] ")
    return found


_SIZING = re.compile(
    r"(?<!\\)\\(?:(?:left|right|bigl?|bigr?|Bigl?|Bigr?|displaystyle|textstyle)(?![A-Za-z])\.?|!)"
)
_SPACING = re.compile(r"(?<!\\)\\(?:[,;:]| (?=\S)|(?:quad|qquad)(?![A-Za-z])|phantom\{[^{}]*\})")
_GROUPING = re.compile(r"(?<=[0-9])(?:,\s*\\!\s*|\\,|\{,\})(?=[0-9]{3}(?![0-9]))")
_FRAC = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_UNICODE = str.maketrans(
    {
        "\u2212": "-", "\u2013": "-", "\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u00f7": "/",
        "\u03c0": "\\pi ", "\u03b8": "\\theta ", "\u03b1": "\\alpha ", "\u221e": "\\infty ",
        "\u2264": "\\le ", "\u2265": "\\ge ", "\u2260": "\\ne ", "\u222a": "\\cup ",
        "\u2208": "\\in ", "\u00b1": "\\pm ", "\u2248": "\\approx ", "\u221a": "\\sqrt ",
        "\u00b2": "^2 ", "\u00b3": "^3 ", "\u2074": "^4 ", "\u00bd": "\\frac{1}{2}",
        "\u00bc": "\\frac{1}{4}", "\u00be": "\\frac{3}{4}", "\u00a0": " ", "\u2009": " ",
        "\u202f": " ", "\u201c": '"', "\u201d": '"', "\u2019": "'",
    }
)  # fmt: skip
_WRAPPERS = (
    ("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("**", "**"), ("`", "`"), ('"', '"'), ("$", "$"),
)  # fmt: skip


def tidy(text: str) -> str:
    """Strip what carries no meaning: delimiters of math and Markdown, spacing, a full stop."""
    text = text.strip()
    if not text.isascii():
        text = text.translate(_UNICODE)
    elif text.isalnum():
        return text
    if "{,}" in text:
        text = _GROUPING.sub("", text)
    if "\\" in text:
        text = _GROUPING.sub("", text)
        text = _FRAC.sub(r"\\frac", _SPACING.sub(" ", _SIZING.sub("", text)))
        text = (
            text.replace("\\$", "$").replace("\\%", "%").replace("{,}", ",").replace("\\{,\\}", ",")
        )
    while True:
        before = text
        text = text.rstrip(".,;: \n").lstrip(": \n")
        for opening, closing in _WRAPPERS:
            if text.startswith(opening) and text.endswith(closing):
                inner = text[len(opening) : -len(closing)].strip()
                text = inner if inner and opening not in inner else text
        if text[:1] == "$" == text[-1:] and "$" not in (inner := text.strip("$ ")):
            text = inner
        if text == before:
            return text.replace("~", " ") if "~" in text else text
