"""Attesting what the gate said, and signing what passed: one signature over all files.

The signature is OpenSSF model signing's, so its own command verifies it too. Knows nothing of
trust: whose signature counts is for whoever verifies.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thinkgate.checkpoint import (
    META,
    Checkpoint,
    Decision,
    decided,
    gated,
    load_checkpoint,
    write_atomic,
)
from thinkgate.errors import MissingDependencyError
from thinkgate.provenance.attestation import ATTESTATION, test_result
from thinkgate.provenance.envelope import seal
from thinkgate.provenance.keys import PrivateKey
from thinkgate.provenance.verification import SIGNATURE, folder_digests

__all__ = ["attest", "sign", "unsign"]


def attest(folder: Path, key: PrivateKey) -> Path:
    """Seal what the gate said of the checkpoint in `folder`, PASS or not, for policy engines.

    CheckpointError where there is none, or one about other files.
    """
    digests = folder_digests(folder)
    checkpoint = load_checkpoint(folder, digests)
    return _attest(checkpoint, decided(checkpoint), digests, key)


def _attest(
    checkpoint: Checkpoint, decision: Decision, digests: Mapping[str, str], key: PrivateKey
) -> Path:
    unsign(checkpoint)
    file = checkpoint.meta(ATTESTATION)
    write_atomic(file, seal(test_result(checkpoint, decision, digests), key))
    return file


def sign(folder: Path, key: PrivateKey) -> Path:
    """Attest and sign the checkpoint in `folder`; CheckpointError unless its gate said PASS.

    An interruption leaves no signature, or one that does not match: never a half-signed folder.
    """
    try:
        import model_signing.hashing
        import model_signing.signing
    except ImportError as error:
        raise MissingDependencyError(
            f"signing needs {error.name}, which is not installed; pip install 'thinkgate[sign]'"
        ) from error
    digests = folder_digests(folder)
    checkpoint = load_checkpoint(folder, digests)
    _attest(checkpoint, gated(checkpoint), digests, key)
    signature = checkpoint.meta(SIGNATURE)
    # Its annotations leave PathLike open, which a strict check cannot read.
    hashing: Any = model_signing.hashing
    signing: Any = model_signing.signing
    everything = hashing.Config().set_ignored_paths(
        paths=[f"{META}/{SIGNATURE}"], ignore_git_paths=False
    )
    with tempfile.TemporaryDirectory() as outside:
        made = Path(outside, SIGNATURE)
        config = signing.Config().use_elliptic_key_signer(private_key=key.path)
        config.set_hashing_config(everything).sign(folder, made)
        write_atomic(signature, made.read_text(encoding="utf-8"))
    return signature


def unsign(checkpoint: Checkpoint) -> None:
    """Take signature and attestation away, before what they vouch for is changed."""
    checkpoint.meta(SIGNATURE).unlink(missing_ok=True)
    checkpoint.meta(ATTESTATION).unlink(missing_ok=True)
