"""Examples:

thinkgate eval contamination train.jsonl --suite gsm8k,math500 --data-dir data
thinkgate eval contamination train.jsonl --suite jsonl:mine.jsonl --out overlaps.jsonl
thinkgate eval contamination runs/quickstart/grpo --suite arithmetic

Which benchmark problems lie in the training data: word for word, nearly, or in long pieces. The
training data are JSONL files with a prompt, text or conversation in each line. Of a checkpoint only
the fingerprints of its prompts are kept, so that it is checked for exact copies. Exit code: 0 none
found, 1 some found.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from thinkgate.checkpoint import load_checkpoint
from thinkgate.console import console, printable, progress
from thinkgate.contamination import FOUND, Kind, Overlap, overlaps
from thinkgate.errors import ConfigError, DataError
from thinkgate.records import open_output, read_records, write_row
from thinkgate_evals.evidence import seen_problems
from thinkgate_evals.lm_tasks import lm_names
from thinkgate_evals.measure import naming_files
from thinkgate_evals.suites import LoadedSuite, load_suite

__all__ = ["add_arguments", "run"]

FIELDS = ("prompt", "question", "problem", "text", "messages", "conversations", "instruction")
"""Where a training text is looked for, in this order; with it goes what answers it."""

SHOWN = 20
"""Overlaps of each suite that are printed; --out has all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate eval contamination`."""
    parser.add_argument(
        "train", nargs="+", type=Path, help="JSONL files of training data, or one checkpoint folder"
    )
    parser.add_argument(
        "--suite",
        action="append",
        required=True,
        help="shipped name, YAML file, or jsonl:PATH; several with commas, or given several times",
    )
    parser.add_argument("--data-dir", type=Path, help="folder with the data sets as local JSONL")
    parser.add_argument(
        "--field", help=f"where the text of a line is; default: the first of {', '.join(FIELDS)}"
    )
    parser.add_argument("--ngram", type=int, default=13, help="tokens; default: %(default)s")
    parser.add_argument(
        "--found",
        type=float,
        default=FOUND,
        help="share of a problem's n-grams that one text must have; 0: any; default: %(default)s",
    )
    parser.add_argument("--out", type=Path, help="write every overlap here, one JSON object a line")


def run(args: argparse.Namespace) -> int:
    """Search, print what was found; 1 when anything was."""
    if args.ngram < 5:
        raise ConfigError(f"--ngram is {args.ngram}; n-grams below 5 tokens are in every text")
    if not 0 <= args.found <= 1:
        raise ConfigError(f"--found is {args.found}; use a share between 0 and 1")
    names, tasks = lm_names(args.suite)
    if tasks:
        raise ConfigError(f"lm:{tasks[0]} is lm-eval's; name its problems as jsonl:PATH")
    suites = [load_suite(name, data_dir=args.data_dir) for name in names]
    with naming_files(), ExitStack() as stack:
        output = open_output(args.out, stack) if args.out else None
        if args.train[0].is_dir():
            found, searched = _in_checkpoint(args.train, suites), "training prompts"
        else:
            found, searched = _in_files(args, suites), "training texts"
        for loaded in suites:
            rows = found[loaded.name]
            _show(loaded, rows, searched)
            for row in rows if output else ():
                assert output is not None
                write_row({"suite": loaded.name, **asdict(row)}, output)
    return 1 if any(found.values()) else 0


def _in_checkpoint(
    folders: Sequence[Path], suites: Iterable[LoadedSuite]
) -> dict[str, list[Overlap]]:
    if len(folders) > 1:
        raise ConfigError(f"{folders[1]}: name one checkpoint folder, or files")
    checkpoint = load_checkpoint(folders[0])
    seen = checkpoint.seen_prompts()
    if not seen:
        raise DataError(f"{checkpoint.path} does not say what it was trained on; name the data")
    return {
        loaded.name: [
            Overlap(problem_id=p.id, kind=Kind.EXACT, share=1, text=0, excerpt=p.prompt, texts=1)
            for p in seen_problems(loaded, seen)
        ]
        for loaded in suites
    }


def _in_files(args: argparse.Namespace, suites: Sequence[LoadedSuite]) -> dict[str, list[Overlap]]:
    """One pass over the data for all suites together."""
    keys = [(loaded.name, p.id) for loaded in suites for p in loaded.problems]
    prompts = [p.prompt for loaded in suites for p in loaded.problems]
    benchmark = [(str(number), prompt) for number, prompt in enumerate(prompts)]
    with progress("training texts") as meter:
        texts = _counted(chain.from_iterable(_texts(p, args.field) for p in args.train), meter)
        found = overlaps(texts, benchmark, n=args.ngram, found=args.found)
    result: dict[str, list[Overlap]] = {loaded.name: [] for loaded in suites}
    for overlap in found:
        suite, problem = keys[int(overlap.problem_id)]
        result[suite].append(replace(overlap, problem_id=problem))
    return result


def _counted(texts: Iterable[str], meter: Any) -> Iterator[str]:
    count = 0
    for count, text in enumerate(texts, 1):
        yield text
        if count % 1000 == 0:
            meter.set(count)
    meter.set(count, count)
    if not count:
        raise DataError("the training data are empty; there is nothing to search")


def _texts(path: Path, field: str | None) -> Iterator[str]:
    for number, row in read_records(path):
        names = [field] if field else [name for name in FIELDS if row.get(name)]
        value = row.get(names[0]) if names else None
        if value is None:
            raise DataError(
                f"{path} line {number} has no {field or 'prompt, text or conversation'} (it has "
                f"{', '.join(row)}): name its field with --field"
            )
        yield _text(value, f"{path} line {number}")


def _text(value: Any, where: str) -> str:
    """A text as it is, a conversation as what was said in it."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        said = [turn.get("content", turn.get("value")) for turn in value]
        return "\n".join(text if isinstance(text, str) else json.dumps(text) for text in said)
    raise DataError(f"{where}: {json.dumps(value)[:60]} is neither a text nor a conversation")


def _show(loaded: LoadedSuite, found: Sequence[Overlap], searched: str) -> None:
    problems = len(loaded.problems)
    if not found:
        console.print(f"{loaded.name}: none of {problems:,} problems is in the {searched}")
        return
    share = len(found) / problems
    console.print(
        f"[bold red]{escape(loaded.name)}: {len(found):,} of {problems:,} problems ({share:.1%}) "
        f"are in the {searched}[/]"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("problem", "how", "share", "texts", "first", "training text"):
        table.add_column(heading, no_wrap=heading != "training text")
    for overlap in found[:SHOWN]:
        table.add_row(
            escape(printable(overlap.problem_id)),
            overlap.kind,
            f"{overlap.share:.0%}",
            f"{overlap.texts:,}",
            str(overlap.text + 1),
            escape(printable(overlap.excerpt)),
        )
    console.print(table)
    if len(found) > SHOWN:
        console.print(f"… and {len(found) - SHOWN:,} more; --out FILE has all")
