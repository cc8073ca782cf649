"""Decides whether two trees are the same answer: lists, intervals, equations, matrices, values.

Owns what counts as the same: order matters in a tuple and not in a list, `x=5` is 5,
`0 \\le x < 1` is `[0,1)`, `1 \\pm \\sqrt2` is two values, a degree or percent sign is optional.
Equality of two expressions is `algebra`'s. Runs in the answer worker only.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from thinkgate import algebra
from thinkgate.answer_ranges import as_range, interval_of, is_name
from thinkgate.latex import Node
from thinkgate.quantities import rounds_to

MAX_ITEMS = 200
"""Longer lists are refused: matching unordered lists takes quadratic time."""


def spread(node: Node) -> Node:
    """Write out every ± : `1 \\pm \\sqrt2` is the list of two values, also inside a set."""
    if node.op in ("list", "set"):
        items: list[Node] = []
        for item in map(spread, node.args):
            items.extend(item.args if item.op == "list" and item.name == "pm" else (item,))
        return replace(node, args=tuple(items))
    if not _has_sign_choice(node):
        return node
    if node.op in ("tuple", "union", "matrix"):
        return replace(node, args=tuple(map(spread, node.args)))
    return Node("list", (_choose(node, "+"), _choose(node, "-")), "pm")


def _has_sign_choice(node: Node) -> bool:
    return node.op in ("pm", "mp") or any(map(_has_sign_choice, node.args))


def _choose(node: Node, sign: str) -> Node:
    args = tuple(_choose(child, sign) for child in node.args)
    if node.op == "pm":
        return replace(node, op=sign, args=args)
    if node.op == "mp":
        return replace(node, op="-" if sign == "+" else "+", args=args)
    return replace(node, args=args)


def matches(gold: Node, answer: Node, tolerance: float | None = None) -> bool | None:
    """Whether `answer` says what `gold` says; None when neither could be established."""
    gold, answer = as_range(gold), as_range(answer)
    if gold.op in ("interval", "union") or answer.op in ("interval", "union"):
        return _same_ranges(gold, answer, tolerance)
    if gold.op == "relation" and answer.op == "relation":
        return _same_relation(gold, answer, tolerance)
    if gold.op == "relation" or answer.op == "relation":
        return _value_and_relation(gold, answer, tolerance)
    if gold.op == "matrix" or answer.op == "matrix":
        return _same_matrix(gold, answer, tolerance)
    containers = ("list", "set", "tuple")
    if gold.op in containers or answer.op in containers:
        return _same_items(gold, answer, tolerance)
    return _same_value(gold, answer, tolerance)


def _same_value(gold: Node, answer: Node, tolerance: float | None) -> bool | None:
    if not (algebra.is_expression(gold) and algebra.is_expression(answer)):
        return None
    same = algebra.same_expression(gold, answer, tolerance)
    if same:
        return True
    # A degree or percent sign that only one side writes may be left out: 90° is 90 and also π/2.
    if (gold.op in ("deg", "pct")) != (answer.op in ("deg", "pct")):
        bare_gold = gold.args[0] if gold.op in ("deg", "pct") else gold
        bare_answer = answer.args[0] if answer.op in ("deg", "pct") else answer
        same = algebra.same_expression(bare_gold, bare_answer, tolerance)
    return same or _rounded(gold, answer) or same


def _rounded(gold: Node, answer: Node) -> bool:
    """Whether one side is a long decimal and the other the constant it rounds."""
    for decimal, exact in ((gold, answer), (answer, gold)):
        negative = decimal.op == "neg"
        literal = decimal.args[0] if negative else decimal
        if literal.op != "number" or literal.places < 6:
            continue
        value = algebra.rational_value(exact)
        if value is not None:
            return rounds_to(-literal.value if negative else literal.value, literal.places, value)
    return False


def _same_items(gold: Node, answer: Node, tolerance: float | None) -> bool | None:
    """Lists and sets match in any order, a tuple gold only in its own."""
    if gold.op == "tuple" and answer.op == "set":
        return False
    first, second = _elements(gold), _elements(answer)
    if gold.op not in ("list", "set", "tuple") and answer.op == "list" and answer.name != "pm":
        # "3/4 or 0.75": one claim written twice. Every reading must be right, or none is.
        return _all(matches(gold, item, tolerance) for item in second[:MAX_ITEMS])
    if max(len(first), len(second)) > MAX_ITEMS:
        raise algebra.TooLarge
    if len(first) != len(second):
        return False
    if gold.op == "tuple":
        if answer.op == "tuple" and not _brackets_agree(gold, answer):
            return False
        if len(first) > 1 and answer.op == "list" and _labels(answer):
            second = tuple(item.args[-1] for item in second)
        return _all(matches(x, y, tolerance) for x, y in zip(first, second, strict=True))
    return _same_in_any_order(first, second, tolerance)


def _same_in_any_order(
    first: Sequence[Node], second: Sequence[Node], tolerance: float | None
) -> bool | None:
    left = list(second)
    unknown = False
    for item in first:
        for i, other in enumerate(left):
            same = matches(item, other, tolerance)
            if same:
                del left[i]
                break
            unknown = unknown or same is None
        else:
            return None if unknown else False
    return True


def _all(results: Iterable[bool | None]) -> bool | None:
    """True when all are, False when one is, None when that is not known."""
    unknown = False
    for result in results:
        if result is False:
            return False
        unknown = unknown or result is None
    return None if unknown else True


def _elements(node: Node) -> tuple[Node, ...]:
    return node.args if node.op in ("list", "set", "tuple") else (node,)


def _labels(node: Node) -> bool:
    """Whether a list gives several variables their values: `x=1, y=2`."""
    names = [item.args[0].name for item in node.args if _is_assignment(item)]
    return len(names) == len(node.args) and len(set(names)) == len(names)


def _brackets_agree(gold: Node, answer: Node) -> bool:
    # [1,2] is not (1,2), one being an interval; three numbers are a vector in any bracket.
    if len(gold.args) == 2:
        return gold.name == answer.name or "\\langle" in gold.name + answer.name
    return ":" not in gold.name + answer.name or gold.name == answer.name


def _is_assignment(node: Node) -> bool:
    return node.op == "relation" and set(node.name.split()) == {"="} and is_name(node.args[0])


def _value_and_relation(gold: Node, answer: Node, tolerance: float | None) -> bool | None:
    """One side is an equation, the other a value: `x = 5` and 5, `6·7 = 42` and 42."""
    relation, value = (gold, answer) if gold.op == "relation" else (answer, gold)
    if set(relation.name.split()) != {"="}:
        return False
    first = relation.args[0]
    if not (is_name(first) or (relation is answer and not algebra.symbols(first))):
        return False
    last = relation.args[-1]
    if value.op == "list" and value.name == "pm":
        return False
    return (
        matches(value, last, tolerance) if relation is answer else matches(last, value, tolerance)
    )


def _same_relation(gold: Node, answer: Node, tolerance: float | None) -> bool | None:
    if _is_assignment(gold) and _is_assignment(answer):
        one, other = gold.args[0].name, answer.args[0].name
        same_name = one == other or "(" in one or "(" in other
        same = matches(gold.args[-1], answer.args[-1], tolerance) if same_name else False
        if same is not False:
            return same
    if len(gold.args) != 2 or len(answer.args) != 2:
        if gold.name != answer.name or len(gold.args) != len(answer.args):
            return False
        pairs = zip(gold.args, answer.args, strict=True)
        return _all(matches(x, y, tolerance) for x, y in pairs)
    return _same_equation(gold, answer)


def _same_equation(gold: Node, answer: Node) -> bool | None:
    """Two relations are the same when one is the other times a constant, of the right sign."""
    sides = (*gold.args, *answer.args)
    if not all(map(algebra.is_expression, sides)):
        return None
    ratio = algebra.proportional(Node("-", gold.args), Node("-", answer.args))
    flipped = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
    if ratio is None:
        return False
    if gold.name in ("=", "!="):
        return answer.name == gold.name
    return answer.name == (gold.name if ratio > 0 else flipped.get(gold.name))


def _same_ranges(gold: Node, answer: Node, tolerance: float | None) -> bool | None:
    """Intervals and unions of them; a pair in round brackets may be an open interval."""
    first, second = _ranges(gold), _ranges(answer)
    if first is None or second is None:
        return False
    names = {part.name for part in (*first, *second)} - {""}
    if len(names) > 1 or len(first) != len(second):
        return False
    if len(first) == 1:
        return _same_interval(first[0], second[0], tolerance)
    return _same_in_any_order(first, second, tolerance)


def _ranges(node: Node) -> list[Node] | None:
    parts = node.args if node.op == "union" else (node,)
    ranges: list[Node] = []
    for part in parts:
        if part.op == "tuple":
            part = interval_of(part)
        if part is None or part.op not in ("interval", "set"):
            return None
        ranges.append(part)
    return ranges


def _same_interval(gold: Node, answer: Node, tolerance: float | None) -> bool | None:
    if gold.op != "interval" or answer.op != "interval":
        return _same_items(gold, answer, tolerance) if gold.op == answer.op else False
    if gold.places != answer.places:
        return False
    return _all(matches(x, y, tolerance) for x, y in zip(gold.args, answer.args, strict=True))


def _same_matrix(gold: Node, answer: Node, tolerance: float | None) -> bool | None:
    """Matrices entry by entry; a single row or column is also the vector of its entries."""
    first, second = _rows(gold), _rows(answer)
    if first is None or second is None:
        # Sums and products of matrices are left to math-verify; a number is no matrix.
        return None if _has_matrix(gold) and _has_matrix(answer) else False
    if [len(row) for row in first] != [len(row) for row in second]:
        flat = gold.op != answer.op and (len(first) == 1 or all(len(row) == 1 for row in first))
        if not flat and not (gold.op != answer.op and len(second) == 1):
            return False
    one = [entry for row in first for entry in row]
    other = [entry for row in second for entry in row]
    if len(one) != len(other):
        return False
    return _all(matches(x, y, tolerance) for x, y in zip(one, other, strict=True))


def _has_matrix(node: Node) -> bool:
    return node.op == "matrix" or any(map(_has_matrix, node.args))


def _rows(node: Node) -> list[tuple[Node, ...]] | None:
    if node.op == "matrix":
        return [row.args for row in node.args]
    if node.op in ("tuple", "list"):
        return [node.args]
    return None
