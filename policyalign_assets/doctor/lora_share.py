"""Checks that LoRA can adapt the model, and how much of it.

PEFT's "all-linear" reaches linear layers only. The experts of a mixture are often plain tensors,
which it leaves out, and some architectures refuse layers only when the adapter is made.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from policyalign_assets.distillation.adapters import add_adapters
from policyalign_assets.doctor.record import Finding
from policyalign_assets.settings import DistillationSettings

LEAST_SHARE = 0.6  # dense models reach 1.0, mixtures with plain experts 0.1 to 0.2


def lora_check(model: Any, settings: DistillationSettings) -> Finding:
    """Wraps a copy of the model without memory for weights, and counts what is adapted."""
    if settings.tuning == "full":
        return Finding("LoRA", "not checked", "distillation.tuning='full' trains every weight")
    with torch.device("meta"):
        copy = type(model)(model.config)
    matrices = _matrix_weights(copy)
    try:
        adapted = add_adapters(copy, settings)
    except (ValueError, TypeError, NotImplementedError) as error:
        return Finding(
            "LoRA",
            "error",
            f"LoRA cannot be put on {model.config.model_type} models: {str(error).splitlines()[0]}",
            "set distillation.tuning='full', or use another model.",
        )
    layers: list[Any] = [m for m in adapted.modules() if isinstance(m, BaseTunerLayer)]
    reached = sum(_adapted_weights(layer) for layer in layers)
    share = reached / matrices if matrices else 0.0
    if share >= LEAST_SHARE:
        return Finding("LoRA", "ok", f"LoRA adapts {share:.0%} of the matrix weights")
    return Finding(
        "LoRA",
        "note",
        f"LoRA adapts only {share:.0%} of the matrix weights: the experts of this mixture stay as "
        "they are, so the model may learn the policy less well",
        "compare the report's figures with those of a dense model, or set "
        "distillation.tuning='full'.",
    )


def _adapted_weights(layer: Any) -> int:
    """Weights that one adapter layer reaches: of a linear layer, or of a mixture's experts."""
    parameter = layer.get_param() if hasattr(layer, "get_param") else layer.get_base_layer().weight
    return int(parameter.numel())


def _matrix_weights(model: Any) -> int:
    """Weights of matrices, without embeddings and the output head, which LoRA never adapts."""
    kept = {id(model.get_input_embeddings().weight)}
    head = model.get_output_embeddings()
    if head is not None:
        kept.add(id(head.weight))
    return sum(p.numel() for p in model.parameters() if p.ndim >= 2 and id(p) not in kept)
