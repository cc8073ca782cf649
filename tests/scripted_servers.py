"""Checkpoints whose servers answer as a test tells them to, each with a skill of its own.

Not a test: what stands in for vLLM in tests of `thinkgate eval` and `thinkgate gate`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripted_endpoint import Fails, Says, ScriptedEndpoint, prompt_of

from thinkgate.checkpoint import (
    Manifest,
    TemplateFingerprint,
    load_checkpoint,
    model_digest,
    write_manifest,
)
from thinkgate_clients.local import LocalServer
from thinkgate_evals.suites import load_suite

# How many of each 100 problems these models get right.
SKILL = {"weak": 70, "strong": 83, "same": 70, "base": 70, "grpo": 83}
RANK = {p.prompt: n for n, p in enumerate(load_suite("arithmetic").problems)}


def checkpoint(
    folder: Path, seen: frozenset[str] = frozenset({"x"}), *, chat_template: str = ""
) -> Path:
    """A complete checkpoint folder; what is in the model does not matter here."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(folder.name)
    manifest = Manifest(
        name=folder.name,
        method="grpo",
        recipe="test",
        config={},
        template=TemplateFingerprint(
            chat_template_sha256=chat_template,
            open_tag="<think>",
            close_tag="</think>",
            prefilled=False,
        ),
        model_digest=model_digest(folder),
        created="2026-01-01T00:00:00+00:00",
    )
    write_manifest(folder, manifest, seen)
    return folder


class Servers:
    """What stands in for `local_server`, and what it was asked to serve."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.script: Callable[[str, dict[str, Any]], Says | Fails] = self.answer

    def answer(self, name: str, body: dict[str, Any]) -> Says:
        prompt = prompt_of(body)
        value = sum(int(term) for term in prompt.replace("-", "+-").split("+"))
        right = RANK[prompt] % 100 < SKILL[name]
        return Says(str(value if right else value + 1), f"{prompt}={value}")

    @contextmanager
    def serve(self, target: Path, *, allow_ungated: bool, log: Path) -> Iterator[LocalServer]:
        assert allow_ungated
        log.write_text("as if served\n")
        self.started.append(target.name)
        headers = {"X-Thinkgate-Model-Digest": load_checkpoint(target).digest}
        with ScriptedEndpoint(
            lambda body: self.script(target.name, body), headers=headers
        ) as endpoint:
            yield LocalServer(endpoint.base_url, "scripted", None)  # type: ignore[arg-type]
