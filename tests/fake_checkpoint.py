"""Checkpoint folders for tests: complete with manifest, and with a gate decision when asked."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thinkgate.checkpoint import (
    ADAPTER,
    DECISION,
    META,
    POLICY,
    DataFingerprint,
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
from thinkgate.provenance import sign
from thinkgate.provenance.keys import signing_key


def make_checkpoint(
    folder: Path,
    model: Any = None,
    tokenizer: Any = None,
    *,
    config: str = "{}",
    files: Mapping[str, bytes] | None = None,
    data: tuple[DataFingerprint, ...] = (),
    seen: frozenset[str] = frozenset(),
    adapter: Path | None = None,
    parent: str | None = None,
) -> Path:
    """A complete checkpoint; without a model, one of `config` and `files` alone."""
    with writing_checkpoint(folder) as partial:
        if model is None:
            (partial / "config.json").write_text(config, encoding="utf-8")
            for name, content in (files or {}).items():
                (partial / name).write_bytes(content)
        else:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        if adapter is not None:
            shutil.copytree(adapter, partial / META / ADAPTER)
        template = (tokenizer.chat_template or "") if tokenizer else ""
        manifest = Manifest(
            name="tiny",
            method="sft",
            recipe="tests",
            config={},
            data=data,
            template=TemplateFingerprint(
                chat_template_sha256=hashlib.sha256(template.encode()).hexdigest(),
                open_tag="<think>",
                close_tag="</think>",
                prefilled=False,
            ),
            adapter_digest=model_digest(adapter) if adapter else None,
            parent=parent,
            model_digest=model_digest(partial),
            created=now(),
        )
        write_manifest(partial, manifest, seen)
    return folder


def record_decision(
    folder: Path, verdict: GateVerdict = GateVerdict.PASS, *, signed: bool = True
) -> Decision:
    """Write what a gate would have written about the checkpoint in `folder`; a PASS is signed."""
    checkpoint = load_checkpoint(folder)
    policy = '{"name": "tests"}'
    decision = Decision(
        id="d-test",
        verdict=verdict,
        policy="tests",
        policy_sha256=hashlib.sha256(policy.encode()).hexdigest(),
        candidate=checkpoint.digest,
        template=checkpoint.manifest.template.digest,
        incumbent=None,
        suites={},
        rules=(),
        created=now(),
    )
    write_atomic(checkpoint.meta(POLICY), policy)
    write_atomic(checkpoint.meta(DECISION), decision.model_dump_json())
    if signed and verdict is GateVerdict.PASS:
        key = signing_key()
        assert key is not None
        sign(folder, key)
    return decision
