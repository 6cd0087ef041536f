"""Loads a causal language model and its tokenizer from the package, a folder or the hub.

Only safetensors weights are read, and no code that comes with a model is ever run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from policyalign_assets.engine.chat import set_arguments
from policyalign_assets.engine.checks import check_folder, check_loadable, check_weights
from policyalign_assets.engine.cpu.memory import keep_freed_memory
from policyalign_assets.engine.derived_models import sources_of
from policyalign_assets.engine.gguf import materialized
from policyalign_assets.engine.responses import end_ids
from policyalign_assets.engine.revision import local_revision
from policyalign_assets.engine.shipped_models import BUNDLED_WEIGHTS
from policyalign_assets.settings import BUNDLED, ModelSettings

disable_progress_bar()  # it would print into the run's log; stages report their own progress


class ModelNotFound(ValueError):
    """The model cannot be loaded. The message names the model and the fix."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory.

    `model` may be wrapped by PEFT. `revision` is the hub commit, or the hash of a local folder.
    """

    model: PreTrainedModel | PeftModel
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
        """The most tokens that a prompt and its response may have together."""
        return _context(self.model.config, self.tokenizer)


def model_path(settings: ModelSettings) -> str:
    """A folder or a hub id. A GGUF file is dequantized once; ValueError if that fails."""
    if settings.id == BUNDLED:
        return str(BUNDLED_WEIGHTS)
    sources = sources_of(settings.id)
    return str(materialized(sources)) if sources else settings.id


@dataclass(frozen=True)
class ModelDescription:
    """Everything about a model except its weights.

    `context` is the most tokens that a prompt and its response may have together.
    """

    tokenizer: PreTrainedTokenizerBase
    end_ids: tuple[int, ...]
    context: int
    revision: str
    config: PretrainedConfig


def load_model(settings: ModelSettings) -> LoadedModel:
    """Loads the configured model onto its device, in evaluation mode.

    Raises ModelNotFound for a missing model, a repository without safetensors, or a GPU setting on
    a machine without a GPU.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ModelNotFound(
            "model.device='cuda' but PyTorch sees no GPU here. Fix: set model.device to 'auto' or "
            "'cpu', or run on a machine with a GPU."
        )
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        keep_freed_memory()
    with _errors_name_the_model(settings):
        check_folder(settings.id)
        tokenizer = _tokenizer(settings)
        check_loadable(AutoConfig.from_pretrained(model_path(settings), **_source(settings)))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model_path(settings),
            use_safetensors=True,
            dtype=getattr(torch, settings.dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with the names
            **_source(settings),
        )
        model, report = loaded
        check_weights(report)
    model = model.to(device).eval()
    return LoadedModel(model, tokenizer, settings.id, _revision(settings, model.config))


def describe(settings: ModelSettings) -> ModelDescription:
    """Reads a model's configuration and tokenizer, but no weights.

    Raises ModelNotFound as `load_model` does.
    """
    with _errors_name_the_model(settings):
        check_folder(settings.id)
        tokenizer = _tokenizer(settings)
        config = AutoConfig.from_pretrained(model_path(settings), **_source(settings))
        try:
            generation = GenerationConfig.from_pretrained(model_path(settings), **_source(settings))
        except OSError:  # the model has no generation_config.json
            generation = GenerationConfig.from_model_config(config)
    return ModelDescription(
        tokenizer,
        end_ids(generation, tokenizer),
        _context(config, tokenizer),
        _revision(settings, config),
        config,
    )


def without_weights(config: PretrainedConfig) -> PreTrainedModel:
    """A model of this shape that takes no memory: its weights have no values."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def _context(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    text_config = config.get_text_config()
    return getattr(text_config, "max_position_embeddings", None) or tokenizer.model_max_length


def _source(settings: ModelSettings) -> dict[str, Any]:
    return {
        "revision": settings.revision,
        "trust_remote_code": False,
        "local_files_only": Path(model_path(settings)).is_dir(),
    }


def _tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path(settings), **_source(settings))
    except ValueError as error:
        if "tiktoken" in str(error) or "sentencepiece" in str(error).lower():
            raise ValueError(
                "its tokenizer comes as tokenizer.model alone, which cannot be read here. Save it "
                "as tokenizer.json with AutoTokenizer(...).save_pretrained, or pip install "
                "sentencepiece protobuf."
            ) from error
        raise
    # From a folder without tokenizer files, transformers makes a tokenizer that knows no token.
    if not tokenizer("a", add_special_tokens=False).input_ids:
        raise ValueError("its tokenizer has no vocabulary.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    set_arguments(tokenizer, settings.template_arguments)
    return tokenizer


def _revision(settings: ModelSettings, config: PretrainedConfig) -> str:
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
def _errors_name_the_model(settings: ModelSettings) -> Iterator[None]:
    try:
        yield
    # SafetensorError: a damaged file, or a Git LFS pointer instead of the weights.
    # ImportError: a package that this kind of file needs is missing.
    except (OSError, ImportError, ValueError, SafetensorError) as error:
        if isinstance(error, ModelNotFound):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelNotFound(
            f"model.id={settings.id!r} cannot be loaded: {reason.rstrip('.')}. Fix: give a folder "
            "that holds config.json, a tokenizer and *.safetensors, or a hub id that this machine "
            "can reach."
        ) from error
