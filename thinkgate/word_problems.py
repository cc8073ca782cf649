"""Word problems with fresh names and numbers, in the manner of GSM-Symbolic (Mirzadeh et al. 2024,
arXiv 2410.05229), and on request with a sentence that sounds relevant and is not (their GSM-NoOp).

Owns the templates and what makes two problems the same: template and numbers, whatever the names.
All golds are whole numbers, all steps single operations.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["WordProblem", "draw_word_problem"]

NAMES = (
    "Ada Amir Anya Aoife Bao Bela Carlos Chidi Dara Elif Emeka Farah Finn Greta Hana Hugo Ines "
    "Ivan Jada Jonas Kaito Kemal Lena Lior Mara Mateo Nadia Nils Noor Olga Omar Pia Quinn Rosa "
    "Ravi Sana Soren Tala Tomas Uma Viktor Wanda Yara Yusuf Zoe"
)
THINGS = "pencils marbles stickers buttons beads stamps shells postcards candles ribbons"
FOODS = "apples pears plums lemons peaches mangoes figs"


@dataclass(frozen=True, slots=True)
class WordProblem:
    """One problem, with all that a data set may want of it."""

    prompt: str
    gold: str
    steps: tuple[str, ...]
    core: str
    """Template and numbers: problems that share it are one, and belong in one half."""


Numbers = Mapping[str, int]
Solution = tuple[Numbers, list[str], int]
"""The numbers of the text, one operation a step, and the result."""


@dataclass(frozen=True, slots=True)
class _Template:
    text: str
    """Everything but the question. Capital letters in braces are names, `thing` and `food` nouns,
    small letters numbers."""

    question: str
    noop: str
    """A sentence with a number `z` that changes nothing."""

    draw: Callable[[random.Random], Solution | None]
    """None for numbers that do not go well together."""


def draw_word_problem(draw: random.Random, distractors: bool) -> WordProblem:
    """One problem, of each template as often as of any other.

    The sentence that changes nothing is drawn either way, so that the problems of a seed are the
    same with and without.
    """
    name = draw.choice(sorted(_TEMPLATES))
    template = _TEMPLATES[name]
    words: dict[str, object] = dict(zip("ABC", draw.sample(NAMES.split(), 3), strict=True))
    words |= {"thing": draw.choice(THINGS.split()), "food": draw.choice(FOODS.split())}
    words["z"] = draw.randint(3, 9)
    while (solution := template.draw(draw)) is None:
        pass
    numbers, steps, result = solution
    parts = [template.text, template.noop if distractors else "", template.question]
    text = " ".join(part.format_map(words | dict(numbers)) for part in parts if part)
    core = f"{name} {sorted(numbers.items())}"
    return WordProblem(text, str(result), tuple(steps), core)


def _gift(draw: random.Random) -> Solution | None:
    n, k, g = draw.randint(3, 19), draw.randint(4, 24), draw.randint(5, 60)
    if g >= n * k:
        return None
    return {"n": n, "k": k, "g": g}, [f"{n}*{k}={n * k}", f"{n * k}-{g}={n * k - g}"], n * k - g


def _change(draw: random.Random) -> Solution | None:
    n, p, m, q = (draw.randint(2, 9) for _ in range(4))
    note, first, second = draw.choice((20, 50, 100)), n * p, m * q
    total = first + second
    if not note // 4 < total < note:
        return None
    steps = [f"{n}*{p}={first}", f"{m}*{q}={second}", f"{first}+{second}={total}"]
    return (
        {"n": n, "p": p, "m": m, "q": q, "note": note},
        [*steps, f"{note}-{total}={note - total}"],
        note - total,
    )


def _printing(draw: random.Random) -> Solution | None:
    r, m, c = draw.randint(4, 30), draw.randint(3, 40), draw.randint(2, 9)
    if r * m % c:
        return None
    p = r * m // c
    return {"r": r, "p": p, "c": c}, [f"{p}*{c}={r * m}", f"{r * m}/{r}={m}"], m


def _ages(draw: random.Random) -> Solution | None:
    d, f, c, y = draw.randint(2, 15), draw.randint(2, 5), draw.randint(2, 14), draw.randint(2, 20)
    middle, now = f * c, f * c + d
    steps = [f"{f}*{c}={middle}", f"{middle}+{d}={now}", f"{now}+{y}={now + y}"]
    return {"d": d, "f": f, "c": c, "y": y}, steps, now + y


def _sharing(draw: random.Random) -> Solution | None:
    a, b, c = (draw.randint(6, 80) for _ in range(3))
    if (a + b + c) % 3 or len({a, b, c}) < 3:
        return None
    total = a + b + c
    steps = [f"{a}+{b}={a + b}", f"{a + b}+{c}={total}", f"{total}/3={total // 3}"]
    return {"a": a, "b": b, "c": c}, steps, total // 3


def _cycling(draw: random.Random) -> Solution | None:
    s, h, t, i = draw.randint(12, 28), draw.randint(2, 5), draw.randint(9, 28), draw.randint(2, 5)
    steps = [f"{s}*{h}={s * h}", f"{t}*{i}={t * i}", f"{s * h}+{t * i}={s * h + t * i}"]
    return {"s": s, "h": h, "t": t, "i": i}, steps, s * h + t * i


def _garden(draw: random.Random) -> Solution | None:
    r, k, d, t = draw.randint(3, 12), draw.randint(5, 20), draw.randint(2, 30), draw.randint(3, 15)
    left = r * k - d
    if left <= 0:
        return None
    steps = [f"{r}*{k}={r * k}", f"{r * k}-{d}={left}", f"{left}*{t}={left * t}"]
    return {"r": r, "k": k, "d": d, "t": t}, steps, left * t


def _sale(draw: random.Random) -> Solution | None:
    p, off, v = draw.randint(20, 240), draw.choice((5, 10, 15, 20, 25, 30, 40)), draw.randint(2, 25)
    if p * off % 100:
        return None
    cut = p * off // 100
    if p - cut <= v:
        return None
    steps = [f"{p}*{off}={p * off}", f"{p * off}/100={cut}", f"{p}-{cut}={p - cut}"]
    steps.append(f"{p - cut}-{v}={p - cut - v}")
    return {"p": p, "off": off, "v": v}, steps, p - cut - v


def _reading(draw: random.Random) -> Solution | None:
    a, b = draw.randint(8, 70), draw.randint(3, 40)
    third = 2 * a - b
    if third <= 0:
        return None
    total = a + 2 * a + third
    steps = [f"{a}*2={2 * a}", f"{2 * a}-{b}={third}", f"{a}+{2 * a}={3 * a}"]
    return {"a": a, "b": b}, [*steps, f"{3 * a}+{third}={total}"], total


def _wages(draw: random.Random) -> Solution | None:
    w, h, d, s = draw.randint(12, 30), draw.randint(3, 9), draw.randint(2, 6), draw.randint(15, 200)
    earned = w * h * d
    if s >= earned:
        return None
    steps = [f"{w}*{h}={w * h}", f"{w * h}*{d}={earned}", f"{earned}-{s}={earned - s}"]
    return {"w": w, "h": h, "d": d, "s": s}, steps, earned - s


def _tank(draw: random.Random) -> Solution | None:
    minutes, fill, leak = draw.randint(4, 40), draw.randint(8, 30), draw.randint(2, 6)
    start = draw.randint(10, 150)
    gain, missing = fill - leak, (fill - leak) * minutes
    steps = [f"{start + missing}-{start}={missing}", f"{fill}-{leak}={gain}"]
    numbers = {"v": start + missing, "s": start, "f": fill, "l": leak}
    return numbers, [*steps, f"{missing}/{gain}={minutes}"], minutes


def _school(draw: random.Random) -> Solution | None:
    c, k, b = draw.randint(4, 16), draw.randint(15, 30), draw.randint(20, 120)
    others = c * k - b
    if others <= 0 or others % 2:
        return None
    steps = [f"{c}*{k}={c * k}", f"{c * k}-{b}={others}", f"{others}/2={others // 2}"]
    return {"c": c, "k": k, "b": b}, steps, others // 2


def _eggs(draw: random.Random) -> Solution | None:
    n, e, u, q = (
        draw.randint(6, 30),
        draw.randint(3, 7),
        draw.randint(2, 40),
        draw.choice((6, 10, 12)),
    )
    sold = n * e - u
    if sold <= 0 or sold % q:
        return None
    steps = [f"{n}*{e}={n * e}", f"{n * e}-{u}={sold}", f"{sold}/{q}={sold // q}"]
    return {"n": n, "e": e, "u": u, "q": q}, steps, sold // q


_TEMPLATES = {
    "gift": _Template(
        "{A} packs {n} boxes with {k} {thing} each and then gives {g} {thing} to {B}.",
        "How many {thing} does {A} have left?",
        "{z} of the {thing} are a little smaller than the others.",
        _gift,
    ),
    "change": _Template(
        "At the market {A} buys {n} {food} for ${p} each and {m} melons for ${q} each, and pays "
        "with a ${note} note.",
        "How many dollars does {A} get back?",
        "The cherries cost ${z} a bag today.",
        _change,
    ),
    "printing": _Template(
        "A printer in the office of {A} prints {r} pages a minute. A report has {p} pages, and {A} "
        "needs {c} copies of it.",
        "How many minutes does the printer need?",
        "The printer is {z} years old.",
        _printing,
    ),
    "ages": _Template(
        "{A} is {d} years older than {B}, and {B} is {f} times as old as {C}. {C} is {c} years "
        "old.",
        "How old will {A} be in {y} years?",
        "{A} has lived in the same street for {z} years.",
        _ages,
    ),
    "sharing": _Template(
        "On the beach {A} finds {a} shells, {B} finds {b} and {C} finds {c}. They put all of them "
        "together and share them equally.",
        "How many shells does each of the three get?",
        "{z} of the shells have a hole.",
        _sharing,
    ),
    "cycling": _Template(
        "{A} cycles {h} hours in the morning at {s} km an hour, and {i} hours in the afternoon at "
        "{t} km an hour.",
        "How many kilometres does {A} cycle that day?",
        "{B} cycles {z} km an hour slower and stays at home today.",
        _cycling,
    ),
    "garden": _Template(
        "{A} plants {r} rows of {k} tomato plants. {d} of the plants die, and each of the others "
        "bears {t} tomatoes.",
        "How many tomatoes does {A} harvest?",
        "{z} of the tomatoes are still a bit green.",
        _garden,
    ),
    "sale": _Template(
        "A coat costs ${p}. In the sale it is {off} % cheaper, and {A} has a voucher for another "
        "${v} off.",
        "How many dollars does {A} pay?",
        "The coat has {z} pockets, and next year it will cost ${z} more.",
        _sale,
    ),
    "reading": _Template(
        "{A} reads {a} pages of a novel on Monday, twice as many on Tuesday, and on Wednesday {b} "
        "pages fewer than on Tuesday.",
        "How many pages does {A} read in the three days?",
        "The novel has {z} chapters that {A} read last year.",
        _reading,
    ),
    "wages": _Template(
        "{A} earns ${w} an hour and works {h} hours a day on {d} days. Then {A} spends ${s} on a "
        "present for {B}.",
        "How many dollars of the earnings are left?",
        "{B} earns ${z} an hour less than {A}.",
        _wages,
    ),
    "tank": _Template(
        "A tank on the farm of {A} holds {v} litres, and {s} litres are in it. A tap fills in {f} "
        "litres a minute, while {l} litres a minute leak out.",
        "After how many minutes is the tank full?",
        "A second tank with {z} litres in it stands beside the first.",
        _tank,
    ),
    "school": _Template(
        "The school of {A} has {c} classes of {k} children. {b} children come by bus, and half of "
        "the others walk.",
        "How many children walk to school?",
        "The school has {z} bicycles to lend.",
        _school,
    ),
    "eggs": _Template(
        "{A} has {n} hens, and each lays {e} eggs a week. Every week {A} bakes with {u} of the "
        "eggs and sells the rest in cartons of {q}.",
        "How many cartons does {A} sell in a week?",
        "{z} of the eggs are brown.",
        _eggs,
    ),
}
