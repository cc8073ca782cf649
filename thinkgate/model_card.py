"""The model card of a checkpoint: what its manifest, its decision and its report say, for people.

Owns the words and the front matter. It measures nothing and takes nothing on trust: whoever calls
has verified the checkpoint, or says that it is not gated.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from thinkgate.checkpoint import POLICY, Checkpoint, Decision, HealthVerdict
from thinkgate.errors import CheckpointError, MissingDependencyError
from thinkgate.provenance.keys import PublicKey

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

__all__ = ["model_card"]

SUMMARY = "summary.md"
REPORT = "report.json"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(
    checkpoint: Checkpoint, decision: Decision | None, signer: PublicKey | None, repository: str
) -> str:
    """The text of README.md for `repository`; without a decision it says so first of all.

    CheckpointError when the checkpoint's report cannot be read.
    """
    try:
        from huggingface_hub import ModelCard, ModelCardData
    except ImportError as error:
        raise MissingDependencyError(
            "a model card needs huggingface_hub; pip install 'thinkgate[hub]'"
        ) from error
    manifest = checkpoint.manifest
    base = str(manifest.config.get("model", {}).get("path", ""))
    data: Any = ModelCardData(
        model_name=manifest.name,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["thinkgate", "reasoning", manifest.method, "gated" if decision else "ungated"],
        base_model=base if HUB_ID.fullmatch(base) and not base.startswith("runs/") else None,
        eval_results=_eval_results(checkpoint) if decision else None,
    )
    sections = [
        f"# {_plain(manifest.name)}",
        _verdict(checkpoint, decision, signer),
        _results(checkpoint) if decision else "",
        _limits(checkpoint, decision),
        _training(checkpoint),
        _use(checkpoint, decision, signer, repository),
    ]
    body = "\n\n".join(section for section in sections if section)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def _verdict(checkpoint: Checkpoint, decision: Decision | None, signer: PublicKey | None) -> str:
    if decision is None or signer is None:
        return (
            "**Not gated.** No signed decision vouches for this model: it passed no gate, or has "
            "changed since."
        )
    against = f" against model `{decision.incumbent[:12]}`" if decision.incumbent else ""
    return (
        f"**Gated: {decision.verdict.upper()}** by policy {_code(decision.policy)}{against}, "
        f"decision `{decision.id}` of {decision.created}, about exactly the model files with "
        f"digest `{checkpoint.digest}`. Signed by key `{signer.hint}`."
    )


def _results(checkpoint: Checkpoint) -> str:
    """The tables of the gate, in its own words, and the policy it applied."""
    file = _evidence(checkpoint, SUMMARY)
    summary = file.read_text(encoding="utf-8").strip()
    policy = yaml.safe_dump(json.loads(checkpoint.meta(POLICY).read_bytes()), sort_keys=False)
    return f"{summary}\n\n{_details('The policy', policy)}"


def _evidence(checkpoint: Checkpoint, name: str) -> Path:
    file = checkpoint.meta(name)
    if not file.is_file():
        raise CheckpointError(f"{file} is not there, and the card shows it; gate again")
    return file


def _limits(checkpoint: Checkpoint, decision: Decision | None) -> str:
    lines: list[str] = []
    if decision is not None:
        suites = ", ".join(map(_code, decision.suites))
        lines.append(
            f"Measured on {suites}, and on nothing else; another task is another question."
        )
        lines.append(
            "The intervals say how far chance goes. They say nothing of problems unlike these."
        )
    health = checkpoint.manifest.health
    if health is None:
        lines.append("Nothing watched its training.")
    elif health.verdict is not HealthVerdict.HEALTHY:
        found = (f"{f.symptom} at step {f.step}: {_plain(f.why)}" for f in health.findings)
        lines.append(f"Training was {health.verdict}: {'; '.join(found)}")
    if not checkpoint.manifest.data:
        lines.append("What it was trained on was not recorded.")
    lines.append("A thought explains nothing reliably: it need not be the reason for the answer.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _training(checkpoint: Checkpoint) -> str:
    manifest = checkpoint.manifest
    facts = {
        "Method": _code(manifest.method),
        "Recipe": _code(manifest.recipe),
        "Seed": str(manifest.seed),
        "Parent": f"`{manifest.parent}`" if manifest.parent else "none",
        "Finished": manifest.created,
        "Packages": ", ".join(f"{name} {which}" for name, which in manifest.packages.items()),
    }
    blocks = ["## Training", _table(("", ""), facts.items())]
    if manifest.data:
        rows = [(_code(d.name), f"{d.count:,}", f"`{d.sha256}`") for d in manifest.data]
        heading = ("data", "prompts", "SHA-256 of their sorted keys")
        blocks.append(_table(heading, rows))
    recipe = yaml.safe_dump(manifest.config, sort_keys=False, allow_unicode=True)
    return "\n\n".join([*blocks, _details("The recipe as it was run", recipe)])


def _use(
    checkpoint: Checkpoint, decision: Decision | None, signer: PublicKey | None, repository: str
) -> str:
    template = checkpoint.manifest.template
    name = repository.rpartition("/")[2]
    trust = f"thinkgate keys trust PUBLISHER.pub   # the key {signer.hint[:12]}…" if signer else ""
    flag = "" if decision else " --allow-ungated"
    commands = [
        f"hf download {repository} --local-dir {name} --exclude README.md --exclude .gitattributes",
        f"rm -r {name}/.cache",
        *([trust, f"thinkgate verify {name}"] if decision else []),
        f"thinkgate serve {name}{flag}",
    ]
    tags = f"{_code(template.open_tag)} and {_code(template.close_tag)}"
    opened = ", the first of them by the prompt" if template.prefilled else ""
    sampling = ", ".join(f"{key} {value:g}" for key, value in template.sampling.items())
    return "\n\n".join(
        [
            "## Serve and verify",
            "```sh\n" + "\n".join(commands) + "\n```",
            f"Reasoning stands between {tags}{opened}. It was "
            + (f"trained with {sampling}." if sampling else "given no sampling defaults.")
            + " Any loader of Hub models takes the folder; `thinkgate/` is the evidence.",
        ]
    )


def _eval_results(checkpoint: Checkpoint) -> "list[EvalResult]":
    """The accuracy of every suite, from the report that is signed with the model."""
    from huggingface_hub import EvalResult

    file = _evidence(checkpoint, REPORT)
    results: list[EvalResult] = []
    try:
        suites: Mapping[str, Any] = json.loads(file.read_bytes())["suites"]
        for suite, entry in suites.items():
            accuracy = entry["summary"]["shares"]["accuracy"]
            if accuracy is None:
                continue
            low, high = (f"{100 * accuracy[side]:.1f}" for side in ("low", "high"))
            results.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type=suite,
                    dataset_name=suite,
                    metric_type="accuracy",
                    metric_name=f"accuracy in % (95 % interval {low} to {high}, n = "
                    f"{accuracy['n']:,})",
                    metric_value=round(100 * accuracy["estimate"], 2),
                )
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file}: not a report: {error!r}; gate the checkpoint again"
        ) from error
    return results


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _details(title: str, text: str) -> str:
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 3)
    block = f"{fence}yaml\n{text.rstrip()}\n{fence}"
    return f"<details><summary>{title}</summary>\n\n{block}\n\n</details>"


def _code(text: str) -> str:
    """A name as code, whatever is in it."""
    return f"`{' '.join(text.replace('`', ' ').replace('|', ' ').split())}`"


def _plain(text: str) -> str:
    """Words that become no Markdown and no HTML."""
    return re.sub(r"([\\`*_{}\[\]()<>#|!~])", r"\\\1", " ".join(text.split()))
