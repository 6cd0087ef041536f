"""Loads a causal language model and its tokenizer from the tree, a folder, or the hub. Safetensors only, no remote code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from policyalign_assets.engine.cpu.memory import keep_freed_memory
from policyalign_assets.engine.derived_models import sources_of
from policyalign_assets.engine.gguf import materialized
from policyalign_assets.engine.responses import end_ids
from policyalign_assets.engine.revision import local_revision
from policyalign_assets.engine.shipped_models import BUNDLED_WEIGHTS
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
        return end_ids(self.model.generation_config, self.tokenizer)

    @property
    def context(self) -> int:
        return (
            getattr(self.model.config, "max_position_embeddings", None)
            or self.tokenizer.model_max_length
        )


def model_path(settings: ModelSettings) -> str:
    """A folder or a hub id. A GGUF file is dequantized first, once (ValueError where it cannot be)."""
    if settings.id == BUNDLED:
        return str(BUNDLED_WEIGHTS)
    sources = sources_of(settings.id)
    return str(materialized(sources)) if sources else settings.id


@dataclass(frozen=True)
class Described:
    """All of a model but its weights. `context`: most tokens of a prompt and its response, by the model's configuration."""

    tokenizer: PreTrainedTokenizerBase
    end_ids: tuple[int, ...]
    context: int
    revision: str


def load_model(settings: ModelSettings) -> LoadedModel:
    """Raises ModelNotFound for a missing model, a repository without safetensors, or a GPU setting on a machine without one."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ModelNotFound(
            "model.device='cuda' but PyTorch sees no GPU here. Mend: set model.device to 'auto' or 'cpu', or run on a GPU machine."
        )
    device = (
        settings.device
        if settings.device != "auto"
        else ("cuda" if torch.cuda.is_available() else "cpu")
    )
    if device == "cpu":
        keep_freed_memory()
    with _named(settings):
        tokenizer = _tokenizer(settings)
        model = AutoModelForCausalLM.from_pretrained(
            model_path(settings),
            use_safetensors=True,
            dtype=getattr(torch, settings.dtype),
            **_from(settings),
        )
    return LoadedModel(
        model.to(device).eval(), tokenizer, settings.id, _revision(settings, model.config)
    )


def describe(settings: ModelSettings) -> Described:
    """Raises ModelNotFound as `load_model` does, but looks at no weights."""
    with _named(settings):
        tokenizer = _tokenizer(settings)
        config = AutoConfig.from_pretrained(model_path(settings), **_from(settings))
        try:
            generation = GenerationConfig.from_pretrained(model_path(settings), **_from(settings))
        except OSError:  # a model without that file
            generation = GenerationConfig.from_model_config(config)
    context = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    return Described(
        tokenizer, end_ids(generation, tokenizer), context, _revision(settings, config)
    )


def _from(settings: ModelSettings) -> dict:
    return {
        "revision": settings.revision,
        "trust_remote_code": False,
        "local_files_only": Path(model_path(settings)).is_dir(),
    }


def _tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(model_path(settings), **_from(settings))
    if not tokenizer(
        "a", add_special_tokens=False
    ).input_ids:  # what transformers makes of a folder without tokenizer files
        raise ValueError("its tokenizer has no vocabulary.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _revision(settings: ModelSettings, config) -> str:
    sources = sources_of(settings.id)
    if sources:
        return sources.revision
    folder = Path(model_path(settings))
    return (
        settings.revision
        or getattr(config, "_commit_hash", None)
        or (local_revision(folder) if folder.is_dir() else "unpinned")
    )


@contextmanager
def _named(settings: ModelSettings) -> Iterator[None]:
    try:
        yield
    except (
        OSError,
        ImportError,
        ValueError,
        SafetensorError,
    ) as error:  # SafetensorError: a damaged file, or a Git LFS pointer
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelNotFound(
            f"model.id={settings.id!r} cannot be loaded: {reason} Mend: give a folder that holds config.json, a tokenizer and "
            "*.safetensors, or a hub id that this machine can reach."
        ) from error
