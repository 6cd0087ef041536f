"""The identity of a local model folder (imports no torch)."""

from __future__ import annotations

from pathlib import Path

from policyalign_assets.files import sha256_files

# Files that describe a model without changing what it computes. Every other file counts, because
# libraries read some files (an adapter, a vocabulary) merely because they exist.
_DESCRIPTIONS = ("README.md", "LICENSE", "LICENSE.txt", "NOTICE", "card.json", ".gitattributes")


def local_revision(folder: Path) -> str:
    """Hash of all files directly in `folder`, except its model card and licence."""
    return sha256_files(folder, but=_DESCRIPTIONS)[:16]
