"""Rewrites what can only be a range of numbers as intervals.

Owns that `0 \\le x < 1` is `[0,1)`, and how `x > 2 and x < 5`, `|x| \\ge 3`, `x \\ne 3`,
`x \\in [0,1)` and `\\{x : x > 2\\}` are ranges. An interval is a node `interval` with its two ends,
the variable it bounds as its name (or none), and in `places` which ends are open. Whether two
ranges are equal is `answer_shapes`'s business.
"""

from dataclasses import replace

from thinkgate import algebra
from thinkgate.latex import Node

__all__ = ["as_range", "interval_of", "is_name"]

_OPEN_LEFT, _OPEN_RIGHT = 1, 2
_OPEN = _OPEN_LEFT | _OPEN_RIGHT
_INFINITY = Node("constant", name="oo")
_MINUS_INFINITY = Node("neg", (_INFINITY,))
_TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


def is_name(node: Node) -> bool:
    """Whether `node` is a variable by itself; e and i can be one."""
    return node.op == "symbol" or (node.op == "constant" and node.name in ("e", "i"))


def as_range(node: Node) -> Node:
    """`node` as an interval, a union of them or a set where it is one; otherwise unchanged.

    `(2,4)` stays a pair, because it may be a point: see `interval_of`.
    """
    match node.op:
        case "tuple" if len(node.args) == 2:
            endless = _INFINITY in node.args or _MINUS_INFINITY in node.args
            if endless or node.name in ("( ]", "[ )"):
                return interval_of(node) or node
        case "union":
            parts = [as_range(part) for part in node.args]
            flat = [p for part in parts for p in (part.args if part.op == "union" else (part,))]
            return replace(node, args=tuple(flat))
        case "relation":
            return _of_relation(node) or node
        case "set" if len(node.args) == 1 and node.args[0].op == "relation":
            # { x | 0 <= x < 1 } is its condition.
            built = node.args[0]
            bar, _, condition = built.name.partition(" ")
            if bar in ("mid", ":") and condition:
                return as_range(replace(built, args=built.args[1:], name=condition))
        case "list" if node.name in ("or", "and") and len(node.args) == 2:
            first, second = map(as_range, node.args)
            if first.op == second.op == "interval" and first.name == second.name:
                if node.name == "or":
                    return Node("union", (first, second))
                return _meet(first, second) or node
        case _:
            pass
    return node


def interval_of(pair: Node) -> Node | None:
    """A bracketed pair read as an interval."""
    opener, _, closer = pair.name.partition(" ")
    if len(pair.args) != 2 or opener not in "([" or closer not in ")]":
        return None
    ends = (_OPEN_LEFT if opener == "(" else 0) | (_OPEN_RIGHT if closer == ")" else 0)
    return _interval(*pair.args, ends)


def _interval(low: Node, high: Node, ends: int, name: str = "") -> Node:
    return Node("interval", (low, high), name, places=ends)


def _of_relation(node: Node) -> Node | None:
    operators, sides = node.name.split(), node.args
    if set(operators) == {":"}:
        return Node("tuple", sides, ": :")  # a ratio
    if operators == ["in"] and is_name(sides[0]):
        inner = as_range(sides[1])
        return (interval_of(inner) or inner) if inner.op == "tuple" else inner
    if len(sides) == 2:
        return _of_comparison(sides[0], operators[0], sides[1])
    if (
        len(sides) != 3
        or not is_name(sides[1])
        or not (_constant(sides[0]) and _constant(sides[2]))
    ):
        return None
    if operators[0] in (">", ">="):
        operators, sides = [_TURNED.get(op, op) for op in reversed(operators)], sides[::-1]
    if not set(operators) <= {"<", "<="}:
        return None
    ends = (_OPEN_LEFT if operators[0] == "<" else 0) | (_OPEN_RIGHT if operators[1] == "<" else 0)
    return _interval(sides[0], sides[2], ends, sides[1].name)


def _of_comparison(left: Node, operator: str, right: Node) -> Node | None:
    """One variable, or its absolute value, against a constant."""
    if _constant(left) and operator in _TURNED:
        left, operator, right = right, _TURNED[operator], left
    if not _constant(right):
        return None
    strict = "=" not in operator
    if left.op == "abs" and is_name(left.args[0]) and operator in _TURNED:
        # |x| < 3 is (-3,3), |x| >= 3 two half-lines; a negative bound would make neither.
        name, low = left.args[0].name, Node("neg", (right,))
        if operator.startswith("<"):
            return _interval(low, right, _OPEN if strict else 0, name)
        below = _interval(_MINUS_INFINITY, low, _OPEN if strict else _OPEN_LEFT, name)
        above = _interval(right, _INFINITY, _OPEN if strict else _OPEN_RIGHT, name)
        return Node("union", (below, above))
    if not is_name(left):
        return None
    below = _interval(_MINUS_INFINITY, right, _OPEN if strict else _OPEN_LEFT, left.name)
    above = _interval(right, _INFINITY, _OPEN if strict else _OPEN_RIGHT, left.name)
    match operator:
        case "<" | "<=":
            return below
        case ">" | ">=":
            return above
        case "!=":
            return Node("union", (replace(below, places=_OPEN), replace(above, places=_OPEN)))
        case _:
            return None


def _constant(node: Node) -> bool:
    return algebra.is_expression(node) and not algebra.symbols(node) and not is_name(node)


def _meet(first: Node, second: Node) -> Node | None:
    """The interval two half-lines pointing at each other have in common: `x > 2 and x < 5`."""
    if first.args[0] == _MINUS_INFINITY:
        first, second = second, first
    if first.args[1] != _INFINITY or second.args[0] != _MINUS_INFINITY:
        return None
    ends = (first.places & _OPEN_LEFT) | (second.places & _OPEN_RIGHT)
    return _interval(first.args[0], second.args[1], ends, first.name)
