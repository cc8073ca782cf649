"""Examples:

thinkgate gate runs/quickstart/grpo --policy quickstart --against runs/quickstart/base
thinkgate gate runs/qwen/grpo --against production
thinkgate gate runs/qwen/grpo --policy my-policy.yaml --data-dir data --limit 200

Suites without records are measured first, on both sides, by the same code as 'thinkgate eval'.
Exit code: 0 PASS, 1 FAIL, 3 INCONCLUSIVE, 2 a mistake to fix. Only a checkpoint whose decision is
PASS can be promoted and served.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from thinkgate.checkpoint import DECISION, SEEN, Checkpoint, Decision, GateVerdict, write_atomic
from thinkgate.console import console, printable
from thinkgate.errors import ConfigError
from thinkgate_evals.eval_command import add_measuring_arguments, options
from thinkgate_evals.gate import Evidence, decide
from thinkgate_evals.measure import Options, find_checkpoint, measure_checkpoint, naming_files
from thinkgate_evals.policy import Policy, load_policy
from thinkgate_evals.records import Record
from thinkgate_evals.report import asked_text, estimate_text, record_summaries, write_report
from thinkgate_evals.suites import LoadedSuite, load_suite

__all__ = ["add_arguments", "gate", "run", "show_decision"]

EXIT = {GateVerdict.PASS: 0, GateVerdict.FAIL: 1, GateVerdict.INCONCLUSIVE: 3}
COLOURS = {GateVerdict.PASS: "green", GateVerdict.FAIL: "red", GateVerdict.INCONCLUSIVE: "yellow"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate gate`."""
    parser.add_argument("checkpoint", help="checkpoint folder to judge")
    parser.add_argument(
        "--policy", default="default", help="shipped name or YAML file; default: default"
    )
    parser.add_argument("--against", help="the incumbent: checkpoint folder or registry alias")
    add_measuring_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Gate the checkpoint, print the table, exit with the verdict."""
    policy = load_policy(args.policy)
    if policy.compares() and args.against is None:
        raise ConfigError(
            f"policy '{policy.name}' compares with an incumbent; name one with --against, for "
            "example 'production' or the checkpoint it was trained from"
        )
    candidate = find_checkpoint(args.checkpoint, args.registry)
    incumbent = find_checkpoint(args.against, args.registry) if args.against else None
    chosen = options(args, policy.limit)
    with naming_files():
        decision = gate(policy, candidate, incumbent, chosen, data_dir=args.data_dir)
    show_decision(decision)
    report = candidate.meta("report.html")
    console.print(f"report   {report}", soft_wrap=True, markup=False)
    return EXIT[decision.verdict]


def gate(
    policy: Policy,
    candidate: Checkpoint,
    incumbent: Checkpoint | None,
    chosen: Options,
    *,
    data_dir: Path | None = None,
) -> Decision:
    """Measure what is missing, decide, and write the report and then `decision.json`.

    The decision comes last: if anything before it fails there is none, and nothing is promoted.
    """
    suites = {name: load_suite(name, data_dir=data_dir) for name in policy.suites()}
    measured = measure_checkpoint(candidate, suites.values(), chosen)
    ours = _evidence(candidate, suites, [m.records for m in measured])
    theirs = None
    if incumbent is not None:
        others = measure_checkpoint(incumbent, suites.values(), chosen)
        theirs = _evidence(incumbent, suites, [m.records for m in others])
    template = candidate.manifest.template.digest
    decision = decide(policy, ours, theirs).model_copy(update={"template": template})
    record_summaries(candidate.meta("report.json"), measured, decision)
    first = next(iter(suites.values()))
    write_report(
        candidate.meta("report.html"),
        candidate=candidate.path,
        base=incumbent.path if incumbent else None,
        decision=decision,
        suite_name=first.name,
        extra=_facts(policy, candidate, incumbent),
    )
    write_atomic(candidate.meta(DECISION), decision.model_dump_json(indent=2) + "\n")
    return decision


def show_decision(decision: Decision) -> None:
    """Print the decision table and the verdict."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("rule", "estimate (interval)", "asked", "verdict", "why"):
        table.add_column(heading, no_wrap=heading == "verdict")
    for rule in decision.rules:
        colour = COLOURS[rule.verdict]
        table.add_row(
            f"{rule.rule}\n[dim]{escape(rule.suite)}[/]",
            estimate_text(rule),
            asked_text(rule),
            f"[{colour}]{rule.verdict.upper()}[/]",
            escape(printable(rule.why)),
        )
    console.print(table)
    colour = COLOURS[decision.verdict]
    console.print(
        f"[bold {colour}]{decision.verdict.upper()}[/]  policy {escape(decision.policy)}, decision "
        f"{decision.id}, model {decision.candidate[:12]}"
    )


def _evidence(
    checkpoint: Checkpoint, suites: Mapping[str, LoadedSuite], records: list[tuple[Record, ...]]
) -> Evidence:
    seen = checkpoint.seen_prompts()
    # An empty list is what a deleted or emptied file leaves, not what training leaves.
    recorded = bool(seen) or (not checkpoint.manifest.data and checkpoint.meta(SEEN).is_file())
    return Evidence(
        digest=checkpoint.digest,
        suites=suites,
        records=dict(zip(suites, records, strict=True)),
        seen_prompts=seen if recorded else None,
    )


def _facts(policy: Policy, candidate: Checkpoint, incumbent: Checkpoint | None) -> dict[str, str]:
    facts = {
        "Policy": f"{policy.name} {policy.version}, sha256 {policy.digest()[:12]}",
        "Candidate": f"{candidate.manifest.name}, recipe {candidate.manifest.recipe}, model "
        f"{candidate.digest[:12]}",
    }
    if incumbent is not None:
        facts["Incumbent"] = f"{incumbent.manifest.name}, model {incumbent.digest[:12]}"
    return facts
