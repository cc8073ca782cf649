"""Curriculum by pass rate: which problems the starting model solves sometimes, and in which order.

What it never solves and what it always solves gives groups of equal rewards, which teach nothing
(DAPO, arXiv 2503.14476, section 3.2). Owns the selection; `trial.py` draws the completions.
"""

from collections.abc import Sequence
from typing import Any

from thinkgate.answers import Verdict, check_many
from thinkgate.console import progress
from thinkgate.errors import ConfigError, DataError
from thinkgate_train.data import Rows
from thinkgate_train.models import Start
from thinkgate_train.preflight.trial import Trial, obstacle, without_a_trace
from thinkgate_train.recipe import RL_METHODS, Recipe
from thinkgate_train.rewards.function import Splitter
from thinkgate_train.sources import Curriculum, Row

__all__ = ["by_pass_rate"]


def by_pass_rate(recipe: Recipe, start: Start, rows: Rows, splitter: Splitter, config: Any) -> Rows:
    """`rows` with only the problems of `prepare.curriculum`; DataError when none is left.

    The same recipe on the same machine selects the same rows, so a resumed run finds its data
    again. All processes must call it: each samples its share.
    """
    settings = recipe.prepare.curriculum
    if settings is None:
        return rows
    if recipe.method not in RL_METHODS:
        raise ConfigError(
            f"{recipe.name}: prepare.curriculum goes with a method that samples, not with "
            f"'{recipe.method}'; drop it"
        )
    if reason := obstacle(start):
        raise ConfigError(
            f"{recipe.name}: prepare.curriculum cannot sample the starting model: {reason}; drop "
            "it, or train with DDP"
        )
    if any(row.get("gold") in (None, "") for row in rows.train):
        raise ConfigError(
            f"{recipe.name}: prepare.curriculum needs a gold for every row; drop it, or name the "
            "column in data.fields.gold"
        )
    rates = _rates(recipe, start, rows.train, settings, splitter, config)
    chosen = [n for n, rate in enumerate(rates) if rate is not None and _wanted(rate, settings)]
    never, always = rates.count(0.0), rates.count(1.0)
    note = (
        f"curriculum: {len(chosen)} of {len(rates)} problems are solved between "
        f"{settings.lowest:.0%} and {settings.highest:.0%} of {settings.samples} times "
        f"({never} never, {always} always)"
    )
    if not chosen:
        raise DataError(
            f"{recipe.name}: {note}; take other data, a better model, or a wider prepare.curriculum"
        )
    if settings.easy_first:
        chosen.sort(key=lambda number: -(rates[number] or 0.0))
        config.shuffle_dataset = False  # or the trainer would mix them again
    return Rows(
        train=[rows.train[number] for number in chosen],
        held_out=rows.held_out,
        problems=[rows.problems[number] for number in chosen],
        notes=[*rows.notes, note],
    )


def _rates(
    recipe: Recipe,
    start: Start,
    rows: Sequence[Row],
    settings: Curriculum,
    splitter: Splitter,
    config: Any,
) -> list[float | None]:
    """How often each row is solved; None where the verifier could not say."""
    from accelerate import PartialState
    from accelerate.utils import gather_object

    processes = PartialState()
    mine = range(processes.process_index, len(rows), processes.num_processes)
    wanted = [number for number in mine for _ in range(settings.samples)]
    trial = Trial(start, config)
    solved: dict[int, list[bool]] = {number: [] for number in mine}
    done = 0
    with (
        progress("curriculum", total=len(wanted)) as meter,
        without_a_trace(start, config.device, recipe.seed + processes.process_index),
    ):
        for batch in trial.draw([rows[number] for number in wanted]):
            answers = [splitter(rollout.text).answer for rollout in batch]
            verdicts = check_many(
                [(a, str(r.row["gold"])) for a, r in zip(answers, batch, strict=True)]
            )
            for number, verdict in zip(wanted[done:], verdicts, strict=False):
                if verdict not in (Verdict.ERROR, Verdict.BAD_GOLD):
                    solved[number].append(verdict is Verdict.CORRECT)
            done += len(batch)
            meter.advance(len(batch))
    shares = [(n, sum(s) / len(s) if s else None) for n, s in solved.items()]
    everyone: list[tuple[int, float | None]] = gather_object(shares)
    rates = dict(everyone)
    return [rates[number] for number in range(len(rows))]


def _wanted(rate: float, settings: Curriculum) -> bool:
    return settings.lowest <= rate <= settings.highest
