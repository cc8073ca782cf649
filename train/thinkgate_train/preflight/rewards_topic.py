"""Whether the reward functions want what is wanted, asked with made-up completions.

Owns the completions that a right, a wrong, a broken and a gaming model would write, and what the
order of their rewards says. Samples nothing.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table

from thinkgate.answers import Verdict, check, check_many
from thinkgate.errors import ConfigError, ThinkgateError, TrainingError
from thinkgate.format import SplitStatus, Tags
from thinkgate_train.preflight.report import Topic, clipped
from thinkgate_train.preflight.trial import some
from thinkgate_train.rewards.function import Splitter, last_question
from thinkgate_train.rewards.scoring import COSTLY, DRAWN, SAME, Scored, Scorer
from thinkgate_train.sources import Row

__all__ = ["reward_topic"]

GRADED = ("correctness", "cosine_length")
"""Rewards by which a right answer must be worth more than a wrong one."""
ROWS = 3
"""Rows that completions are made up for."""
GOLDS = 50
"""Golds that the verifier is asked to accept as their own answers."""
COPIED = "prompt copied"


@dataclass(frozen=True, slots=True)
class Probe:
    """A made-up completion."""

    kind: str
    text: str
    wrong: bool
    """The verifier does not call it correct."""


def reward_topic(scorer: Scorer, rows: Sequence[Row], splitter: Splitter, tags: Tags) -> Topic:
    """Score made-up completions of some rows; refuses rewards that want the wrong thing.

    What a function raises ends it here, and so does an endpoint that cannot be reached.
    """
    if all(name in DRAWN for name in scorer.names):
        return Topic(name="rewards", summary="coin flips, a control: nothing to check")
    golden = some([row for row in rows if row.get("gold") not in (None, "")], GOLDS)
    readable, unreadable, refusal = _golds(scorer, golden)
    chosen = some(readable or rows, ROWS)
    form = _best_form(scorer, chosen[0], splitter, tags)
    tables: list[tuple[list[Probe], list[Scored]]] = []
    for row in chosen:
        probes = _probes(row, [_answer(r) for r in readable], splitter, tags, form)
        scored = scorer.score([row] * len(probes), [probe.text for probe in probes])
        tables.append((probes, scored))
    silent = scorer.try_costly(chosen[0], tables[0][0][0].text)
    refusal = refusal or _misrank(scorer, tables)
    warnings = [
        *([silent] if silent else []),
        *_warnings(scorer, tables),
        *_prefill_warning(scorer, chosen[0], tables[0][0][0], splitter, tags),
        *unreadable,
    ]
    return Topic(
        name="rewards",
        summary=_summary(scorer, tables, refusal is not None),
        details=(_table(scorer, *tables[0]),),
        warnings=tuple(warnings),
        refusal=refusal,
    )


def _opened(splitter: Splitter, tags: Tags) -> str:
    """What a well-formed completion begins with; nothing, where the prompt opened the thought."""
    return "" if splitter("x").status is SplitStatus.TRUNCATED else tags.open


def _best_form(scorer: Scorer, row: Row, splitter: Splitter, tags: Tags) -> str:
    """The dress of an answer that the rewards like best; the recipe may want one or the other."""
    forms = ("{}", "<answer>{}</answer>", "\\boxed{{{}}}")
    start, answer = f"{_opened(splitter, tags)}{_thought(row)}{tags.close}", _answer(row)
    scored = scorer.score([row] * 3, [start + form.format(answer) for form in forms])
    totals = [float("-inf") if s.total is None else s.total for s in scored]
    return forms[totals.index(max(totals))]


def _thought(row: Row) -> str:
    return "\n".join(map(str, row.get("steps") or ())) or "Let me work it out, step by step."


def _answer(row: Row) -> str:
    """What to write for a right answer: the gold, unless the row says what else."""
    if row.get("gold") in (None, ""):
        return "This is my answer."
    return str(row.get("written") or row["gold"])


def _probes(
    row: Row, answers: Sequence[str], splitter: Splitter, tags: Tags, form: str
) -> list[Probe]:
    """The completions for one row, the right one first where there is a gold."""
    opened, thought, question = _opened(splitter, tags), _thought(row), last_question(row["prompt"])
    gold, answer = row.get("gold"), _answer(row)
    other = None if gold in (None, "") else _changed(answer, str(gold), answers)
    closed = f"{opened}{thought}{tags.close}"
    digits = " ".join("0123456789")
    boxes = " ".join(f"\\boxed{{{number}}}" for number in range(10))
    made = {
        "a digit changed": closed + form.format(other),
        "empty": "",
        "thought never closed": f"{opened}{thought}",
        "no answer": closed,
        "all digits listed": closed + form.format(digits),
        "many boxes": f"{closed}\\boxed{{{answer}}} {boxes}",
        "gold only in thought": f"{opened}{thought} {answer}{tags.close}as I said",
        COPIED: closed + form.format(question),
    }
    if gold in (None, ""):
        unknowable = ("a digit changed", "gold only in thought", "many boxes")
        kept = {kind: text for kind, text in made.items() if kind not in unknowable}
        made = {"well-formed": closed + form.format(answer)} | kept
        return [Probe(kind, text, wrong=False) for kind, text in made.items()]
    if other is None:
        del made["a digit changed"]
    verdicts = check_many([(splitter(text).answer, str(gold)) for text in made.values()])
    wrong = [v in (Verdict.WRONG, Verdict.NO_ANSWER) for v in verdicts]
    return [
        Probe("right", closed + form.format(answer), wrong=False),
        *(Probe(kind, text, w) for (kind, text), w in zip(made.items(), wrong, strict=True)),
    ]


def _changed(right: str, gold: str, answers: Iterable[str]) -> str | None:
    """A wrong answer that looks like `right`: its last digit raised by one, or another row's."""
    last = re.search(r"\d(?=\D*$)", right)
    digit = right
    if last:
        digit = f"{right[: last.start()]}{(int(last[0]) + 1) % 10}{right[last.end() :]}"
    for other in (digit, *answers):
        if check(other, gold) is Verdict.WRONG:
            return other
    return None


def _misrank(
    scorer: Scorer, tables: Sequence[tuple[list[Probe], list[Scored]]]
) -> ThinkgateError | None:
    """An error where a wrong completion earns what the right one does, or more."""
    if not _graded(scorer):
        return None
    for probes, scored in tables:
        right = scored[0].total
        for probe, other in zip(probes, scored, strict=True):
            if not probe.wrong or right is None or other.total is None:
                continue
            if other.total >= right - SAME:
                return TrainingError(
                    f"the rewards give {other.total:.3g} to a completion without a right answer "
                    f"({probe.kind}: '{clipped(probe.text, 60)}') and {right:.3g} to the right "
                    f"one, so training would unlearn to answer; {_blamed(scorer, scored[0], other)}"
                )
    return None


def _blamed(scorer: Scorer, right: Scored, wrong: Scored) -> str:
    """The function that lifts the wrong completion most, and what to do about it."""
    lifts = [
        (weight * ((w or 0.0) - (r or 0.0)), name)
        for name, weight, r, w in zip(
            scorer.names, scorer.weights, right.values, wrong.values, strict=True
        )
    ]
    lift, name = max(lifts)
    if lift <= 0:
        return "look at what 'correctness' returns for the column 'gold'"
    return f"lower the weight of '{name}', which makes the difference, or raise correctness's"


def _warnings(scorer: Scorer, tables: Sequence[tuple[list[Probe], list[Scored]]]) -> list[str]:
    found: list[str] = []
    every = [scored for _, many in tables for scored in many]
    asked = [name not in (*COSTLY, *DRAWN) for name in scorer.names]
    for place, name in enumerate(scorer.names):
        if asked[place] and _constant([scored.values[place] for scored in every]):
            found.append(
                f"reward '{name}' is the same ({_number(every[0].values[place])}) for all "
                f"{len(every)} made-up completions"
            )
    if all(asked) and len(scorer.names) > 1 and _constant([scored.total for scored in every]):
        found.append("the weighted sum of the rewards is the same for all made-up completions")
    copied = [
        scored
        for probes, many in tables
        for probe, scored in zip(probes, many, strict=True)
        if probe.kind == COPIED and not probe.wrong
    ]
    if any((scored.values[place] or 0.0) > 0.0 for scored in copied for place in _graded(scorer)):
        found.append(
            "copying the prompt counts as right (the expression equals its value), so the model "
            "may learn to copy"
        )
    return found


def _constant(values: Sequence[float | None]) -> bool:
    known = [value for value in values if value is not None]
    return len(known) == len(values) and max(known) - min(known) <= SAME


def _prefill_warning(
    scorer: Scorer, row: Row, right: Probe, splitter: Splitter, tags: Tags
) -> list[str]:
    """Functions that want the opening tag in the completion, where the prompt has it already."""
    if _opened(splitter, tags):
        return []
    # Compared with other text as long, or a reward for length would look like one for the tag.
    before = ("", "x" * len(tags.open), tags.open)
    plain, longer, tagged = scorer.score([row] * 3, [text + right.text for text in before])
    values = zip(scorer.names, plain.values, longer.values, tagged.values, strict=True)
    return [
        f"reward '{name}' gives more to a completion that opens with {tags.open}, but the chat "
        "template has written it already, and the model will not repeat it"
        for name, a, b, c in values
        if a is not None and b is not None and c is not None and c > max(a, b) + SAME
    ]


def _golds(
    scorer: Scorer, golden: Sequence[Row]
) -> tuple[list[Row], list[str], ThinkgateError | None]:
    """The rows whose right answer the verifier accepts; a warning where it does not for some, an
    error where it does for none and a right answer is what is rewarded."""
    golds = [str(row["gold"]) for row in golden]
    verdicts = check_many(zip(map(_answer, golden), golds, strict=True))
    accepted = [verdict is Verdict.CORRECT for verdict in verdicts]
    readable = [row for row, fine in zip(golden, accepted, strict=True) if fine]
    if all(accepted) or not _graded(scorer):
        return readable, [], None
    example = clipped(golds[accepted.index(False)], 60)
    if readable:
        return (
            readable,
            [
                f"the verifier does not accept {accepted.count(False)} of {len(golds)} golds as "
                f"their own answer, such as '{example}': those problems give no reward"
            ],
            None,
        )
    return (
        [],
        [],
        ConfigError(
            f"the verifier accepts none of {len(golds)} golds as its own answer, such as "
            f"'{example}'; name the column with the final answers in data.fields.gold, or say with "
            "data.fields.gold_after what they follow"
        ),
    )


def _graded(scorer: Scorer) -> list[int]:
    """Places of the functions by which right answers must be worth more than wrong ones."""
    pairs = enumerate(zip(scorer.names, scorer.weights, strict=True))
    return [place for place, (name, weight) in pairs if name in GRADED and weight > 0]


def _summary(
    scorer: Scorer, tables: Sequence[tuple[list[Probe], list[Scored]]], refused: bool
) -> str:
    wrong = sum(probe.wrong for probes, _ in tables for probe in probes)
    if not wrong or not _graded(scorer):
        made = sum(len(probes) for probes, _ in tables)
        return f"{made} made-up completions scored; no reward knows the right answer"
    if refused:
        return "a made-up wrong completion earns as much as the right one"
    earned = _number(tables[0][1][0].total)
    return f"a right answer earns {earned}, more than {wrong} made-up wrong ones"


def _table(scorer: Scorer, probes: Sequence[Probe], scored: Sequence[Scored]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("completion")
    several = len(scorer.names) > 1
    for name in scorer.names:
        table.add_column(name.rpartition(":")[2], justify="right")
    if several:
        table.add_column("sum", justify="right")
    for probe, earned in zip(probes, scored, strict=True):
        cells = [_number(value) for value in earned.values]
        table.add_row(probe.kind, *cells, *([_number(earned.total)] if several else []))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
