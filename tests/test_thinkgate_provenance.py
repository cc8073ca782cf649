"""Signatures: what was signed verifies, here and with model signing's own; nothing else does."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import fake_checkpoint
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thinkgate.checkpoint import DECISION, META, POLICY, DataFingerprint, GateVerdict
from thinkgate.cli import main
from thinkgate.errors import CheckpointError, ConfigError
from thinkgate.provenance import attest, sign, verify
from thinkgate.provenance.attestation import ATTESTATION
from thinkgate.provenance.envelope import open_envelope
from thinkgate.provenance.keys import (
    PublicKey,
    new_key,
    read_private,
    read_public,
    signing_key,
    trust,
)
from thinkgate.provenance.keys import trusted_keys as trusted

DATA = (DataFingerprint(name="lessons", count=2, sha256="7" * 64),)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PublicKey]:
    private, public = new_key("ci", tmp_path_factory.mktemp("keys"))
    return private, read_public(public)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, key: tuple[Path, PublicKey]) -> Path:
    folder = tmp_path_factory.mktemp("signed") / "model"
    fake_checkpoint.make_checkpoint(folder, data=DATA)
    fake_checkpoint.record_decision(folder)
    sign(folder, read_private(key[0]))
    return folder


@pytest.fixture
def signed(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def reasons(folder: Path, key: tuple[Path, PublicKey]) -> str:
    return "; ".join(f"{c.what}: {c.why}" for c in verify(folder, [key[1]]).refused)


def test_what_was_signed_verifies_and_model_signing_agrees(
    signed: Path, key: tuple[Path, PublicKey]
) -> None:
    from model_signing import verifying

    report = verify(signed, [key[1]])
    assert not report.refused and len(report.checks) > 8
    report.require()
    public = key[0].with_suffix(".pub")
    config = verifying.Config().use_elliptic_key_verifier(public_key=public)
    config.verify(signed, signed / META / "signature.json")


def test_the_attestation_opens_with_another_implementation(
    signed: Path, key: tuple[Path, PublicKey]
) -> None:
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import SSlibKey

    envelope = Envelope.from_dict(json.loads((signed / META / ATTESTATION).read_text()))
    other = SSlibKey.from_crypto(key[1].key, keyid=key[1].hint)
    envelope.verify([other], 1)
    statement = json.loads(envelope.payload)
    assert statement["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    assert statement["predicate"]["result"] == "PASSED"
    [subject] = statement["subject"]
    assert (subject["name"], subject["digest"]["sha256"]) == ("config.json", sha256(b"{}"))
    bound = {r["name"]: r["digest"]["sha256"] for r in statement["predicate"]["configuration"]}
    assert bound["policy:tests"] == sha256((signed / META / POLICY).read_bytes())
    assert bound["training-data:lessons"] == "7" * 64
    assert bound[f"{META}/{DECISION}"] == sha256((signed / META / DECISION).read_bytes())


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_byte_of_any_file_can_change(
    data: st.DataObject, original: Path, key: tuple[Path, PublicKey]
) -> None:
    files = sorted(p for p in original.rglob("*") if p.is_file() and p.stat().st_size)
    path = data.draw(st.sampled_from(files))
    before = path.read_bytes()
    at = data.draw(st.integers(0, len(before) - 1))
    flip = data.draw(st.integers(1, 255))
    try:
        path.write_bytes(before[:at] + bytes([before[at] ^ flip]) + before[at + 1 :])
        assert verify(original, [key[1]]).refused
    finally:
        path.write_bytes(before)


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "extra": (write("notes.txt", b"x"), "notes.txt: extra"),
    "hidden": (write(".hidden", b"x"), "hidden: extra"),
    "missing": (lambda f: (f / META / "seen-prompts.txt").unlink(), "missing: it was signed"),
    "link": (lambda f: (f / "link").symlink_to("/etc/hostname"), "symbolic link"),
    "linked folder": (lambda f: (f / "sub").symlink_to(f.parent), "symbolic link"),
    "pipe": (lambda f: os.mkfifo(f / "pipe"), "neither a file nor a folder"),
    "pickle": (write("w.bin", pickle.dumps([1])), "pickle"),
    "renamed pickle": (write("w.dat", pickle.dumps([1])), "pickle"),
    "safetensors pickle": (write("model.safetensors", pickle.dumps([1])), "something else"),
    "unsigned": (lambda f: (f / META / "signature.json").unlink(), "unsigned"),
    "not json": (write(f"{META}/signature.json", b"{"), "not JSON"),
    "not an object": (write(f"{META}/signature.json", b"[]"), "not a JSON object"),
    "decision": (lambda f: (f / META / DECISION).unlink(), "no gate decision"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_tampering_is_refused_with_its_reason(
    case: str, signed: Path, key: tuple[Path, PublicKey]
) -> None:
    tamper, expected = TAMPERED[case]
    tamper(signed)
    assert expected in reasons(signed, key)
    with pytest.raises(CheckpointError, match="is refused"):
        verify(signed, [key[1]]).require()


def test_a_decision_of_another_checkpoint_is_refused(
    signed: Path, key: tuple[Path, PublicKey], tmp_path: Path
) -> None:
    other = fake_checkpoint.make_checkpoint(tmp_path / "other", config='{"a": 1}')
    fake_checkpoint.record_decision(other)
    sign(other, read_private(key[0]))
    for name in (DECISION, ATTESTATION, "signature.json"):
        shutil.copy(other / META / name, signed / META / name)
    assert "its decision d-test is about" in reasons(signed, key)


def test_only_trusted_keys_count(signed: Path, tmp_path: Path) -> None:
    _, public = new_key("other", tmp_path / "keys")
    assert "not trusted" in reasons(signed, (public, read_public(public)))
    assert verify(signed, []).refused


def test_a_path_out_of_the_folder_is_refused(signed: Path, key: tuple[Path, PublicKey]) -> None:
    from thinkgate.provenance.envelope import open_bundle
    from thinkgate.provenance.verification import signed_files

    content = (signed / META / "signature.json").read_bytes()
    statement = json.loads(json.dumps(open_bundle(content, [key[1]])[0]))
    for name in ("../evil", "/etc/passwd", "a/../../b", "a\\b", "./a"):
        statement["predicate"]["resources"][0]["name"] = name
        with pytest.raises(CheckpointError, match="outside the folder"):
            signed_files(statement)


def test_what_did_not_pass_is_not_signed(tmp_path: Path, key: tuple[Path, PublicKey]) -> None:
    folder = fake_checkpoint.make_checkpoint(tmp_path / "model")
    fake_checkpoint.record_decision(folder, GateVerdict.FAIL)
    with pytest.raises(CheckpointError, match="the gate said FAIL"):
        sign(folder, read_private(key[0]))
    assert not (folder / META / "signature.json").exists()


@pytest.mark.parametrize("verdict", [GateVerdict.FAIL, GateVerdict.INCONCLUSIVE])
def test_what_did_not_pass_is_attested_as_failed(
    verdict: GateVerdict, tmp_path: Path, key: tuple[Path, PublicKey]
) -> None:
    folder = fake_checkpoint.make_checkpoint(tmp_path / "model")
    fake_checkpoint.record_decision(folder, verdict)
    file = attest(folder, read_private(key[0]))
    statement, _ = open_envelope(file.read_bytes(), [key[1]])
    assert statement["predicate"]["result"] == "FAILED"
    assert f"the gate said {verdict.upper()}" in reasons(folder, key)
    (folder / META / POLICY).write_text("another")
    with pytest.raises(CheckpointError, match="is not the policy"):
        attest(folder, read_private(key[0]))


def test_private_keys_stay_private(tmp_path: Path) -> None:
    private, public = new_key("a", tmp_path / "keys")
    assert private.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="is not replaced"):
        new_key("a", tmp_path / "keys")
    with pytest.raises(ConfigError, match="is a private key"):
        read_public(private)
    private.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_private(private)
    with pytest.raises(ConfigError, match="no private key"):
        public.chmod(0o600)
        read_private(public)


@pytest.mark.parametrize("kind", ["encrypted", "rsa", "missing", "empty", "folder"])
def test_a_key_that_cannot_sign_is_one_sentence(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: bytes = b"") -> bytes:
        lock = serialization.BestAvailableEncryption(password) if password else None
        form = serialization.PrivateFormat.PKCS8
        none = serialization.NoEncryption()
        return key.private_bytes(serialization.Encoding.PEM, form, lock or none)

    file = tmp_path / "x.key"
    match kind:
        case "encrypted":
            file.write_bytes(pem(ec.generate_private_key(ec.SECP256R1()), b"secret"))
        case "rsa":
            file.write_bytes(pem(rsa.generate_private_key(65537, 2048)))
        case "empty":
            file.touch()
        case "folder":
            file.mkdir()
    if file.exists():
        file.chmod(0o700 if file.is_dir() else 0o600)
    folder = fake_checkpoint.make_checkpoint(tmp_path / "model")
    fake_checkpoint.record_decision(folder, signed=False)
    assert main(["sign", str(folder), "--key", str(file)]) == 2
    said = {
        "encrypted": "keys with a password are not supported",
        "rsa": "use an elliptic-curve key",
        "missing": "no such private key",
        "empty": "no private key in PEM form",
        "folder": "no such private key",
    }[kind]
    error = capsys.readouterr().err
    assert said in error and str(file) in error and error.count("\n") == 1
    assert not (folder / META / "signature.json").exists()


def test_a_mistyped_trust_folder_trusts_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THINKGATE_TRUSTED", str(tmp_path / "typo"))
    with pytest.raises(ConfigError, match="nobody is trusted"):
        trusted()
    monkeypatch.setenv("THINKGATE_TRUSTED", "")
    assert trusted() == ()


def test_a_registrys_keys_count_only_where_the_machine_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "registry"
    assert main(["keys", "new", "--registry", str(own)]) == 0
    [machine] = trusted(own)
    theirs = read_public(own / "trusted" / "default.pub")
    assert machine.hint != theirs.hint
    made = signing_key(None, own)
    assert made is not None and made.public.hint == machine.hint
    monkeypatch.setenv("THINKGATE_KEYS", str(tmp_path / "none"))
    monkeypatch.setenv("THINKGATE_TRUSTED", "")
    assert [key.hint for key in trusted(own)] == [theirs.hint]
    made = signing_key(None, own)
    assert made is not None and made.public.hint == theirs.hint
    monkeypatch.setenv("THINKGATE_TRUSTED", str(tmp_path / "typo"))
    with pytest.raises(ConfigError, match="nobody is trusted"):
        trusted(own)


def test_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THINKGATE_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("THINKGATE_TRUSTED", str(tmp_path / "trusted"))
    monkeypatch.chdir(tmp_path)  # a quickstart run here left a registry with keys
    folder = fake_checkpoint.make_checkpoint(tmp_path / "model")
    fake_checkpoint.record_decision(folder, signed=False)
    assert main(["sign", str(folder)]) == 2
    assert "make one with 'thinkgate keys new'" in capsys.readouterr().err
    assert main(["keys", "new"]) == 0
    assert main(["keys", "new"]) == 2
    assert main(["sign", str(folder)]) == 0
    assert main(["verify", str(folder)]) == 0
    assert "VERIFIED" in capsys.readouterr().out
    (folder / "config.json").write_text("{ }")
    assert main(["verify", str(folder)]) == 1
    assert "config.json: changed" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "nowhere")]) == 2
    assert trust(tmp_path / "keys" / "default.pub").parent == tmp_path / "trusted"
