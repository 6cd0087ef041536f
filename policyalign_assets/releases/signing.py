"""Signs a bundle, and checks the signature, with OpenSSF model-signing and keys of one's own.

model-signing hashes every file of the folder into an in-toto statement and signs that. It needs no
network with a key of one's own.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from policyalign_assets.releases.errors import ReleaseError
from policyalign_assets.releases.manifest import SIGNATURE


def sign_bundle(folder: Path, private_key: Path) -> None:
    """Writes `bundle.sig` into the bundle. Raises ReleaseError if model-signing is missing."""
    library, folder = _library(), folder.absolute()
    config = library.signing.Config().use_elliptic_key_signer(private_key=private_key)
    config.set_hashing_config(_hashing(library, folder)).sign(folder, folder / SIGNATURE)


def signature_fault(folder: Path, public_key: Path) -> str | None:
    """Why the signature does not hold, or None if it does. Raises ReleaseError as `sign_bundle`."""
    library, folder = _library(), folder.absolute()
    if not (folder / SIGNATURE).is_file():
        return f"{SIGNATURE} is missing"
    config = library.verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    try:
        config.set_hashing_config(_hashing(library, folder)).verify(folder, folder / SIGNATURE)
    except (
        Exception
    ) as error:  # the library raises several kinds for a signature that does not hold
        reason = str(error).split(":")[0][:200] or type(error).__name__
        return f"the signature does not hold for {public_key.name} ({reason})"
    return None


def _hashing(library: ModuleType, folder: Path) -> Any:
    # the library takes a relative path to be below the folder, so it would not leave out the file
    config = library.hashing.Config()
    return config.set_ignored_paths(paths=[folder / SIGNATURE], ignore_git_paths=False)


def _library() -> ModuleType:
    try:
        import model_signing
        import model_signing.hashing
        import model_signing.signing
        import model_signing.verifying
    except ImportError as error:
        raise ReleaseError(
            f"Signing needs the extra `release` ({error}). "
            "Fix: pip install 'policyalign-assets[release]'."
        ) from None
    return model_signing
