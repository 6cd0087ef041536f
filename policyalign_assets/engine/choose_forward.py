"""Chooses how a model is computed: by the fast CPU path where it applies, else by its modules."""

from __future__ import annotations

import torch

from policyalign_assets.engine.cpu.plain_llama import PlainLlama, is_plain
from policyalign_assets.engine.forward.modules import ModelForward
from policyalign_assets.engine.forward.protocol import Forward


def forward_of(model: torch.nn.Module, plain: bool = True) -> Forward:
    """The fastest `Forward` that computes exactly what `model` does.

    With `plain=False` it uses the model's own modules, which gradient checkpointing needs.
    """
    return PlainLlama(model) if plain and is_plain(model) else ModelForward(model)
