"""Examples:

thinkgate gate runs/quickstart/grpo --policy quickstart --against runs/quickstart/base
thinkgate gate runs/qwen/grpo --against production
thinkgate gate runs/qwen/grpo --policy my-policy.yaml --data-dir data --limit 200
thinkgate gate runs/qwen/grpo --against production --sequential
thinkgate gate --records candidate.jsonl --against base.jsonl
thinkgate gate --records candidate.jsonl --against base.jsonl --policy mine.yaml --out gate

Suites without records are measured first, on both sides, by the same code as 'thinkgate eval'.
With --records nothing is measured: both sides are files, or folders of SUITE.jsonl, of this or any
other tool, with 'problem_id' and 'correct' at least. What a rule needs and they lack is
INCONCLUSIVE. Exit code: 0 PASS, 1 FAIL, 3 INCONCLUSIVE, 2 a mistake to fix.

A checkpoint that passes is signed with the key 'default' ('thinkgate keys new' makes it) or --key:
only what is signed can be promoted and served.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from thinkgate.checkpoint import DECISION, POLICY, Checkpoint, Decision, GateVerdict, write_atomic
from thinkgate.console import console, printable
from thinkgate.errors import ConfigError, DataError
from thinkgate.provenance import SIGNATURE, attest, sign, unsign
from thinkgate.provenance.keys import PrivateKey, signing_key
from thinkgate.registry import Registry
from thinkgate_evals.eval_command import (
    add_measuring_arguments,
    options,
    show_plan,
    warn_of_copies,
)
from thinkgate_evals.evidence import evidence_of, evidence_of_records
from thinkgate_evals.gate import decide
from thinkgate_evals.measure import (
    Measurement,
    Options,
    find_checkpoint,
    measure_checkpoint,
    naming_files,
    records_folder,
    require_outside_checkpoints,
)
from thinkgate_evals.outputs import write_outputs
from thinkgate_evals.plan import plan_lines
from thinkgate_evals.policy import ANY_SUITE, Policy, load_policy
from thinkgate_evals.record_sets import RecordSet, find_record_sets
from thinkgate_evals.records import Record, header_path, read_records
from thinkgate_evals.results import Result, Results, run_of, run_of_set
from thinkgate_evals.second_grader import grader_name
from thinkgate_evals.sequential import gate_in_looks
from thinkgate_evals.suites import changed_keys, load_suite
from thinkgate_evals.wording import asked_text, estimate_text, saved_text

__all__ = ["add_arguments", "gate", "gate_records", "run", "show_decision"]

EXIT = {GateVerdict.PASS: 0, GateVerdict.FAIL: 1, GateVerdict.INCONCLUSIVE: 3}
COLOURS = {GateVerdict.PASS: "green", GateVerdict.FAIL: "red", GateVerdict.INCONCLUSIVE: "yellow"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate gate`."""
    parser.add_argument("checkpoint", nargs="?", help="checkpoint folder to judge")
    parser.add_argument(
        "--policy", help="shipped name or YAML file; default: default, with --records: records"
    )
    parser.add_argument(
        "--against", help="the incumbent: checkpoint folder or registry alias, or its records"
    )
    parser.add_argument(
        "--records",
        type=Path,
        help="judge these records instead of a checkpoint: a file, or a folder of SUITE.jsonl",
    )
    parser.add_argument(
        "--sequential",
        action="store_true",
        help="ask the problems in random order, and stop as soon as every rule is decided",
    )
    parser.add_argument("--order-seed", type=int, help="of --sequential's order; default: 0")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the decision and the reports; the checkpoint is left as it is",
    )
    signing = parser.add_mutually_exclusive_group()
    signing.add_argument("--key", help="name or file of the private key that signs a PASS")
    signing.add_argument("--no-sign", action="store_true", help="sign nothing")
    add_measuring_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Gate the checkpoint or the records, print the table, exit with the verdict."""
    policy = load_policy(args.policy or ("default" if args.records is None else ANY_SUITE))
    if (args.checkpoint is None) == (args.records is None):
        raise ConfigError("name one candidate: a checkpoint folder, or records with --records")
    if args.order_seed is not None and not args.sequential:
        raise ConfigError("--order-seed is for --sequential; without it all problems are asked")
    if args.records is not None:
        _refuse_measuring(args)
    if policy.comparative() and args.against is None:
        raise ConfigError(
            f"policy '{policy.name}' compares with an incumbent; name one with --against, for "
            "example 'production' or the checkpoint it was trained from"
        )
    if args.records is None:
        return _gate_checkpoint(args, policy)
    if args.out is not None:
        require_outside_checkpoints(args.out, "--out")
    with naming_files():
        against = Path(args.against) if args.against else None
        decision, page = gate_records(policy, args.records, against, args.out)
    return _shown(decision, page)


def _refuse_measuring(args: argparse.Namespace) -> None:
    """ConfigError for options that --records leaves without effect."""
    ignored = {
        "--sequential": args.sequential,
        "--second-grader": args.second_grader,  # the records say what one said
        "--limit": args.limit,
        "--data-dir": args.data_dir,
        "--fresh": args.fresh,
        "--cache": args.cache,
        "--key": args.key,
        "--no-sign": args.no_sign,
    }
    given = [option for option, value in ignored.items() if value not in (None, False)]
    if given:
        raise ConfigError(
            f"{given[0]} is for measuring and signing a checkpoint, and --records only decides; "
            "leave it away"
        )


def _gate_checkpoint(args: argparse.Namespace, policy: Policy) -> int:
    candidate = find_checkpoint(args.checkpoint, args.registry)
    key = _key(args, candidate)
    incumbent = find_checkpoint(args.against, args.registry) if args.against else None
    chosen = options(args, policy.limit)
    if policy.second_grader is not None:
        if chosen.second_grader not in (None, policy.second_grader):
            raise ConfigError(
                f"--second-grader {args.second_grader}: policy '{policy.name}' demands "
                f"{grader_name(policy.second_grader)}; leave the option away, or change the policy"
            )
        chosen = replace(chosen, second_grader=policy.second_grader)
    with naming_files():
        decision = gate(
            policy,
            candidate,
            incumbent,
            chosen,
            data_dir=args.data_dir,
            order_seed=(args.order_seed or 0) if args.sequential else None,
            out=args.out,
        )
        code = _shown(decision, (args.out or candidate.meta()) / "report.html")
        if args.out is None:
            _vouch(candidate, decision, key)
    return code


def _shown(decision: Decision, page: Path | None) -> int:
    show_decision(decision)
    if page is not None:
        console.print(f"report   {page}", soft_wrap=True, markup=False)
    return EXIT[decision.verdict]


def _key(args: argparse.Namespace, candidate: Checkpoint) -> PrivateKey | None:
    """What a PASS is signed with; ConfigError when that would leave less than there was."""
    if args.out is not None:
        return None
    key = None if args.no_sign else signing_key(args.key, Registry(args.registry).root)
    if key is None and candidate.meta(SIGNATURE).is_file():
        raise ConfigError(
            f"{candidate.path} is signed, and a new decision in it would break its signature; "
            "name a key that signs it again with --key, or a folder for the decision with --out"
        )
    return key


def _vouch(candidate: Checkpoint, decision: Decision, key: PrivateKey | None) -> None:
    """Sign what passed; of anything else, attest what the gate said."""
    if decision.verdict is not GateVerdict.PASS:
        if key is not None:
            attest(candidate.path, key)
        return
    if key is None:
        console.print(
            "unsigned, so it cannot be promoted or served yet: make a key with 'thinkgate keys "
            f"new', then 'thinkgate sign {candidate.path}'",
            soft_wrap=True,
            markup=False,
        )
        return
    sign(candidate.path, key)
    console.print(f"signed   by {key.path}", soft_wrap=True, markup=False)


def gate(
    policy: Policy,
    candidate: Checkpoint,
    incumbent: Checkpoint | None,
    chosen: Options,
    *,
    data_dir: Path | None = None,
    order_seed: int | None = None,
    out: Path | None = None,
) -> Decision:
    """Measure what is missing, decide, and write the reports and then `decision.json`, into the
    candidate or into `out`.

    With `order_seed` in a random order, and no more than it takes. The decision comes last, and
    one that was there goes first, with its signature: if anything fails between there is none, and
    nothing is promoted.
    """
    _require_same_template(policy, candidate, incumbent)
    suites = {
        name: replace(load_suite(name, data_dir=data_dir), order_seed=order_seed)
        for name in policy.suites()
    }
    for loaded in suites.values():
        show_plan(plan_lines(loaded, chosen.limit, policy, _known(incumbent, loaded.name)))
    if order_seed is None:
        ours = measure_checkpoint(candidate, suites.values(), chosen, out)
        theirs = measure_checkpoint(incumbent, suites.values(), chosen) if incumbent else []
        decision = decide(
            policy,
            evidence_of(candidate, suites, ours),
            evidence_of(incumbent, suites, theirs) if incumbent else None,
        )
    else:
        ours, theirs, decision = gate_in_looks(policy, candidate, incumbent, suites, chosen, out)
    warn_of_copies([*ours, *theirs])
    if out is None:
        unsign(candidate)
        candidate.meta(DECISION).unlink(missing_ok=True)
        ours = [_kept_within(candidate, measured) for measured in ours]
    bases = [run_of(m, incumbent.path.name) for m in theirs] if incumbent else [None] * len(ours)
    results = Results(
        suites=[
            Result(measured.loaded.name, run_of(measured, candidate.path.name), base)
            for measured, base in zip(ours, bases, strict=True)
        ],
        decision=decision,
        training_log=candidate.meta("metrics.jsonl"),
        facts=_facts(policy, candidate, incumbent),
    )
    _write(out or candidate.meta(), policy, results, decision)
    return decision


def _write(folder: Path, policy: Policy, results: Results, decision: Decision) -> Path:
    page = write_outputs(folder, results)
    write_atomic(folder / POLICY, policy.text())
    write_atomic(folder / DECISION, decision.model_dump_json(indent=2) + "\n")
    return page


def _kept_within(candidate: Checkpoint, measured: Measurement) -> Measurement:
    """The measurement with its records in the checkpoint, as evidence for the decision."""
    inside = candidate.meta("evals", measured.path.name)
    if measured.path == inside:
        return measured
    for file in (header_path(measured.path), measured.path):
        write_atomic(inside.with_name(file.name), file.read_text(encoding="utf-8"))
    return replace(measured, path=inside)


def gate_records(
    policy: Policy, candidate: Path, incumbent: Path | None, out: Path | None
) -> tuple[Decision, Path | None]:
    """Decide on records alone; with `out`, the page that was written there.

    Such a decision promotes nothing: it is about records, not about a checkpoint's files.
    """
    ours = _record_sets(policy, candidate, "candidate")
    theirs = _record_sets(policy, incumbent, "incumbent") if incumbent else None
    decision = decide(
        policy, evidence_of_records(ours), evidence_of_records(theirs) if theirs else None
    )
    if out is None:
        return decision, None
    suites = [
        Result(suite, run_of_set(found), run_of_set(theirs[suite]) if theirs else None)
        for suite, found in ours.items()
    ]
    facts = {"Policy": f"{policy.name} {policy.version}, sha256 {policy.digest()[:12]}"}
    facts |= {f"Records of {suite}": str(found.path) for suite, found in ours.items()}
    results = Results(suites=suites, decision=decision, facts=facts)
    return decision, _write(out, policy, results, decision)


def show_decision(decision: Decision) -> None:
    """Print the decision table and the verdict."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("rule", "estimate (interval)", "asked", "verdict", "why"):
        table.add_column(heading, no_wrap=heading == "verdict")
    for rule in decision.rules:
        colour = COLOURS[rule.verdict]
        table.add_row(
            f"{rule.rule.replace('_', ' ')}\n[dim]{escape(rule.suite)}[/]",
            estimate_text(rule),
            asked_text(rule),
            f"[{colour}]{rule.verdict.upper()}[/]",
            escape(printable(rule.why)),
        )
    console.print(table)
    colour = COLOURS[decision.verdict]
    if (run := decision.sequential) is not None:
        console.print(saved_text(run), markup=False)
    console.print(
        f"[bold {colour}]{decision.verdict.upper()}[/]  policy {escape(decision.policy)}, decision "
        f"{decision.id}, model {escape(decision.candidate.removeprefix('records:')[:12])}"
    )


def _record_sets(policy: Policy, path: Path, side: str) -> dict[str, RecordSet]:
    """The policy's suites; a file of another tool is whatever single suite the policy names, and
    ANY_SUITE the only one there is."""
    found = find_record_sets(path)
    wanted = policy.suites()
    if len(found) == len(wanted) == 1:
        [only] = found.values()
        if wanted[0] == ANY_SUITE or (only.header is None and path.is_file()):
            found = {wanted[0]: only}
    missing = [suite for suite in wanted if suite not in found]
    if missing == [ANY_SUITE]:
        raise DataError(
            f"the {side}'s records {path} are about {', '.join(found)}; name one file of them, or "
            "a policy about them with --policy"
        )
    if missing:
        raise DataError(
            f"the {side}'s records {path} are about {', '.join(found)}, and policy '{policy.name}' "
            f"asks for {', '.join(missing)}; name a folder with {missing[0]}.jsonl"
        )
    return {suite: found[suite] for suite in wanted}


def _known(incumbent: Checkpoint | None, suite: str) -> list[Record]:
    """What an earlier measurement of the incumbent left: its skill decides what can be found."""
    path = records_folder(incumbent.path) / f"{suite}.jsonl" if incumbent else None
    return read_records(path) if path is not None and path.is_file() else []


def _require_same_template(
    policy: Policy, candidate: Checkpoint, incumbent: Checkpoint | None
) -> None:
    """ConfigError where the two are not asked alike, before anything is measured."""
    if incumbent is None or not policy.comparative() or policy.template_change == "allow":
        return
    # Their own sampling defaults do not count: the suite says how answers are drawn.
    theirs, ours = (
        side.manifest.template.model_dump(exclude={"sampling"}) for side in (incumbent, candidate)
    )
    changed = changed_keys(theirs, ours)
    if changed:
        raise ConfigError(
            f"{candidate.path} and the incumbent {incumbent.path} differ in {', '.join(changed)}, "
            "so a difference between them need not come from the weights; train with the "
            f"incumbent's, or set 'template_change: allow' in policy '{policy.name}'"
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
