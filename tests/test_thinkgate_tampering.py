"""Whatever was changed, swapped, added or taken away since the gate signed: neither promoted nor
served, and the reason is said."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_checkpoint import make_checkpoint, record_decision

from thinkgate.checkpoint import DECISION, META, POLICY, GateVerdict
from thinkgate.errors import CheckpointError
from thinkgate.provenance import sign
from thinkgate.provenance.attestation import ATTESTATION
from thinkgate.provenance.envelope import open_bundle, seal
from thinkgate.provenance.keys import new_key, read_private, signing_key, trusted_keys
from thinkgate.registry import Registry
from thinkgate_serve.card import find_target

SIGNATURE = f"{META}/signature.json"
WEIGHTS = (2).to_bytes(8, "little") + b"{}" + b"weights"
FILES = {
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_checkpoint(tmp_path_factory.mktemp("original") / "model", files=FILES)
    record_decision(folder)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another checkpoint that passed, signed with the same key."""
    folder = make_checkpoint(tmp_path_factory.mktemp("other") / "model", config='{"other": 1}')
    record_decision(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def edit(name: str, **changes: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / META / name).read_text()) | changes
        (folder / META / name).write_text(json.dumps(content))

    return apply


def append(name: str, more: bytes = b" ") -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + more) and None


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def failed_then_edited(folder: Path) -> None:
    """The gate said FAIL, and someone with an editor but no key did not like it."""
    record_decision(folder, GateVerdict.FAIL)
    edit(DECISION, verdict="pass")(folder)


def sign_with_a_stranger(folder: Path) -> None:
    private, _ = new_key("stranger", folder.parent / "keys")
    sign(folder, read_private(private))


def sign_a_path_outside(folder: Path) -> None:
    """A trusted key that signs `../evil`: what is signed must lie in the folder all the same."""
    key = signing_key()
    assert key is not None
    bundle = json.loads((folder / SIGNATURE).read_text())
    statement, _ = open_bundle((folder / SIGNATURE).read_bytes(), [key.public])
    changed = json.loads(json.dumps(statement))
    changed["predicate"]["resources"][0]["name"] = "../evil"
    envelope = json.loads(seal(changed, key))
    envelope["signatures"][0]["keyid"] = ""
    bundle["dsseEnvelope"] = envelope
    (folder / SIGNATURE).write_text(json.dumps(bundle, separators=(",", ":")))


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights": (append("model.safetensors"), "a file was changed, added or removed after training"),
    "tokenizer": (append("tokenizer.json"), "a file was changed, added or removed after training"),
    "chat template": (append("chat_template.jinja"), "a file was changed, added or removed"),
    "manifest": (append(f"{META}/manifest.json"), "manifest.json: changed: signed"),
    "sampling defaults": (
        edit("manifest.json", template={"chat_template_sha256": "", "open_tag": "<t>",
             "close_tag": "</t>", "prefilled": False}),
        "tags or sampling defaults",
    ),
    "seen prompts": (write(f"{META}/seen-prompts.txt", b"aa\n"), "what the model was trained on"),
    "decision": (edit(DECISION, id="d-other"), "decision.json: changed: signed"),
    "FAIL made PASS": (failed_then_edited, "decision.json: changed: signed"),
    "policy": (edit(POLICY, rules=[]), "is not the policy that decision d-test applied"),
    "no policy": (remove(f"{META}/{POLICY}"), "policy.json is not the policy"),
    "no decision": (remove(f"{META}/{DECISION}"), "no gate decision"),
    "attestation": (append(f"{META}/{ATTESTATION}"), "decision.intoto.json: changed: signed"),
    "extra file": (write("notes.txt", b"x"), "changed, added or removed"),
    "hidden extra file": (write(".hidden", b"x"), ".hidden: extra: it was not signed"),
    "records added": (write(f"{META}/more.jsonl", b"{}"), "more.jsonl: extra: it was not signed"),
    "missing file": (remove("tokenizer.json"), "changed, added or removed"),
    "link": (lambda f: (f / "link").symlink_to("/etc/hostname"), "is a symbolic link"),
    "linked weights": (
        lambda f: ((f / "model.safetensors").rename(f.parent / "w"),
                   (f / "model.safetensors").symlink_to(f.parent / "w")),
        "is a symbolic link",
    ),
    "path escape": (sign_a_path_outside, "'../evil', a path outside the folder"),
    "pickle": (write("weights.bin", pickle.dumps([1])), "a pickle or an archive, which can run"),
    "pickle named safetensors": (
        write("model.safetensors", pickle.dumps([1])), "is named safetensors and is something else"
    ),
    "unsigned": (remove(SIGNATURE), "unsigned: no thinkgate/signature.json"),
    "stranger's signature": (sign_with_a_stranger, "which is not trusted here"),
}  # fmt: skip


def refusals(folder: Path, registry: Registry) -> list[str]:
    """What `promote` says, and what `serve` says by folder and by an alias that was fine before."""
    reasons: list[str] = []
    for act in (
        lambda: registry.promote("production", folder),
        lambda: find_target(str(folder), registry=registry),
        lambda: find_target("staging", registry=registry),
    ):
        with pytest.raises(CheckpointError) as refused:
            act()
        reasons.append(str(refused.value))
    return reasons


@pytest.mark.parametrize("case", TAMPERED)
def test_what_was_tampered_with_is_neither_promoted_nor_served(
    case: str, folder: Path, tmp_path: Path
) -> None:
    registry = Registry(tmp_path / "registry")
    registry.promote("staging", folder)
    assert find_target("staging", registry=registry).decision is not None
    tamper, reason = TAMPERED[case]
    tamper(folder)
    for said in refusals(folder, registry):
        assert reason in said
    assert registry.aliases() == ["staging"]


@pytest.mark.parametrize(
    "files", [(DECISION,), (DECISION, ATTESTATION, "signature.json"), ("signature.json",)]
)
def test_the_decision_of_another_checkpoint_does_not_count(
    files: tuple[str, ...], folder: Path, other: Path, tmp_path: Path
) -> None:
    registry = Registry(tmp_path / "registry")
    registry.promote("staging", folder)
    for name in files:
        shutil.copy(other / META / name, folder / META / name)
    expected = "its decision d-test is about" if DECISION in files else "changed: signed"
    for said in refusals(folder, registry):
        assert expected in said


def test_where_nobody_is_trusted_nothing_is_promoted_or_served(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(tmp_path / "registry")
    registry.promote("staging", folder)
    monkeypatch.setenv("THINKGATE_TRUSTED", "")
    assert trusted_keys(registry.root) == ()
    for said in refusals(folder, registry):
        assert "which is not trusted here; no key is" in said
    card = find_target(str(folder), registry=registry, allow_ungated=True)
    assert card.decision is None


def test_for_development_what_is_unsigned_is_served_as_ungated(
    folder: Path, tmp_path: Path
) -> None:
    (folder / SIGNATURE).unlink()
    registry = Registry(tmp_path / "registry")
    with pytest.raises(CheckpointError, match="--allow-ungated serves it for development"):
        find_target(str(folder), registry=registry)
    card = find_target(str(folder), registry=registry, allow_ungated=True)
    assert card.gate == "ungated"
    (folder / "tokenizer.json").write_bytes(b"changed")
    with pytest.raises(CheckpointError, match="changed, added or removed after training"):
        find_target(str(folder), registry=registry, allow_ungated=True)
