"""Examples:

thinkgate eval runs/quickstart/grpo --suite arithmetic
thinkgate eval production --suite gsm8k --data-dir data --limit 50
thinkgate eval production --suite jsonl:mine.jsonl --samples 4 --set sampling.temperature=0.6
thinkgate eval https://api.example.com/v1 --model big --api-key-env EXAMPLE_KEY --suite math500

A checkpoint or alias is served for the time of the measurement. Every sample is written down as it
finishes: stop at any time and run the same command again to go on. Problems of your own: one JSON
object a line, with "prompt" and "gold".
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from thinkgate.console import console
from thinkgate.errors import ConfigError, EndpointError
from thinkgate_clients.client import Client, key_from
from thinkgate_evals.measure import (
    Measurement,
    Options,
    find_checkpoint,
    measure_checkpoint,
    measure_endpoint,
    naming_files,
)
from thinkgate_evals.report import record_summaries, write_measurement_report
from thinkgate_evals.runner import Endpoint
from thinkgate_evals.stats import Interval
from thinkgate_evals.suites import LoadedSuite, load_suite

__all__ = ["add_arguments", "add_measuring_arguments", "options", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate eval`."""
    parser.add_argument("target", help="checkpoint folder, registry alias, or http(s) address")
    parser.add_argument(
        "--suite",
        action="append",
        required=True,
        help="shipped name, YAML file, or jsonl:PATH; may be given several times",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for records and report; default: CHECKPOINT/thinkgate/evals",
    )
    parser.add_argument("--samples", type=int, help="answers per problem; default: the suite's")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change the suite, for example sampling.max_tokens=512",
    )
    parser.add_argument("--model", help="for an address: which model to ask")
    parser.add_argument(
        "--api-key-env",
        metavar="VAR",
        help="for an address: environment variable with the key; default: no key",
    )
    add_measuring_arguments(parser)


def add_measuring_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that `thinkgate gate` shares."""
    parser.add_argument("--data-dir", type=Path, help="folder with the data sets as local JSONL")
    parser.add_argument("--limit", type=int, help="ask only the first N problems")
    parser.add_argument("--concurrency", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one request")
    parser.add_argument("--fresh", action="store_true", help="set old records aside, start anew")
    parser.add_argument("--registry", type=Path, help="registry folder; default: runs/registry")


def options(args: argparse.Namespace, limit: int | None = None) -> Options:
    """How to measure, checked; `limit` is what holds where the command line names none."""
    for name in ("limit", "concurrency", "samples", "timeout"):
        value = getattr(args, name, None)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{name} is {value}; use a finite number above 0")
    return Options(
        limit=args.limit or limit,
        concurrency=args.concurrency,
        timeout=args.timeout,
        fresh=args.fresh,
    )


def run(args: argparse.Namespace) -> int:
    """Measure what is missing, write the report, print the table."""
    chosen = options(args)
    overrides = [*args.set, *([f"samples={args.samples}"] if args.samples else [])]
    suites = [load_suite(name, data_dir=args.data_dir, overrides=overrides) for name in args.suite]
    doubled = {s.name for s in suites if sum(t.name == s.name for t in suites) > 1}
    if doubled:
        raise ConfigError(f"suite '{doubled.pop()}' is given twice; name each once")
    with naming_files():
        if args.target.startswith(("http://", "https://")):
            name, folder, measurements = _endpoint(args, suites, chosen)
        else:
            name, folder, measurements = _checkpoint(args, suites, chosen)
        record_summaries(folder / "report.json", measurements)
        write_measurement_report(folder / "report.html", measurements, name)
    for measured in measurements:
        console.print(_table(measured))
        console.print(f"records {measured.path}", soft_wrap=True, markup=False)
    console.print(f"report  {folder / 'report.html'}", soft_wrap=True, markup=False)
    for measured in measurements:
        _refuse_nothing(measured)
    return 0


def _checkpoint(
    args: argparse.Namespace, suites: Sequence[LoadedSuite], chosen: Options
) -> tuple[str, Path, list[Measurement]]:
    checkpoint = find_checkpoint(args.target, args.registry)
    measurements = measure_checkpoint(checkpoint, suites, chosen, args.out)
    return checkpoint.path.name, args.out or checkpoint.meta("evals"), measurements


def _endpoint(
    args: argparse.Namespace, suites: Sequence[LoadedSuite], chosen: Options
) -> tuple[str, Path, list[Measurement]]:
    key = key_from(args.api_key_env)
    with Client(args.target, args.model, api_key=key) as client:
        model = client.model()
        offered = [] if args.model else client.models()
    digest = next((m.digest for m in offered if m.id == model), None)
    endpoint = Endpoint(base_url=client.base_url, model=model, digest=digest, api_key=key)
    folder = args.out or Path("runs/evals") / re.sub(r"[^A-Za-z0-9._-]+", "-", model)
    return model, folder, measure_endpoint(endpoint, suites, chosen, folder)


def _table(measured: Measurement) -> Table:
    summary = measured.summary
    title = f"{measured.loaded.name}: {summary.samples:,} samples, {summary.problems:,} problems"
    table = Table("metric", "value", "95 % interval", title=title, title_justify="left")
    for name, interval in summary.shares.items():
        table.add_row(name.replace("_", " "), *_cells(interval))
    for name, spread, style in (
        ("thinking tokens", summary.reasoning_tokens, ".1f"),
        ("answer tokens", summary.answer_tokens, ".1f"),
        ("seconds per answer", summary.latency_s, ".2f"),
    ):
        if spread is not None:
            rest = f"median {spread.p50:{style}}, 95th percentile {spread.p95:{style}}"
            table.add_row(name, f"{spread.mean:{style}}", rest)
    if summary.samples_per_second is not None:
        tokens = summary.tokens_per_second
        rest = f"{tokens:,.0f} tokens/s" if tokens else ""
        table.add_row("samples per second", f"{summary.samples_per_second:.1f}", rest)
    counts = ", ".join(f"{n:,} {v.replace('_', ' ')}" for v, n in summary.verdicts.items())
    table.add_row("verdicts", "", counts)
    return table


def _cells(interval: Interval | None) -> tuple[str, str]:
    if interval is None:
        return "-", ""
    return f"{interval.estimate:.1%}", f"{interval.low:.1%} to {interval.high:.1%}"


def _refuse_nothing(measured: Measurement) -> None:
    """An evaluation in which nothing could be graded is a mistake to fix, not a result."""
    if any(record.graded for record in measured.records):
        return
    reason = measured.summary.first_error or f"verdict {measured.records[0].verdict}"
    raise EndpointError(
        f"{measured.loaded.name}: none of {len(measured.records)} samples could be measured; the "
        f"first: {reason}; see {measured.path}"
    )
