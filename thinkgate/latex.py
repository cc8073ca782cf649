"""Reads a mathematical answer, LaTeX or plain, into a tree.

Owns the notation: what `\\frac43`, `1\\frac{4}{5}`, `2\\sqrt2`, `\\sin^2 x`, `(3,4]`, `1 \\pm 2`
or `np.arcsin(10/13)` say. Knows nothing about whether two trees mean the same (`answer_shapes`,
`algebra`). Juxtaposed numbers are refused, not multiplied, and a word of four letters or more is
one name, not a product: "1 2 3" and "nevE" must not become values.
"""

import re
from dataclasses import dataclass, field
from fractions import Fraction

from thinkgate.latex_tokens import CONSTANTS, FUNCTIONS, GREEK, Malformed, Refused, tokenize

__all__ = ["Malformed", "Node", "Refused", "parse"]

MAX_DEPTH = 60
"""Nesting beyond this is refused: no answer needs it and the reader is recursive."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operation. `op` says which, and what `args`, `name` and `value` mean.

    number (value, places) · symbol (name) · constant (name: pi e i oo) · + - * / ^ neg pm mp ·
    call (name, args) · root (x, n) · log (x, base) · abs floor ceil fact binom · deg pct ·
    tuple (name: the two brackets) · set · list (name: "," "and" "or") · union · matrix (rows) ·
    relation (name: the operators, space-separated) · empty
    """

    op: str
    args: tuple["Node", ...] = ()
    name: str = ""
    value: Fraction = field(default=Fraction(0))
    places: int = 0


_INVERSES = {
    "sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot", "sec": "arcsec",
    "csc": "arccsc",
}  # fmt: skip
_ALIASES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "lg": "log10"}
# fmt: off
_ACCENTS = frozenset({
    "overline", "bar", "vec", "hat", "tilde", "dot", "ddot", "mathbf", "boldsymbol", "bm",
    "mathcal", "mathbb", "widehat", "underline", "overrightarrow",
})
# fmt: on
_MATRICES = frozenset({"pmatrix", "bmatrix", "matrix", "vmatrix", "Bmatrix", "smallmatrix"})
_RELATIONS = {
    "=": "=", "==": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", "\\le": "<=",
    "\\leq": "<=", "\\leqslant": "<=", "\\ge": ">=", "\\geq": ">=", "\\geqslant": ">=",
    "\\lt": "<", "\\gt": ">", "\\ne": "!=", "\\neq": "!=", "\\in": "in", "\\approx": "=",
    "\\equiv": "=", "\\sim": "~", ":": ":", "\\to": "->", "\\rightarrow": "->", "\\mid": "mid",
}  # fmt: skip
_TIMES = frozenset({"*", "\\cdot", "\\times", "\\ast"})
_DIVIDE = frozenset({"/", "\\div"})
_OPENERS = {"(": ")", "[": "]", "\\{": "\\}", "\\lbrace": "\\rbrace", "\\langle": "\\rangle"}
_CLOSERS = frozenset({")", "]", "\\}", "\\rbrace", "\\rangle", "}"})
_FENCES = {"\\lfloor": ("\\rfloor", "floor"), "\\lceil": ("\\rceil", "ceil")}
_STOPS = frozenset(
    {"", ",", ";", "&", "\\\\", "\\end", "\\cup", "\\cap", "\\rfloor", "\\rceil", "!"}
    | {"+", "-", "\\pm", "\\mp", "^", "_", "'", "%", "°", "\\rvert", "\\and", "\\or", "\\circ"}
    | {"\\setminus", "\\backslash", "\\prime"}
) | _CLOSERS | _TIMES | _DIVIDE | frozenset(_RELATIONS)  # fmt: skip


def parse(text: str) -> Node:
    """Read a whole answer; raises Malformed for anything unknown, Refused for a hostile one."""
    reader = _Reader(tokenize(text))
    node = reader.items(frozenset())
    if reader.peek():
        raise Malformed(f"unexpected {reader.peek()!r}")
    return node


class _Reader:
    """Recursive descent over the tokens; one method per level of binding."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0
        self._bars = 0

    def peek(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._tokens[at] if at < len(self._tokens) else ""

    def _take(self) -> str:
        token = self.peek()
        if not token:
            raise Malformed("the expression ends too early")
        self._at += 1
        return token

    def _expect(self, *wanted: str) -> str:
        token = self._take()
        if token not in wanted:
            raise Malformed(f"expected {wanted[0]!r}, found {token!r}")
        return token

    def _stops(self, token: str) -> bool:
        """Whether nothing more is multiplied here."""
        return token in _STOPS or token.startswith("\\end{") or (token == "|" and self._bars > 0)

    def items(self, closers: frozenset[str]) -> Node:
        """A list up to a closer, or the single thing it is: `3, 5 and 7`, `x<1 or x>2`."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Refused
        found = [self._relation()]
        joints: set[str] = set()
        while (token := self.peek()) in (",", ";", "\\and", "\\or"):
            self._at += 1
            if token in (",", ";") and self.peek() in ("\\and", "\\or"):
                token = self._take()
            joints.add(token)
            if self.peek() in closers or not self.peek():
                break
            found.append(self._relation())
        self._depth -= 1
        if not joints:
            return found[0]
        name = "or" if "\\or" in joints else "and" if "\\and" in joints else ","
        return Node("list", tuple(found), name)

    def _relation(self) -> Node:
        if self.peek() in ("=", "\\approx", "\\Rightarrow", "\\implies"):
            self._at += 1  # "= 42": what it equals was said before
        sides = [self._union()]
        operators: list[str] = []
        while (token := self.peek()) in _RELATIONS:
            self._at += 1
            side = self._union()
            if token == "\\approx" and sides[-1].op != "symbol":
                continue  # 1/3 ≈ 0.33 claims 1/3
            operators.append(_RELATIONS[token])
            sides.append(side)
        if not operators:
            return sides[0]
        return Node("relation", tuple(sides), " ".join(operators))

    def _union(self) -> Node:
        parts = [self._sum()]
        while self.peek() == "\\cup":
            self._at += 1
            parts.append(self._sum())
        return parts[0] if len(parts) == 1 else Node("union", tuple(parts))

    def _sum(self) -> Node:
        left = self._signed()
        while (token := self.peek()) in ("+", "-", "\\pm", "\\mp"):
            self._at += 1
            right = self._product()
            left = Node({"\\pm": "pm", "\\mp": "mp"}.get(token, token), (left, right))
        return left

    def _signed(self) -> Node:
        token = self.peek()
        if token not in ("+", "-", "\\pm", "\\mp"):
            return self._product()
        self._at += 1
        operand = self._signed()
        if token == "+":
            return operand
        if token == "-":
            return Node("neg", (operand,))
        return Node("pm" if token == "\\pm" else "mp", (Node("number"), operand))

    def _product(self) -> Node:
        left = self._mixed_number() or self._power()
        while True:
            token = self.peek()
            if token in _TIMES or token in _DIVIDE:
                self._at += 1
                left = Node("*" if token in _TIMES else "/", (left, self._operand()))
            elif self._stops(token):
                return left
            elif token[0].isdigit() or token[0] == ".":
                raise Malformed(f"a number directly before {token!r}")
            else:
                left = Node("*", (left, self._power()))

    def _operand(self) -> Node:
        if self.peek() in ("-", "+"):
            sign = self._take()
            operand = self._operand()
            return Node("neg", (operand,)) if sign == "-" else operand
        return self._power()

    def _mixed_number(self) -> Node | None:
        """`1\\frac{4}{5}` and `1 4/5`: an integer and a fraction of integers are a sum."""
        whole = self.peek()
        if not whole.isdigit():
            return None
        start = self._at
        self._at += 1
        if self.peek() == "\\frac":
            self._at += 1
            top, bottom = self._argument(), self._argument()
        elif self.peek().isdigit() and self.peek(1) == "/" and self.peek(2).isdigit():
            top, bottom = _number(self._take()), _number(self.peek(1))
            self._at += 2
        else:
            self._at = start
            return None
        if any(part.op != "number" or part.value.denominator != 1 for part in (top, bottom)):
            self._at = start
            return None
        return Node("+", (_number(whole), Node("/", (top, bottom))))

    def _power(self) -> Node:
        base = self._postfix(self._atom())
        if self.peek() not in ("^", "**"):
            return base
        self._at += 1
        if self.peek() in ("\\circ", "\\degree") or self._tokens[self._at : self._at + 3] == [
            "{", "\\circ", "}",
        ]:  # fmt: skip
            self._at += 3 if self.peek() == "{" else 1
            return Node("deg", (base,))
        sign = self._take() if self.peek() in ("-", "+") else "+"
        exponent = self._power()  # right-associative: 2^3^2 is 2^9
        exponent = Node("neg", (exponent,)) if sign == "-" else exponent
        return self._postfix(Node("^", (base, exponent)))

    def _postfix(self, node: Node) -> Node:
        while True:
            token = self.peek()
            if token == "!":
                node = Node("fact", (node,))
            elif token == "%":
                node = Node("pct", (node,))
            elif token in ("°", "\\degree"):
                node = Node("deg", (node,))
            else:
                return node
            self._at += 1

    def _atom(self) -> Node:
        token = self._take()
        if token[0].isdigit() or token[0] == ".":
            return self._numeral(token)
        if token in _OPENERS or token == "{":
            return self._bracketed(token)
        if token in ("|", "\\vert", "\\lvert", "\\|"):
            return self._absolute(token)
        if token in _FENCES:
            closer, op = _FENCES[token]
            inner = self.items(frozenset({closer}))
            self._expect(closer)
            return Node(op, (inner,))
        if token[0] == '"':
            return self._name(token[1:])
        if token[0] == "\\":
            return self._command(token[1:])
        if token.isalpha():
            if token in "ei" and self.peek() not in ("_", "'"):
                return Node("constant", name=token)
            return self._name(token)
        raise Malformed(f"unexpected {token!r}")

    def _numeral(self, token: str) -> Node:
        if self.peek() == "_":
            self._at += 1
            return Node("symbol", name=f"{token}_{self._raw_argument()}")
        return _number(token)

    def _bracketed(self, opener: str) -> Node:
        if self.peek() in _CLOSERS:
            closer = self._take()
            if opener in ("\\{", "\\lbrace"):
                return Node("set")
            raise Malformed(f"nothing between {opener!r} and {closer!r}")
        bars, self._bars = self._bars, 0
        inner = self.items(_CLOSERS)
        self._bars = bars
        closer = self._take()
        elements = inner.args if inner.op == "list" else (inner,)
        if opener in ("\\{", "\\lbrace"):
            if closer not in ("\\}", "\\rbrace"):
                raise Malformed(f"{opener!r} closed by {closer!r}")
            return Node("set", elements)
        if opener == "{":
            if closer != "}":
                raise Malformed(f"{opener!r} closed by {closer!r}")
            return Node("set", elements) if inner.op == "list" else inner
        if closer not in (")", "]", "\\rangle"):
            raise Malformed(f"{opener!r} closed by {closer!r}")
        if inner.op == "list":
            return Node("tuple", elements, f"{opener} {closer}")
        if closer != _OPENERS[opener] or opener == "\\langle":
            raise Malformed(f"{opener!r} closed by {closer!r}")
        return inner

    def _absolute(self, opener: str) -> Node:
        self._bars += 1
        inner = self._sum()
        self._bars -= 1
        self._expect({"\\lvert": "\\rvert"}.get(opener, opener))
        return Node("abs", (inner,))

    def _command(self, name: str) -> Node:
        if "{" in name:
            return self._with_text(*name.split("{", 1))
        if name == "frac":
            if derivative := self._derivative():
                return derivative
            return Node("/", (self._argument(), self._argument()))
        if name == "sqrt":
            return self._root()
        if name in ("binom", "tbinom", "dbinom"):
            return Node("binom", (self._argument(), self._argument()))
        if name in CONSTANTS:
            return Node("constant", name=CONSTANTS[name])
        if name in FUNCTIONS:
            return self._function(name)
        if name in GREEK:
            return self._name(name)
        if name in ("emptyset", "varnothing"):
            return Node("set")
        if name in _ACCENTS:
            return self._name(f"{name}({self._raw_argument()})")
        raise Malformed(f"unknown command \\{name}")

    def _with_text(self, command: str, content: str) -> Node:
        if command == "begin":
            return self._matrix(content)
        if content in FUNCTIONS:
            return self._function(content)
        if command == "operatorname" or not content:
            raise Malformed(f"unknown operator {content!r}")
        word = content.strip("() .")
        if word in ("e", "i"):
            return Node("constant", name=word)
        return self._name(word if len(word) == 1 else word.casefold())

    def _argument(self) -> Node:
        """One TeX argument: a group, a single digit (`\\frac43`), or a single atom."""
        token = self.peek()
        if token.isdigit() and len(token) > 1:
            self._tokens[self._at : self._at + 1] = [token[0], token[1:]]
        return self._atom()

    def _root(self) -> Node:
        index = Node("number", value=Fraction(2))
        if self.peek() == "[":
            self._at += 1
            index = self.items(frozenset({"]"}))
            self._expect("]")
        return Node("root", (self._atom(), index))

    def _function(self, name: str) -> Node:
        """`\\sin^2 2x`, `\\log_2 8`, `\\exp{at}`, `sin(x)`: the argument binds like a product."""
        if name == "sqrt":
            return self._root()
        name = _ALIASES.get(name, name)
        base = power = None
        while self.peek() in ("^", "_"):
            if self._take() == "_":
                base = self._argument()
            else:
                sign = -1 if self.peek() == "-" else 1
                self._at += sign == -1
                power = self._atom()
                power = Node("neg", (power,)) if sign == -1 else power
        argument = self._function_argument()
        if power == Node("neg", (_number("1"),)) and name in _INVERSES:
            name, power = _INVERSES[name], None
        if name == "log" and base is not None:
            node = Node("log", (argument, base))
        elif base is not None:
            raise Malformed(f"\\{name} with a subscript")
        elif name == "abs":
            node = Node("abs", (argument,))
        else:
            several = argument.op in ("tuple", "list")
            node = Node("call", argument.args if several else (argument,), name)
        return node if power is None else Node("^", (node, power))

    def _function_argument(self) -> Node:
        if self.peek() in ("(", "{", "["):
            return self._postfix(self._atom())
        argument = self._operand()
        while not self._stops(token := self.peek()):
            if token in ("(", "[") or (token[1:] in FUNCTIONS and token != "\\sqrt"):
                break
            argument = Node("*", (argument, self._power()))
        return argument

    def _derivative(self) -> Node | None:
        """`\\frac{dM}{dt}` is one name: dividing d's out of it would make it M/t."""
        raw = "".join(self._tokens[self._at : self._at + 30])
        match = re.match(r"\{(d(?:\^\{?[0-9]\}?)?[^{}]{1,12})\}\{(d[^{}]{1,12})\}", raw)
        if match is None:
            return None
        left = len(match[0])
        while left > 0:
            left -= len(self._take())
        return Node("symbol", name=f"{match[1]}/{match[2]}")

    def _name(self, name: str) -> Node:
        """A variable with its subscripts, primes and, for `x(t)` or `I(0)`, what it is taken at."""
        while True:
            if self.peek() == "_":
                self._at += 1
                name += f"_{self._raw_argument()}"
            elif self.peek() == "'":
                self._at += 1
                name += "'"
            elif self.peek() == "^" and self._raw_ahead(1) in ("\\prime", "{\\prime}", "{'}"):
                self._at += 1
                self._raw_argument()
                name += "'"
            else:
                break
        simple = self.peek(1)
        if self.peek() == "(" and self.peek(2) == ")" and (simple.isalnum() or simple[:1] == "\\"):
            self._at += 3
            return Node("symbol", name=f"{name}({simple})")
        return Node("symbol", name=name)

    def _raw_ahead(self, offset: int) -> str:
        here = self._tokens[self._at + offset : self._at + offset + 3]
        return "".join(here) if here[:1] == ["{"] else "".join(here[:1])

    def _raw_argument(self) -> str:
        """The next group's tokens as text: the inside of a subscript or an accent is a label."""
        token = self._take()
        if token != "{":
            return token.lstrip('"')
        parts: list[str] = []
        while (token := self._take()) != "}":
            if token == "{":
                raise Malformed("a nested subscript")
            parts.append(token.removeprefix("\\text{").removeprefix("\\mathrm{").lstrip('"'))
        return "".join(parts)

    def _matrix(self, environment: str) -> Node:
        if environment == "array":
            self._raw_argument()  # its column layout
        elif environment not in _MATRICES:
            raise Malformed(f"unknown environment {environment}")
        rows: list[Node] = []
        row: list[Node] = []
        while True:
            row.append(self._relation())
            token = self._take()
            if token == "&":
                continue
            rows.append(Node("list", tuple(row), "row"))
            row = []
            closing = token if token != "\\\\" else self.peek()
            if closing == f"\\end{{{environment}":
                self._at += token == "\\\\"
                break
            if token != "\\\\":
                raise Malformed(f"unexpected {token!r} in a matrix")
        if len({len(r.args) for r in rows}) != 1:
            raise Malformed("a matrix with rows of different lengths")
        node = Node("matrix", tuple(rows))
        return Node("call", (node,), "det") if environment == "vmatrix" else node


def _number(token: str) -> Node:
    if "\\overline" in token:
        head, _, repeating = token.replace(" ", "").partition("\\overline{")
        repeating = repeating.rstrip("}")
        whole, _, decimals = head.partition(".")
        shift = 10 ** len(decimals)
        value = Fraction(int(repeating), (10 ** len(repeating) - 1) * shift)
        return Node("number", value=value + Fraction(int(whole + decimals or "0"), shift))
    token = token.replace(",", "")
    mantissa, _, exponent = token.lower().partition("e")
    if len(token) > 1000 or len(exponent) > 5 or abs(int(exponent or 0)) > 1000:
        raise Refused
    decimals = 0 if exponent else len(mantissa.partition(".")[2])
    return Node(
        "number", value=Fraction(mantissa) * Fraction(10) ** int(exponent or 0), places=decimals
    )
