"""Cuts a mathematical answer into tokens: the vocabulary `latex` reads.

Owns which words and commands are known and what separates one token from the next. Numbers and
single letters are tokens as they stand, commands keep their backslash, known words gain one
(`pi` is `\\pi`), and any other word of four letters or more is marked with a leading `"`.
"""

import re

# fmt: off
FUNCTIONS = frozenset({
    "arcsin", "arccos", "arctan", "arccot", "arcsec", "arccsc", "asin", "acos", "atan", "sinh",
    "cosh", "tanh", "sin", "cos", "tan", "cot", "sec", "csc", "exp", "ln", "log", "lg", "Re", "Im",
    "arg", "det", "gcd", "lcm", "max", "min", "abs", "sqrt",
})
GREEK = frozenset({
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta",
    "iota", "kappa", "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "varphi",
    "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Upsilon",
    "Phi", "Psi", "Omega", "ell", "hbar", "partial", "odot",
})
CONSTANTS = {"pi": "pi", "infty": "oo", "infinity": "oo", "inf": "oo", "imath": "i"}
TEXTS = frozenset({
    "text", "mbox", "mathrm", "textrm", "textbf", "textit", "mathit", "textnormal", "mathsf", "rm",
})
# fmt: on


class Malformed(Exception):
    """The text is not an expression this reader knows."""


class Refused(Exception):
    """The text nests deeper, or has a longer number, than any answer needs: not worth reading."""


_KNOWN = "|".join(sorted([*FUNCTIONS, *GREEK, *CONSTANTS], key=len, reverse=True))
_GLUED = r"(?:sin|cos|tan|cot|ln|log)(?=[xy](?![A-Za-z]))"
_TOKEN = re.compile(
    r"\s*(?:"
    r"(?P<repeating>[0-9]*\.[0-9]*\\overline\s*\{[0-9]+\})"
    r"|(?P<grouped>[0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])(?:\.[0-9]+)?)"
    r"|(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+(?![0-9.]))?)"
    r"|(?P<joint>\\text\s*\{\s*(?:and|or)\s*\}|(?<![A-Za-z])(?:and|or)(?![A-Za-z]))"
    r"|\\(?P<command>[A-Za-z]+|\\|[{}|])"
    rf"|(?:np\.|math\.|sp\.)?(?<![A-Za-z\\])(?P<word>(?:{_KNOWN})(?![A-Za-z])|{_GLUED}"
    r"|[A-Za-z]{4,})"
    r"|(?P<letter>[A-Za-z])"
    r"|(?P<sign>\*\*|<=|>=|!=|==|[-+*/^_()\[\]{}|,;=<>!'%°&:])"
    r")"
)
_TEXT_ARGUMENT = re.compile(r"\s*\*?\s*\{([^{}]*)\}")


def tokenize(text: str) -> list[str]:
    """Cut `text` into tokens; raises Malformed at the first character that belongs to none."""
    tokens: list[str] = []
    position, depth = 0, 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise Malformed(f"cannot read {text[position : position + 20]!r}")
        kind, token = match.lastgroup or "", match[match.lastgroup or 0]
        end = match.end()
        if kind == "grouped" and depth > 0:
            # Inside brackets a comma separates: (100,200) is a point.
            token = token.partition(",")[0]
            end = match.start(kind) + len(token)
        if kind == "joint":
            token = "\\and" if "and" in token else "\\or"
        elif kind == "command":
            token = "\\" + token
            if token[1:] in TEXTS or token in ("\\begin", "\\end", "\\operatorname"):
                argument = _TEXT_ARGUMENT.match(text, end)
                if argument is None:
                    raise Malformed(f"{token} without its argument")
                token, end = f"{token}{{{argument[1].strip()}", argument.end()
        elif kind == "word":
            known = token in FUNCTIONS or token in GREEK or token in CONSTANTS
            token = f"\\{token}" if known else f'"{token}'
        depth += token in ("(", "[", "{", "\\{")
        depth -= token in (")", "]", "}", "\\}")
        tokens.append(token)
        position = end
    return tokens
