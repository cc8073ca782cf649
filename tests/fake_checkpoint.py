"""Checkpoint folders for tests: complete with manifest, and with a gate decision when asked."""

import hashlib
from pathlib import Path
from typing import Any

from thinkgate.checkpoint import (
    DECISION,
    Decision,
    GateVerdict,
    Manifest,
    TemplateFingerprint,
    load_checkpoint,
    model_digest,
    now,
    write_atomic,
    write_manifest,
    writing_checkpoint,
)


def make_checkpoint(
    folder: Path,
    model: Any = None,
    tokenizer: Any = None,
    *,
    config: str = "{}",
    seen: frozenset[str] = frozenset(),
) -> Path:
    """A complete checkpoint; without a model, one whose only model file is `config`."""
    with writing_checkpoint(folder) as partial:
        if model is None:
            (partial / "config.json").write_text(config, encoding="utf-8")
        else:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        template = (tokenizer.chat_template or "") if tokenizer else ""
        manifest = Manifest(
            name="tiny",
            method="sft",
            recipe="tests",
            config={},
            template=TemplateFingerprint(
                chat_template_sha256=hashlib.sha256(template.encode()).hexdigest(),
                open_tag="<think>",
                close_tag="</think>",
                prefilled=False,
            ),
            model_digest=model_digest(partial),
            created=now(),
        )
        write_manifest(partial, manifest, seen)
    return folder


def record_decision(folder: Path, verdict: GateVerdict = GateVerdict.PASS) -> Decision:
    """Write what a gate would have written about the checkpoint in `folder`."""
    checkpoint = load_checkpoint(folder)
    decision = Decision(
        id="d-test",
        verdict=verdict,
        policy="tests",
        policy_sha256="0" * 64,
        candidate=checkpoint.digest,
        template=checkpoint.manifest.template.digest,
        incumbent=None,
        suites={},
        rules=(),
        created=now(),
    )
    write_atomic(checkpoint.meta(DECISION), decision.model_dump_json())
    return decision
