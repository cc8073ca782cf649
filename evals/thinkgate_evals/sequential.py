"""Sequential gating: ask some problems, look, and stop as soon as the policy is decided.

Owns how many problems are asked before each look, and when it ends. That looking often does no harm
is the doing of `anytime.py` and of the random order of the problems (`LoadedSuite.order_seed`).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from thinkgate.checkpoint import Checkpoint, Decision, GateVerdict, RuleResult, SequentialRun
from thinkgate_evals.anytime import Betting
from thinkgate_evals.evidence import Evidence, evidence_of
from thinkgate_evals.gate import decide, judge
from thinkgate_evals.measure import (
    Measurement,
    Options,
    measure_checkpoint,
    records_folder,
    serving,
)
from thinkgate_evals.policy import Policy
from thinkgate_evals.suites import LoadedSuite

__all__ = ["gate_in_looks", "next_size", "until_decided"]

FIRST = 64
"""Problems before the first look, and between two at least."""

GROWTH = 4
"""Or this part of what there is: at every look the server runs dry for a moment."""

Look = Callable[[Mapping[str, int]], Sequence[RuleResult]]
"""Measures so many problems of each suite and says what the rules say."""


def until_decided(planned: Mapping[str, int], look: Look) -> tuple[dict[str, int], int]:
    """Problems of each suite that were enough, and the number of looks it took.

    A suite whose rules are all decided is asked no further; all is over once one rule has failed.
    The first look is at nothing: what training tells, such as contamination, costs no sample.
    """
    sizes, looks = dict.fromkeys(planned, 0), 0
    while True:
        results, looks = look(sizes), looks + 1
        if any(result.verdict is GateVerdict.FAIL for result in results):
            return sizes, looks
        undecided = {r.suite for r in results if r.verdict is GateVerdict.INCONCLUSIVE}
        growing = [s for s in planned if s in undecided and sizes[s] < planned[s]]
        if not growing:
            return sizes, looks
        for suite in growing:
            sizes[suite] = next_size(sizes[suite], planned[suite])


def next_size(size: int, planned: int) -> int:
    """Problems at the next look."""
    return min(planned, size + max(FIRST, size // GROWTH))


def gate_in_looks(
    policy: Policy,
    candidate: Checkpoint,
    incumbent: Checkpoint | None,
    suites: Mapping[str, LoadedSuite],
    options: Options,
    out: Path | None = None,
) -> tuple[list[Measurement], list[Measurement], Decision]:
    """Measure both models until the policy is decided; what is recorded is not asked again.

    A model's server starts when one of its answers is missing, and runs until the end. With `out`,
    the candidate's records go there.
    """
    planned = {name: len(loaded.planned(options.limit)) for name, loaded in suites.items()}
    inferences = {name: Betting(problems) for name, problems in planned.items()}
    models = [model for model in (candidate, incumbent) if model is not None]
    with ExitStack() as stack:
        folders = [out or records_folder(candidate.path)]
        folders += [records_folder(model.path) for model in models[1:]]
        endpoints = [
            stack.enter_context(serving(model, folder))
            for model, folder in zip(models, folders, strict=True)
        ]
        measured: list[list[Measurement]] = [[] for _ in models]
        fresh = options.fresh

        def look(sizes: Mapping[str, int]) -> Sequence[RuleResult]:
            nonlocal fresh
            for number, model in enumerate(models):
                measured[number] = [
                    only
                    for name, size in sizes.items()
                    for only in measure_checkpoint(
                        model,
                        [suites[name]],
                        replace(options, limit=size, fresh=fresh),
                        folders[number],
                        endpoint=endpoints[number],
                    )
                ]
            fresh = False
            return judge(policy, *evidence(), inferences)

        def evidence() -> tuple[Evidence, Evidence | None]:
            sides = [evidence_of(m, suites, each) for m, each in zip(models, measured, strict=True)]
            return sides[0], sides[1] if incumbent else None

        sizes, looks = until_decided(planned, look)
        run = SequentialRun(
            order_seed=next(iter(suites.values())).order_seed or 0,
            looks=looks,
            planned=_samples(planned, suites) * len(models),
            used=_samples(sizes, suites) * len(models),
        )
        decision = decide(policy, *evidence(), inferences, run)
    return measured[0], measured[1] if incumbent else [], decision


def _samples(sizes: Mapping[str, int], suites: Mapping[str, LoadedSuite]) -> int:
    return sum(size * suites[name].suite.samples for name, size in sizes.items())
