"""Decides whether two expression trees are the same function, by evaluating both.

Owns numeric meaning: exact rationals where possible, high-precision values otherwise, and the
identity test at fixed sample points. Two expressions that agree to 30 digits at several
unrelated points are the same expression; one point where both are real and differ proves they
are not. Differences are always measured against the size of the values, so 1/2^99 is not 1/2^98.
Runs in the answer worker only: mpmath is imported here.
"""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import mpmath  # pyright: ignore[reportMissingTypeStubs]

from thinkgate.latex import Node

DIGITS = 50
"""Working precision. Agreement is asked to 30 digits of it, so cancellation may eat twenty."""

MAX_MAGNITUDE = 1_000_000
"""Powers of more bits, and sines or exponentials of more, are refused: 10^{10^{10}} is a trap."""

_mp: Any = mpmath.mp.clone()
_mp.dps = DIGITS


class TooLarge(Exception):
    """A value too large to compute: neither equal nor different, an error."""


class Undefined(Exception):
    """No value at this point: a pole, a logarithm of zero, an operation without a number."""


def symbols(node: Node) -> set[str]:
    """Names of the free variables of `node`."""
    if node.op == "symbol":
        return {node.name}
    found: set[str] = set()
    for child in node.args:
        found |= symbols(child)
    return found


def is_expression(node: Node) -> bool:
    """Whether `node` has a value: no list, set, interval, relation or matrix inside."""
    if node.op in ("tuple", "set", "list", "union", "matrix", "relation", "pm", "mp"):
        return False
    return all(is_expression(child) for child in node.args)


def rational_value(node: Node) -> Fraction | None:
    """A real constant as a fraction good to the working precision; None for anything else."""
    if symbols(node) or not is_expression(node):
        return None
    try:
        value = _value(node, {})
    except Undefined:
        return None
    if not _is_real(value) or not _mp.isfinite(value):
        return None
    value = _mp.re(value)
    _bounded(_mp.log(1 + abs(value)), 1000)
    return Fraction(_mp.nstr(value, DIGITS - 5))


def same_expression(a: Node, b: Node, tolerance: float | None = None) -> bool | None:
    """Whether `a` and `b` are equal wherever both are real; None when no point could tell.

    `\\log` without a base means the natural or the decimal one, whichever makes them agree, but
    the same one on both sides.
    """
    same = _agree(a, b, tolerance)
    if same is False and (_has_bare_log(a) or _has_bare_log(b)):
        return _agree(_decimal_log(a), _decimal_log(b), tolerance)
    return same


def _agree(a: Node, b: Node, tolerance: float | None) -> bool | None:
    names = sorted(symbols(a) | symbols(b))
    real: list[bool] = []
    unreal: list[bool] = []
    for point, positive in _points(names):
        if not positive and not real and len(unreal) >= 2:
            break  # complex everywhere it was tried
        try:
            x, y = _value(a, point), _value(b, point)
            equal = _close(x, y, tolerance) or _is_noise(a, b, point, x, y)
        except Undefined:
            continue
        if _is_real(x) and _is_real(y):
            if not equal:
                return False
            real.append(equal)
        elif positive:
            # Off the real line branches of roots and logarithms differ for no one's fault;
            # they count only when nothing real is left to compare.
            unreal.append(equal)
        if not names:
            return equal
    if len(real) >= 2:
        return True
    return all(unreal) if len(real) + len(unreal) >= 2 else None


def _has_bare_log(node: Node) -> bool:
    return (node.op == "call" and node.name == "log") or any(map(_has_bare_log, node.args))


def _decimal_log(node: Node) -> Node:
    is_log = node.op == "call" and node.name == "log"
    args = tuple(map(_decimal_log, node.args))
    return replace(node, args=args, name="log10" if is_log else node.name)


def proportional(a: Node, b: Node) -> Any | None:
    """The constant c with a = c·b at every sample point; None when there is none, or it is zero."""
    names = sorted(symbols(a) | symbols(b))
    ratio = None
    seen = 0
    for point, _ in _points(names):
        try:
            x, y = _value(a, point), _value(b, point)
        except Undefined:
            continue
        if not (_is_real(x) and _is_real(y)):
            continue
        if y == 0 or x == 0:
            return None
        if ratio is None:
            ratio = x / y
        elif not _close(ratio, x / y, None):
            return None
        seen += 1
    return ratio if seen >= 2 else None


def _is_noise(a: Node, b: Node, point: dict[str, Any], x: Any, y: Any) -> bool:
    """Whether x - y is rounding: noise shrinks when the precision grows, a difference stays."""
    difference = _mp.fabs(x - y)
    if not _mp.isfinite(difference):
        return False
    if x != 0 and y != 0 and difference > max(_mp.fabs(x), _mp.fabs(y)) / 10**10:
        return False  # forty digits would have had to cancel
    with _mp.workdps(2 * DIGITS):
        again = _value(a, point) - _value(b, point)
        return bool(_mp.fabs(again) < difference * _mp.mpf(10) ** (20 - DIGITS))


def _points(names: list[str]) -> Iterator[tuple[dict[str, Any], bool]]:
    """Fixed, unrelated irrational sample points: four positive, then four of mixed signs."""
    for k in range(8):
        point = {}
        for i, name in enumerate(names):
            seed = (i + 1) * 0.754877666246693 + (k + 1) * 0.569840290998053 + len(name) * 0.1415
            value = _mp.mpf("0.31") + 3 * _mp.frac(_mp.mpf(seed) + _mp.sqrt(i + k + 2))
            negative = k >= 4 and (i + k) % 2 == 1
            point[name] = -value if negative else value
        yield point, k < 4


def _is_real(value: Any) -> bool:
    if isinstance(value, _mp.mpc):
        return bool(abs(value.imag) <= _mp.mpf(10) ** (10 - DIGITS) * max(1, abs(value.real)))
    return True


def _close(x: Any, y: Any, tolerance: float | None) -> bool:
    if _mp.isinf(x) or _mp.isinf(y):
        return bool(x == y)
    if _mp.isnan(x) or _mp.isnan(y):
        return False
    largest = max(_mp.fabs(x), _mp.fabs(y))
    relative = _mp.mpf(10) ** (20 - DIGITS) if tolerance is None else _mp.mpf(tolerance)
    return bool(_mp.fabs(x - y) <= relative * largest)


def _value(node: Node, point: dict[str, Any]) -> Any:
    """Evaluate at `point`; raises Undefined where there is no value, TooLarge where it explodes."""
    match node.op:
        case "number":
            return _mp.mpf(node.value.numerator) / node.value.denominator
        case "symbol":
            return point[node.name]
        case "constant":
            return {"pi": +_mp.pi, "e": +_mp.e, "i": _mp.mpc(0, 1), "oo": _mp.inf}[node.name]
        case "^":
            return _power(node, point)
        case "call":
            return _call(node, point)
        case _:
            return _arithmetic(node.op, [_value(child, point) for child in node.args])


def _arithmetic(op: str, values: list[Any]) -> Any:
    match op, values:
        case "+", [x, y]:
            return _defined(x + y)
        case "-", [x, y]:
            return _defined(x - y)
        case "*", [x, y]:
            return _defined(x * y)
        case "/", [x, y]:
            return _divide(x, y)
        case "neg", [x]:
            return -x
        case "pct", [x]:
            return x / 100
        case "deg", [x]:
            return x * _mp.pi / 180
        case "abs", [x]:
            return _mp.fabs(x)
        case "root", [x, n]:
            return _root(x, n)
        case "log", [x, base]:
            return _divide(_log(x), _log(base))
        case "floor", [x]:
            return _mp.floor(x)
        case "ceil", [x]:
            return _mp.ceil(x)
        case "fact", [x]:
            return _factorial(x)
        case "binom", [n, k]:
            _bounded(abs(n) + abs(k), 1e6)
            return _mp.binomial(n, k)
        case _:
            raise Undefined


def _defined(value: Any) -> Any:
    if _mp.isnan(value):
        raise Undefined
    return value


def _divide(x: Any, y: Any) -> Any:
    if y == 0:
        raise Undefined
    return _defined(x / y)


def _bounded(value: Any, limit: float) -> None:
    if not _mp.isfinite(value) or _mp.fabs(value) > limit:
        raise TooLarge


def _power(node: Node, point: dict[str, Any]) -> Any:
    x, n = (_value(child, point) for child in node.args)
    if not (_mp.isfinite(x) and _mp.isfinite(n)):
        raise Undefined
    if x == 0:
        if not _is_real(n) or _mp.re(n) < 0:
            raise Undefined
        return _mp.mpf(1) if n == 0 else _mp.mpf(0)
    _bounded(n * max(1, abs(_mp.mag(x))), MAX_MAGNITUDE)
    if not isinstance(x, _mp.mpc) and x < 0 and not _mp.isint(n):
        exponent = _rational(node.args[1])
        if exponent is not None and exponent.denominator % 2 == 1:
            # The real branch, as with an odd root: (-8)^{1/3} is -2.
            size = _mp.power(-x, n)
            return -size if exponent.numerator % 2 else size
    return _mp.power(x, n)


def _rational(node: Node) -> Fraction | None:
    match node.op, node.args:
        case "number", _:
            return node.value
        case "neg", (x,):
            value = _rational(x)
            return None if value is None else -value
        case "/", (x, y):
            top, bottom = _rational(x), _rational(y)
            return top / bottom if top is not None and bottom else None
        case _:
            return None


def _root(x: Any, n: Any) -> Any:
    if n == 0 or not _mp.isfinite(x):
        raise Undefined
    if n == 2:
        return _mp.sqrt(x)
    if not isinstance(x, _mp.mpc) and x < 0 and _mp.isint(n) and int(n) % 2:
        return -_mp.power(-x, 1 / n)
    return _mp.power(x, 1 / n) if x != 0 else x


def _log(x: Any) -> Any:
    if x == 0:
        raise Undefined
    return _mp.log(x)


def _factorial(x: Any) -> Any:
    _bounded(x, 1e5)
    if not isinstance(x, _mp.mpc) and x < 0 and _mp.isint(x):
        raise Undefined
    return _mp.factorial(x)


# fmt: off
_MPMATH_NAMES = {
    "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc",
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot", "arcsec": "asec",
    "arccsc": "acsc", "sinh": "sinh", "cosh": "cosh", "tanh": "tanh", "exp": "exp",
    "Re": "re", "Im": "im", "arg": "arg",
}
# fmt: on


def _call(node: Node, point: dict[str, Any]) -> Any:
    values = [_value(child, point) for child in node.args]
    if node.name in ("max", "min") and all(map(_is_real, values)):
        reals: list[Any] = [_mp.re(value) for value in values]
        return max(reals) if node.name == "max" else min(reals)
    if len(values) != 1 or not _mp.isfinite(values[0]):
        raise Undefined
    x = values[0]
    if node.name == "log10":
        return _divide(_log(x), _log(_mp.mpf(10)))
    if node.name in ("ln", "log"):
        return _log(x)
    if node.name not in _MPMATH_NAMES:
        raise Undefined
    _bounded(x, MAX_MAGNITUDE)
    try:
        return _defined(getattr(_mp, _MPMATH_NAMES[node.name])(x))
    except (ZeroDivisionError, ValueError) as error:
        raise Undefined from error
