"""Signing keys: elliptic-curve key pairs in PEM files, made and used without a network.

The private key signs bundles (through OpenSSF model-signing) and ledger entries. Keep it off the
machine that serves models; servers need the public key alone. A key in a KMS or a hardware token is
used through model-signing's own PKCS#11 support.
"""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from policyalign_assets.releases.errors import ReleaseError

_SIGNATURE = ec.ECDSA(hashes.SHA256())


def create_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """Writes `<name>.key` (private, mode 0600) and `<name>.pub`. Returns both paths.

    Raises ReleaseError if either file exists: a key is never overwritten.
    """
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    for path in (private, public):
        if path.exists():
            raise ReleaseError(f"{path} exists. Fix: choose another name, or move the old key.")
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    descriptor = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
    public.write_bytes(_pem(key.public_key()))
    return private, public


def load_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Raises ReleaseError if the file is missing or holds no private elliptic-curve key."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(path, "private", error) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _unreadable(path, "private", "it is another kind of key")
    return key


def load_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Raises ReleaseError if the file is missing or holds no public elliptic-curve key."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable(path, "public", error) from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise _unreadable(path, "public", "it is another kind of key")
    return key


def key_id(key: ec.EllipticCurvePublicKey) -> str:
    """The SHA-256 of the public key's PEM form: the name by which entries refer to a key."""
    return hashlib.sha256(_pem(key)).hexdigest()


def sign_text(key: ec.EllipticCurvePrivateKey, text: str) -> str:
    """The signature of `text`, in base64."""
    return base64.b64encode(key.sign(text.encode(), _SIGNATURE)).decode()


def is_signed_by(key: ec.EllipticCurvePublicKey, text: str, signature: str) -> bool:
    """Whether `signature` (base64) is that of `text` by this key."""
    try:
        key.verify(base64.b64decode(signature, validate=True), text.encode(), _SIGNATURE)
    except (InvalidSignature, ValueError):
        return False
    return True


def _pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _unreadable(path: Path, kind: str, why: object) -> ReleaseError:
    return ReleaseError(
        f"{path} cannot be read as a {kind} key: {why}. "
        "Fix: make a key pair with `policyalign keys new`."
    )
