"""The identity of a local model folder (imports no torch)."""

from __future__ import annotations

from pathlib import Path

from policyalign_assets.files import sha256_files

_DECIDING = (
    "*.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "chat_template*",
)


def local_revision(folder: Path) -> str:
    """Hash of the files that decide how a model behaves; its card and licence may change."""
    return sha256_files(folder, _DECIDING)[:16]
