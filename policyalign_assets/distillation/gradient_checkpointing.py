"""Gradient checkpointing: the backward pass recomputes the student's layers to save memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from transformers.modeling_layers import GradientCheckpointingLayer

from policyalign_assets.engine.forward.modules import backbone_of
from policyalign_assets.engine.forward.packed_rows import recapture_packed


@contextmanager
def checkpointed(model: Any, on: bool) -> Iterator[None]:
    """While active, forward passes of `model` keep only each layer's inputs; results do not change.

    transformers checkpoints only in training mode, and there drops key/value caches. Training mode
    is therefore set on the layers alone, not on the modules below them (no dropout), and only
    inside this context: generation and the teacher's prefix never see it.
    """
    if not on:
        yield
        return
    backbone = backbone_of(model)
    layers = [m for m in backbone.modules() if isinstance(m, GradientCheckpointingLayer)]
    try:
        # A recomputed layer must attend to the same packed rows as the first time.
        backbone.gradient_checkpointing_enable(
            {"use_reentrant": False, "context_fn": lambda: (nullcontext(), recapture_packed(model))}
        )
        for layer in layers:
            layer.training = True
        yield
    finally:
        backbone.gradient_checkpointing_disable()
        for layer in layers:
            layer.training = False
