"""Examples:

thinkgate eval runs/quickstart/grpo --suite arithmetic
thinkgate eval production --suite gsm8k,math500 --data-dir data --limit 50
thinkgate eval production --suite jsonl:mine.jsonl --samples 4 --set sampling.temperature=0.6
thinkgate eval production --suite lm:gsm8k,lm:ifeval --limit 50
thinkgate eval https://api.example.com/v1 --model big --api-key-env EXAMPLE_KEY --suite math500

A checkpoint or alias is served for the time of the measurement. Every sample is written down as it
finishes: stop at any time and run the same command again to go on. Problems of your own: one JSON
object a line, with "prompt" and "gold".
"""

import argparse
import re
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from thinkgate.console import console, printable, warn
from thinkgate.errors import ConfigError, EndpointError
from thinkgate_clients.client import Client, Failure, RequestFailed, key_from
from thinkgate_evals import lm_harness
from thinkgate_evals.lm_harness import LmPlan
from thinkgate_evals.lm_scores import LmMeasurement, add_scores, record_scores
from thinkgate_evals.lm_tasks import lm_names, tasks_folder
from thinkgate_evals.measure import (
    RUNS,
    Measurement,
    Options,
    find_checkpoint,
    measure_checkpoint,
    measure_endpoint,
    naming_files,
    records_folder,
    require_outside_checkpoints,
    serving,
)
from thinkgate_evals.outputs import REPORT_JSON, write_outputs
from thinkgate_evals.plan import plan_lines
from thinkgate_evals.results import Result, Results, run_of
from thinkgate_evals.runner import Endpoint
from thinkgate_evals.second_grader import disagreements, grader_from
from thinkgate_evals.stats import Interval
from thinkgate_evals.suites import LoadedSuite, load_suite

__all__ = [
    "add_arguments",
    "add_measuring_arguments",
    "options",
    "run",
    "show_plan",
    "warn_of_copies",
]


OPTIONAL = ("second_accuracy", "disagreement")
DISAGREEMENTS_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate eval`."""
    parser.add_argument("target", help="checkpoint folder, registry alias, or http(s) address")
    parser.add_argument(
        "--suite",
        action="append",
        required=True,
        help="shipped name, YAML file, jsonl:PATH, or lm:TASK for one of lm-eval's; several with "
        "commas, or given several times",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for records and report; default: CHECKPOINT/thinkgate/evals, or once it is "
        "signed, CHECKPOINT.evals/DIGEST",
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
        "--endpoints",
        default="",
        metavar="URL,URL",
        help="for an address: more addresses of the same model, to share the requests among",
    )
    parser.add_argument(
        "--api-key-env",
        metavar="VAR",
        help="for an address: environment variable with the key; default: no key",
    )
    parser.add_argument(
        "--lm-tasks-path",
        action="version",
        version=str(tasks_folder()),
        help="print where the suites lie as lm-eval tasks: its --include_path; then exit",
    )
    add_measuring_arguments(parser)


def add_measuring_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that `thinkgate gate` shares."""
    parser.add_argument("--data-dir", type=Path, help="folder with the data sets as local JSONL")
    parser.add_argument("--limit", type=int, help="ask only the first N problems")
    parser.add_argument("--concurrency", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one request")
    parser.add_argument("--fresh", action="store_true", help="set old records aside, start anew")
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="FILE",
        help="keep answers in this file by weights, prompt, sampling and seed, and reuse them",
    )
    parser.add_argument("--registry", type=Path, help="registry folder; default: runs/registry")
    parser.add_argument(
        "--second-grader",
        metavar="GRADER",
        help="let this one grade every answer too, and list where the two disagree: math-verify, "
        "or a .yaml file with base_url and model of a language model that judges",
    )


def options(args: argparse.Namespace, limit: int | None = None) -> Options:
    """How to measure, checked; `limit` is what holds where the command line names none."""
    for name in ("limit", "concurrency", "samples", "timeout"):
        value = getattr(args, name, None)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{name} is {value}; use a finite number above 0")
    for option, place in (("--out", args.out), ("--cache", args.cache)):
        if place is not None:
            require_outside_checkpoints(place, option)
    return Options(
        limit=args.limit or limit,
        concurrency=args.concurrency,
        timeout=args.timeout,
        fresh=args.fresh,
        cache=args.cache,
        second_grader=grader_from(args.second_grader) if args.second_grader else None,
    )


def run(args: argparse.Namespace) -> int:
    """Measure what is missing, write the report, print the table."""
    chosen = options(args)
    overrides = [*args.set, *([f"samples={args.samples}"] if args.samples else [])]
    names, tasks = lm_names(args.suite)
    suites = [load_suite(name, data_dir=args.data_dir, overrides=overrides) for name in names]
    if tasks and chosen.second_grader is not None:
        raise ConfigError(
            f"--second-grader is for suites, and lm:{tasks[0]} is scored by lm-eval; leave one away"
        )
    lm_plan = lm_harness.plan(tasks, overrides, args.data_dir)
    doubled = {s.name for s in suites if sum(t.name == s.name for t in suites) > 1}
    if doubled:
        raise ConfigError(f"suite '{doubled.pop()}' is given twice; name each once")
    for loaded in suites:
        show_plan(plan_lines(loaded, chosen.limit))
    with naming_files():
        if args.target.startswith(("http://", "https://")):
            name, folder, measurements = _endpoint(args, suites, lm_plan, chosen)
        else:
            name, folder, measurements = _checkpoint(args, suites, lm_plan, chosen)
        page = write_outputs(folder, _results(name, measurements))
        record_scores(folder / REPORT_JSON, measurements)
    warn_of_copies(measurements)
    if chosen.second_grader is not None:
        _warn_of_silence(measurements)
    for measured in measurements:
        console.print(_table(measured))
        _show_disagreements(measured)
        console.print(f"records {measured.path}", soft_wrap=True, markup=False)
    console.print(f"report  {page}", soft_wrap=True, markup=False)
    for measured in measurements:
        _refuse_nothing(measured)
    return 0


def show_plan(lines: Iterable[str]) -> None:
    """Print what the planned samples can show, before they are drawn."""
    for line in lines:
        console.print(f"plan  {line}", soft_wrap=True, markup=False)


def warn_of_copies(measurements: Iterable[Measurement]) -> None:
    """Say on stderr where several samples at a temperature above 0 are one and the same."""
    for measured in measurements:
        suite, rate = measured.loaded.suite, measured.summary.duplicate_rate
        if rate is None or rate.estimate < 1 or not suite.sampling.temperature:
            continue
        warn(
            f"{suite.name}: every further answer repeats the first, word for "
            f"word, in all of {rate.n:,} problems at temperature {suite.sampling.temperature:g}: "
            f"the endpoint ignores seeds or answers from a cache, and {suite.samples} samples are "
            "worth 1"
        )


def _warn_of_silence(measurements: Iterable[Measurement]) -> None:
    """Say on stderr how often the second grader gave no verdict."""
    for measured in measurements:
        graded = [record for record in measured.records if record.graded]
        silent = sum(record.second_verdict is None for record in graded)
        if silent:
            warn(
                f"{measured.loaded.name}: the second grader gave no verdict on "
                f"{silent:,} of {len(graded):,} answers; run the same command again to ask again"
            )


def _checkpoint(
    args: argparse.Namespace, suites: Sequence[LoadedSuite], lm_plan: LmPlan, chosen: Options
) -> tuple[str, Path, list[Measurement]]:
    if args.endpoints:
        raise ConfigError(
            f"--endpoints is for addresses, and {args.target} is none; serve the checkpoint, and "
            "name one of its servers in its place"
        )
    checkpoint = find_checkpoint(args.target, args.registry)
    folder = args.out or records_folder(checkpoint.path)
    with serving(checkpoint, folder) as endpoint:
        measurements = measure_checkpoint(checkpoint, suites, chosen, folder, endpoint)
        measurements += lm_plan.measure(
            chosen, model=checkpoint.digest, folder=folder, endpoint=endpoint, ours=True
        )
    return checkpoint.path.name, folder, measurements


def _endpoint(
    args: argparse.Namespace, suites: Sequence[LoadedSuite], lm_plan: LmPlan, chosen: Options
) -> tuple[str, Path, list[Measurement]]:
    key = key_from(args.api_key_env)
    with Client(args.target, args.model, api_key=key) as client:
        model = client.model()
        offered = [] if args.model else client.models()
    digest = next((m.digest for m in offered if m.id == model), None)
    endpoint = Endpoint(
        base_url=client.base_url,
        model=model,
        digest=digest,
        api_key=key,
        others=tuple(_others(_split(args.endpoints), model, digest, key)),
    )
    folder = args.out or RUNS / re.sub(r"[^A-Za-z0-9._-]+", "-", model)
    measurements = measure_endpoint(endpoint, suites, chosen, folder)
    measurements += lm_plan.measure(
        chosen,
        model=endpoint.identity,
        folder=folder,
        endpoint=lambda: endpoint,
        ours=digest is not None,
    )
    return model, folder, measurements


def _split(urls: str) -> list[str]:
    return [url for url in (part.strip() for part in urls.split(",")) if url]


def _others(urls: Iterable[str], model: str, digest: str | None, key: str | None) -> Generator[str]:
    """The addresses in their normal form, without those that are down.

    ConfigError when one serves something else.
    """
    for url in urls:
        with Client(url, model, api_key=key) as client:
            try:
                offered = {m.id: m.digest for m in client.models()}
            except RequestFailed as error:
                if error.failure is not Failure.UNREACHABLE:
                    raise
                warn(f"{error} It is left out")
                continue
        if model not in offered:
            raise ConfigError(f"{client.base_url} offers {', '.join(offered)}, not {model}")
        if offered[model] != digest and digest is not None:
            other = (offered[model] or "with an unknown digest")[:22]
            raise ConfigError(f"{client.base_url} serves a model {other}, not {digest[:12]}")
        yield client.base_url


def _results(name: str, measurements: Sequence[Measurement]) -> Results:
    facts = {f"Records of {m.loaded.name}": str(m.path) for m in measurements}
    facts |= {f"Fingerprint of {m.loaded.name}": m.fingerprint for m in measurements}
    suites = [Result(m.loaded.name, run_of(m, name)) for m in measurements]
    return Results(suites=suites, facts=facts)


def _table(measured: Measurement) -> Table:
    summary = measured.summary
    title = f"{measured.loaded.name}: {summary.samples:,} samples, {summary.problems:,} problems"
    table = Table("metric", "value", "95 % interval", title=title, title_justify="left")
    shares = {**summary.shares, **summary.several}
    if summary.duplicate_rate is not None:
        shares["duplicate_rate"] = summary.duplicate_rate
    for name, interval in shares.items():
        if interval is None and name in OPTIONAL:
            continue
        table.add_row(name.replace("_", " "), *_cells(interval))
    add_scores(table, measured)
    for name, spread, style in (
        ("thinking tokens", summary.reasoning_tokens, ".1f"),
        ("answer tokens", summary.answer_tokens, ".1f"),
        ("seconds per answer", summary.latency_s, ".2f"),
    ):
        if spread is not None:
            rest = f"median {spread.p50:{style}}, 95th percentile {spread.p95:{style}}"
            table.add_row(name, f"{spread.mean:{style}}", rest)
    if summary.tokens_per_correct is not None:
        table.add_row("tokens per right answer", f"{summary.tokens_per_correct:,.0f}", "")
    if summary.samples_per_second is not None:
        tokens = summary.tokens_per_second
        rest = f"{tokens:,.0f} tokens/s" if tokens else ""
        table.add_row("samples per second", f"{summary.samples_per_second:.1f}", rest)
    counts = ", ".join(f"{n:,} {v.replace('_', ' ')}" for v, n in summary.verdicts.items())
    table.add_row("verdicts", "", counts)
    return table


def _show_disagreements(measured: Measurement) -> None:
    found = disagreements(measured.records)
    if not found:
        return
    title = f"{measured.loaded.name}: the graders disagree on {len(found):,} answers"
    table = Table("problem", "gold", "answer", "verdict", "second", title=title)
    table.title_justify = "left"
    for record in found[:DISAGREEMENTS_SHOWN]:
        texts = (record.problem_id, record.gold or "", record.extracted or "")
        shown = [escape(printable(text[:80])) for text in texts]
        table.add_row(*shown, record.verdict, record.second_verdict)
    console.print(table)


def _cells(interval: Interval | None) -> tuple[str, str]:
    if interval is None:
        return "-", ""
    return f"{interval.estimate:.1%}", f"{interval.low:.1%} to {interval.high:.1%}"


def _refuse_nothing(measured: Measurement) -> None:
    """An evaluation in which nothing could be graded is a mistake to fix, not a result."""
    if any(record.graded for record in measured.records):
        return
    if isinstance(measured, LmMeasurement) and measured.scores:  # none is just right or wrong
        return
    reason = measured.summary.first_error or f"verdict {measured.records[0].verdict}"
    raise EndpointError(
        f"{measured.loaded.name}: none of {len(measured.records)} samples could be measured; the "
        f"first: {reason}; see {measured.path}"
    )
