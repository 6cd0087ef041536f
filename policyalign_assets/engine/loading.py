"""Loads a causal language model and its tokenizer from the tree, a folder, or the hub. Safetensors only, no remote code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from policyalign_assets.bundled_model import WEIGHTS_DIR
from policyalign_assets.engine.revision import local_revision
from policyalign_assets.settings import BUNDLED, ModelSettings

disable_progress_bar()  # it prints into the run's log; stages report their own progress


class ModelNotFound(ValueError):
    """The model cannot be loaded. The message names it and the mend."""


@dataclass(frozen=True)
class LoadedModel:
    """`revision`: the hub commit, or the hash of a local folder's weights, configuration and tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    model_id: str
    revision: str

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Every id that ends a response: the engine and the trainer must agree on them (method.md: length explosion)."""
        ids = self.model.generation_config.eos_token_id
        ids = ids if isinstance(ids, list) else [ids]
        return tuple(dict.fromkeys(i for i in (*ids, self.tokenizer.eos_token_id) if i is not None))

    @property
    def context(self) -> int:
        return getattr(self.model.config, "max_position_embeddings", None) or self.tokenizer.model_max_length


def model_path(settings: ModelSettings) -> str:
    return str(WEIGHTS_DIR) if settings.id == BUNDLED else settings.id


def load_model(settings: ModelSettings) -> LoadedModel:
    """Raises ModelNotFound for a missing model, a repository without safetensors, or a GPU setting on a machine without one."""
    path = model_path(settings)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ModelNotFound("model.device='cuda' but PyTorch sees no GPU here. Mend: set model.device to 'auto' or 'cpu', or run on a GPU machine.")
    device = settings.device if settings.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    common = {"revision": settings.revision, "trust_remote_code": False, "local_files_only": Path(path).is_dir()}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **common)
        if not tokenizer("a", add_special_tokens=False).input_ids:  # what transformers makes of a folder without tokenizer files
            raise ValueError("its tokenizer has no vocabulary.")
        model = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, dtype=getattr(torch, settings.dtype), **common)
    except (OSError, ValueError, SafetensorError) as error:  # SafetensorError: a damaged file, or a Git LFS pointer
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelNotFound(f"model.id={settings.id!r} cannot be loaded: {reason} Mend: give a folder that holds config.json, a tokenizer and "
                            "*.safetensors, or a hub id that this machine can reach.") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    revision = settings.revision or getattr(model.config, "_commit_hash", None) or (local_revision(Path(path)) if Path(path).is_dir() else "unpinned")
    return LoadedModel(model.to(device).eval(), tokenizer, settings.id, revision)
