"""Key pairs that sign checkpoints, and the public keys whose signatures are believed.

Two folders, for they belong on different machines: whoever gates holds a private key, whoever
serves holds only public keys. Knows nothing of checkpoints or of what is signed.

    $THINKGATE_KEYS     default ~/.config/thinkgate/keys      NAME.key (mode 0600) and NAME.pub
    $THINKGATE_TRUSTED  default ~/.config/thinkgate/trusted   NAME.pub

A registry may have `keys/` and `trusted/` of its own (`registry` below is its folder). They count
only where this machine has none: whoever can write a registry must not extend a machine's trust.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thinkgate.errors import ConfigError

if TYPE_CHECKING:  # imported where it is used: `thinkgate --help` needs none of it
    from cryptography.hazmat.primitives.asymmetric import ec

__all__ = [
    "DEFAULT_KEY",
    "PrivateKey",
    "PublicKey",
    "keys_folder",
    "new_key",
    "read_private",
    "read_public",
    "signing_key",
    "trust",
    "trusted_folder",
    "trusted_keys",
]

KEYS = "THINKGATE_KEYS"
TRUSTED = "THINKGATE_TRUSTED"
DEFAULT_KEY = "default"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
CURVES = ("secp256r1", "secp384r1", "secp521r1")
"""The curves OpenSSF model signing takes."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key whose signatures can be checked."""

    name: str
    hint: str
    """SHA-256 of its PEM text, as model signing records it beside a signature."""
    key: "ec.EllipticCurvePublicKey"


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A key that signs, and the file it lies in."""

    path: Path
    key: "ec.EllipticCurvePrivateKey"

    @property
    def public(self) -> PublicKey:
        """The public half."""
        return _public(self.path.stem, self.key.public_key())


def keys_folder() -> Path | None:
    """Where key pairs lie; None when $THINKGATE_KEYS is set to nothing."""
    return _folder(KEYS, "keys")


def trusted_folder() -> Path | None:
    """Where trusted public keys lie; None when $THINKGATE_TRUSTED is set to nothing."""
    return _folder(TRUSTED, "trusted")


def new_key(name: str = DEFAULT_KEY, folder: Path | None = None) -> tuple[Path, Path]:
    """Make a P-256 key pair: the paths of the private and the public half. Replaces nothing."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = folder or _require(keys_folder(), KEYS)
    _check_name(name)
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    for path in (private, public):
        if path.exists() or path.is_symlink():
            raise ConfigError(
                f"{path} exists and is not replaced: what it signed could not be verified any "
                "more; choose another --name, or move it away"
            )
    key = ec.generate_private_key(ec.SECP256R1())
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _create(private, secret, 0o600)
    _create(public, _pem(key.public_key()), 0o644)
    return private, public


def signing_key(given: str | None = None, registry: Path | None = None) -> PrivateKey | None:
    """The private key `given` by path or name, else `default`; None when there is no such default.

    What was asked for and is not there is an error: signing nothing would not be noticed.
    """
    name = DEFAULT_KEY if given is None else given
    folders = (keys_folder(), registry / "keys" if registry else None)
    named = [folder / f"{name}.key" for folder in folders if folder and NAME.fullmatch(name)]
    found = next((path for path in named if path.exists()), None)
    if given is None:
        return read_private(found) if found else None
    return read_private(Path(given) if Path(given).exists() or not named else found or named[0])


def trust(file: Path, name: str | None = None, folder: Path | None = None) -> Path:
    """Believe what the key in `file` signs from now on; the copy in `folder`, by default this
    machine's."""
    key = read_public(file)
    folder = folder or _require(trusted_folder(), TRUSTED)
    _check_name(name or file.stem)
    target = folder / f"{name or file.stem}.pub"
    if target.exists():
        if read_public(target).hint == key.hint:
            return target
        raise ConfigError(f"{target} is another key; choose another --name, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    _create(target, _pem(key.key), 0o644)
    return target


def trusted_keys(registry: Path | None = None) -> tuple[PublicKey, ...]:
    """The keys this machine trusts, or where it trusts none, those its registry does.

    ConfigError when $THINKGATE_TRUSTED names a place without keys: a typing mistake must not end
    in trusting somebody else.
    """
    folder = trusted_folder()
    files = sorted(folder.glob("*.pub")) if folder is not None else []
    if folder is not None and not files and os.environ.get(TRUSTED):
        raise ConfigError(
            f"{TRUSTED} is {folder}, which has no public key (NAME.pub), so nobody is trusted; "
            "mend it, or add one with 'thinkgate keys trust FILE.pub'"
        )
    if not files and registry is not None:
        files = sorted((registry / "trusted").glob("*.pub"))
    return tuple(read_public(file) for file in files)


def read_private(path: Path) -> PrivateKey:
    """The private key in a PEM file that nobody else can read."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    content = _content(path, "private key; make one with 'thinkgate keys new'")
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{path} can be read by others; run: chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(content, None)
    except TypeError as error:
        raise ConfigError(f"{path} is encrypted; keys with a password are not supported") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is no private key in PEM form") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        raise ConfigError(f"{path}: use an elliptic-curve key ('thinkgate keys new' makes one)")
    return PrivateKey(path, key)


def read_public(path: Path) -> PublicKey:
    """The public key in a PEM file."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    content = _content(path, "public key")
    if b"PRIVATE KEY" in content:
        raise ConfigError(f"{path} is a private key; name the .pub beside it")
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is no public key in PEM form") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise ConfigError(f"{path}: use an elliptic-curve key ('thinkgate keys new' makes one)")
    return _public(path.stem, key)


def _public(name: str, key: "ec.EllipticCurvePublicKey") -> PublicKey:
    return PublicKey(name, hashlib.sha256(_pem(key)).hexdigest(), key)


def _pem(key: "ec.EllipticCurvePublicKey") -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _folder(variable: str, name: str) -> Path | None:
    chosen = os.environ.get(variable)
    if chosen is not None:
        return Path(chosen) if chosen else None
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "thinkgate" / name


def _require(folder: Path | None, variable: str) -> Path:
    if folder is None:
        raise ConfigError(f"{variable} is set to nothing; unset it, or set it to a folder")
    return folder


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise ConfigError(f"key '{name}': use letters, digits, '.', '_' and '-', 64 at most")


def _content(path: Path, what: str) -> bytes:
    if not path.is_file():
        raise ConfigError(f"{path}: no such {what}")
    return path.read_bytes()


def _create(path: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
