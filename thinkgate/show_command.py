"""Examples:

thinkgate show production
thinkgate show runs/quickstart/grpo

Where it comes from, what the gate said, who signed it, and which aliases point at it. Exit code: 0
all that was signed matches, 1 it would be neither promoted nor served.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from thinkgate.checkpoint import Checkpoint, Manifest, read_manifest
from thinkgate.console import console, printable
from thinkgate.errors import RegistryError
from thinkgate.provenance import Report, verify
from thinkgate.provenance.keys import trusted_keys
from thinkgate.registry import Registry

SUMMARY = "summary.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `thinkgate show`."""
    parser.add_argument("target", help="registry alias or checkpoint folder")
    parser.add_argument("--registry", type=Path, help="registry folder; default: runs/registry")


def run(args: argparse.Namespace) -> int:
    """Print facts and the gate's tables; 1 when something does not match."""
    registry = Registry(args.registry)
    folder = registry.folder_of(args.target)
    manifest = read_manifest(folder)
    report = verify(folder, trusted_keys(registry.root))
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _facts(folder, manifest, report, registry):
        table.add_row(f"[bold]{name}[/]", escape(printable(value)))
    console.print(table)
    summary = Checkpoint(folder, manifest).meta(SUMMARY)
    if report.decision and summary.is_file():
        console.print(Markdown(printable(summary.read_text(encoding="utf-8"))))
    return 1 if report.refused else 0


def _facts(
    folder: Path, manifest: Manifest, report: Report, registry: Registry
) -> Iterator[tuple[str, str]]:
    yield "checkpoint", str(folder)
    yield "model", f"{manifest.name}, {manifest.method}, digest {manifest.model_digest[:12]}"
    yield "recipe", f"{manifest.recipe}, seed {manifest.seed}, finished {manifest.created}"
    yield "parent", manifest.parent[:12] if manifest.parent else "none"
    for data in manifest.data:
        yield "data", f"{data.name}, {data.count:,} prompts, {data.sha256[:12]}"
    yield "training", manifest.health.verdict if manifest.health else "not watched"
    for finding in manifest.health.findings if manifest.health else ():
        yield "", f"{finding.symptom} at step {finding.step}: {finding.why}"
    if report.decision:
        yield "decision", f"{report.decision.id} of {report.decision.created}"
        yield "policy", f"{report.decision.policy}, {report.decision.policy_sha256[:12]}"
    if report.signer:
        yield "signature", f"by {report.signer.name} ({report.signer.hint[:12]})"
    yield "verdict", "refused" if report.refused else "all that was signed matches"
    for check in report.refused:
        yield "", f"{check.what}: {check.why}"
    for alias in registry.aliases():
        try:
            entry = registry.history(alias)[-1]
        except RegistryError as error:
            yield "alias", str(error)
            continue
        if registry.path_of(entry) == folder.absolute():
            yield "alias", f"{alias}, since {entry.when} by {entry.by}{_because(entry.why)}"


def _because(why: str) -> str:
    return f": {why}" if why else ""
