"""Examples:

thinkgate eval compare runs/quickstart/base runs/quickstart/grpo
thinkgate eval compare base.jsonl candidate.jsonl --out comparison
thinkgate eval compare production runs/qwen/grpo --suite gsm8k

How much better the second is than the first, paired by problem. Each is a records file of this or
any other tool (one object a line with "problem_id" and "correct", and "sample" where a problem has
several answers), a checkpoint folder or alias with recorded suites, or a folder of records. Nothing
is measured.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from thinkgate.console import console, printable
from thinkgate.errors import ConfigError, DataError
from thinkgate.registry import Registry
from thinkgate_evals.measure import find_checkpoint, naming_files, require_outside_checkpoints
from thinkgate_evals.outputs import write_outputs
from thinkgate_evals.record_sets import RecordSet, find_record_sets
from thinkgate_evals.results import Result, Results, run_of_set
from thinkgate_evals.suites import changed_keys
from thinkgate_evals.wording import agreement_rows, comparison_text, summary_rows

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate eval compare`."""
    parser.add_argument("base", help="what is compared with: records, checkpoint or alias")
    parser.add_argument("candidate", help="what is compared: records, checkpoint or alias")
    parser.add_argument(
        "--suite", action="append", help="only this suite; default: all that both have"
    )
    parser.add_argument("--out", type=Path, help="folder for report.html, .json, .md and JUnit XML")
    parser.add_argument("--registry", type=Path, help="registry folder; default: runs/registry")


def run(args: argparse.Namespace) -> int:
    """Compare every suite both have, print it, and write the reports where asked."""
    if args.out is not None:
        require_outside_checkpoints(args.out, "--out")
    with naming_files():
        base = _sets(args.base, args.registry)
        candidate = _sets(args.candidate, args.registry)
        pairs = _told_apart(_paired(base, candidate, args), args)
        results = Results(suites=[_result(*pair) for pair in pairs], facts=_facts(pairs))
        for result in results.suites:
            _show(result)
        if args.out is not None:
            page = write_outputs(args.out, results)
            console.print(f"report  {page}", soft_wrap=True, markup=False)
    return 0


def _sets(target: str, registry: Path | None) -> dict[str, RecordSet]:
    path = Path(target)
    alias = target in Registry(registry).aliases()
    if not alias and (path.exists() or len(path.parts) != 1 or path.suffix):
        return find_record_sets(path)
    return find_record_sets(find_checkpoint(target, registry).path, target)


def _told_apart(
    pairs: list[tuple[RecordSet, RecordSet]], args: argparse.Namespace
) -> list[tuple[RecordSet, RecordSet]]:
    """With the names as they were typed, where the folders' own are the same."""
    if all(base.name != candidate.name for base, candidate in pairs):
        return pairs
    typed = (args.base, args.candidate)
    if args.base == args.candidate:
        typed = (f"{args.base} (first)", f"{args.candidate} (second)")
    return [
        (replace(base, name=typed[0]), replace(candidate, name=typed[1]))
        for base, candidate in pairs
    ]


def _paired(
    base: dict[str, RecordSet], candidate: dict[str, RecordSet], args: argparse.Namespace
) -> list[tuple[RecordSet, RecordSet]]:
    """The suites of both, in the base's order; of two files, the two whatever their names."""
    if len(base) == len(candidate) == 1 and not args.suite:
        [pair] = zip(base.values(), candidate.values(), strict=True)
        if pair[0].suite == pair[1].suite:
            return [pair]
        named = next((each.suite for each in pair if each.header), "records")
        if None in (pair[0].header, pair[1].header):
            return [(replace(pair[0], suite=named), replace(pair[1], suite=named))]
    wanted = args.suite or [suite for suite in base if suite in candidate]
    for suite in wanted:
        for target, sets in ((args.base, base), (args.candidate, candidate)):
            if suite not in sets:
                raise ConfigError(f"{target} has no records of {suite}; it has {', '.join(sets)}")
    if not wanted:
        raise DataError(
            f"{args.base} has records of {', '.join(base)}, {args.candidate} of "
            f"{', '.join(candidate)}: no suite of both; measure them on the same one"
        )
    return [(base[suite], candidate[suite]) for suite in wanted]


def _result(base: RecordSet, candidate: RecordSet) -> Result:
    """ConfigError when two runs of ours did not ask the same in the same way."""
    if base.header and candidate.header and base.header.fingerprint != candidate.header.fingerprint:
        changed = changed_keys(base.header.identity, candidate.header.identity)
        raise ConfigError(
            f"{base.path} and {candidate.path} differ in {', '.join(changed) or 'their suites'}; "
            "measure both in the same way"
        )
    result = Result(candidate.suite, run_of_set(candidate), run_of_set(base))
    if result.comparison is not None and not result.comparison.pairs:
        raise DataError(
            f"{base.path} and {candidate.path} have no problem in common, by 'problem_id'"
        )
    return result


def _facts(pairs: list[tuple[RecordSet, RecordSet]]) -> dict[str, str]:
    facts: dict[str, str] = {}
    for base, candidate in pairs:
        facts[f"{candidate.suite}, base"] = f"{base.path}\nmodel {base.digest}"
        facts[f"{candidate.suite}, candidate"] = f"{candidate.path}\nmodel {candidate.digest}"
    return facts


def _show(result: Result) -> None:
    ours, theirs, pair = result.candidate, result.base, result.comparison
    assert theirs is not None and pair is not None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=_shown(result.suite))
    for heading in ("", _shown(theirs.name), _shown(ours.name)):
        table.add_column(heading)
    for label, cells in summary_rows([theirs.summary, ours.summary]):
        table.add_row(label, *map(escape, cells))
    console.print(table)
    matrix = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("problems", f"{_shown(theirs.name)} right", f"{_shown(theirs.name)} wrong"):
        matrix.add_column(heading, justify="left" if heading == "problems" else "right")
    for word, cells in zip(("right", "wrong"), agreement_rows(pair), strict=True):
        matrix.add_row(f"{_shown(ours.name)} {word}", *cells)
    console.print(matrix)
    console.print(comparison_text(pair), markup=False)


def _shown(name: str) -> str:
    return escape(printable(name))
