"""Turns a GGUF file into a folder of safetensors, tokenizer and configuration.

transformers loads such a folder in a second. Dequantizing takes seconds to a minute, and
`save_pretrained` refuses a model that was quantized. So it is done once, into a cache folder named
by the content of the sources. If the sources name an adapter, it is merged into the weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from policyalign_assets.engine.derived_models import Sources, cache_folder
from policyalign_assets.files import new_directory

_PREFIX = "base_model.model."


def materialized(sources: Sources) -> Path:
    """The folder of the ready model, made on the first call.

    A killed run leaves nothing that a later one would take for complete. Raises ImportError without
    the package `gguf`, and ValueError for a file or adapter that does not fit.
    """
    folder = cache_folder() / f"{sources.gguf.stem}-{sources.revision}"
    if folder.is_dir():
        return folder
    with new_directory(folder) as aside:
        _write(sources, aside)
    return folder


def _write(sources: Sources, folder: Path) -> None:
    place: dict[str, Any] = {
        "pretrained_model_name_or_path": str(sources.gguf.parent),
        "local_files_only": True,
    }
    quantized = AutoModelForCausalLM.from_pretrained(
        **place, gguf_file=sources.gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    plain = _without_quantization(quantized)
    if sources.adapter:
        merge_adapter(plain, sources.adapter)
    plain.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(**place, gguf_file=sources.gguf.name)
    if not tokenizer.chat_template:
        raise ValueError(
            f"{sources.gguf} holds no chat template, so it is no chat model. Fix: use an instruct "
            "model."
        )
    tokenizer.save_pretrained(folder)


def _without_quantization(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model without a quantization setting; only such a one can be saved."""
    config = type(model.config).from_dict(
        {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    )
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return plain


def merge_adapter(model: PreTrainedModel, adapter: Path) -> None:
    """Adds scale * B A of each LoRA pair to its weight, in place.

    Raises ValueError for an adapter that is not plain LoRA, or that does not fit the model.
    """
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if settings.get("peft_type") != "LORA" or settings.get("use_dora"):
        raise ValueError(f"{adapter} is no plain LoRA adapter. Fix: train one with PEFT's LoRA.")
    scale = settings["lora_alpha"] / settings["r"]
    tensors = load_file(adapter / "adapter_model.safetensors")
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name in sorted(n for n in tensors if n.endswith(".lora_A.weight")):
            target = name.removeprefix(_PREFIX).removesuffix(".lora_A.weight") + ".weight"
            low_RI = tensors[name].float()
            high_OR = tensors[name.replace(".lora_A.", ".lora_B.")].float()
            weight_OI = weights.get(target)
            if weight_OI is None or weight_OI.shape != (high_OR.shape[0], low_RI.shape[1]):
                raise ValueError(
                    f"{adapter} does not fit the model at {target}. Fix: use the adapter's own "
                    "base model."
                )
            weight_OI.add_(scale * high_OR @ low_RI)
