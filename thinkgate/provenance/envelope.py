"""DSSE envelopes around in-toto statements, and the Sigstore bundle model signing puts them in.

Owns the bytes: sealing, opening, and that a file has exactly one form, so that no byte of it can
change unnoticed. It does not know what a statement says.
https://github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from thinkgate.errors import CheckpointError
from thinkgate.provenance.keys import PrivateKey, PublicKey

__all__ = ["Statement", "open_bundle", "open_envelope", "seal"]

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
LIMIT = 64 * 2**20
"""No signature is larger; what claims to be is not read."""

Statement = Mapping[str, Any]


def seal(statement: Statement, key: PrivateKey) -> str:
    """The text of a DSSE envelope in which `key` signs `statement`."""
    from cryptography.hazmat.primitives.asymmetric import ec

    payload = json.dumps(statement, indent=2, ensure_ascii=False).encode()
    public = key.public
    signature = key.key.sign(_signed_bytes(payload), ec.ECDSA(_hash(public)))
    return _text(_envelope(payload, signature, public.hint)) + "\n"


def open_envelope(content: bytes, keys: Sequence[PublicKey]) -> tuple[Statement, PublicKey]:
    """The statement in an envelope of `seal` and the trusted key that signed it."""
    envelope = _json(content)
    payload, signature, hint = _parts(envelope)
    if content.decode() != _text(_envelope(payload, signature, hint)) + "\n":
        raise CheckpointError("it is not in the form thinkgate writes")
    return _verified(payload, signature, hint, keys)


def open_bundle(content: bytes, keys: Sequence[PublicKey]) -> tuple[Statement, PublicKey]:
    """The statement in a model-signing bundle and the trusted key that signed it."""
    bundle = _json(content)
    try:
        hint = str(bundle["verificationMaterial"]["publicKey"]["hint"])
        payload, signature, _ = _parts(bundle["dsseEnvelope"])
    except (KeyError, TypeError) as error:
        raise CheckpointError("it is not a bundle signed with a key") from error
    again: dict[str, Any] = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
        "dsseEnvelope": _envelope(payload, signature, ""),
    }
    if content.decode() != _text(again):
        raise CheckpointError("it is not in the form model signing writes")
    return _verified(payload, signature, hint, keys)


def _verified(
    payload: bytes, signature: bytes, hint: str, keys: Sequence[PublicKey]
) -> tuple[Statement, PublicKey]:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ec

    key = next((key for key in keys if key.hint == hint), None)
    if key is None:
        trusted = ", ".join(f"{key.name} ({key.hint[:12]})" for key in keys)
        raise CheckpointError(
            f"it was made by key {hint[:12]}, which is not trusted here; "
            + (f"trusted: {trusted}" if trusted else "no key is")
            + "; trust it with 'thinkgate keys trust FILE.pub'"
        )
    try:
        key.key.verify(signature, _signed_bytes(payload), ec.ECDSA(_hash(key)))
    except InvalidSignature as error:
        raise CheckpointError(f"key {key.name} did not sign this: forged or changed") from error
    statement = _json(payload)
    if statement.get("_type") != STATEMENT_TYPE:
        raise CheckpointError("it holds no in-toto statement")
    return statement, key


def _hash(key: PublicKey) -> Any:
    """By the size of the key, as model signing does."""
    from cryptography.hazmat.primitives import hashes

    by_size = {256: hashes.SHA256, 384: hashes.SHA384, 521: hashes.SHA512}
    return by_size[key.key.key_size]()


def _signed_bytes(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: type and text, each with its length."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _envelope(payload: bytes, signature: bytes, keyid: str) -> dict[str, Any]:
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": keyid}],
    }


def _parts(envelope: Any) -> tuple[bytes, bytes, str]:
    try:
        [signed] = envelope["signatures"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        return payload, base64.b64decode(signed["sig"], validate=True), str(signed["keyid"])
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise CheckpointError("it is not an envelope with one signature") from error


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _json(content: bytes) -> dict[str, Any]:
    if len(content) > LIMIT:
        raise CheckpointError(f"it is larger than {LIMIT >> 20} MiB")
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointError("it is not JSON") from error
    if not isinstance(value, dict):
        raise CheckpointError("it is not a JSON object")
    return cast("dict[str, Any]", value)
