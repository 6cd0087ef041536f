"""Gradient checkpointing: the student's layers are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from transformers.modeling_layers import GradientCheckpointingLayer

from policyalign_assets.engine.forward.packed_rows import packed_as_now


@contextmanager
def checkpointed(model, on: bool) -> Iterator[None]:
    """Inside, forward passes of `model` keep only the inputs of each layer; results stay the same.

    transformers checkpoints in training mode alone, and there drops key/value caches, so the mode is set on the layers
    themselves, not below them (no dropout), and only here: generation and the teacher's prefix never see it.
    """
    if not on:
        yield
        return
    backbone = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = [m for m in backbone.modules() if isinstance(m, GradientCheckpointingLayer)]
    # a layer that is computed again must attend to the rows of the first time
    backbone.gradient_checkpointing_enable(
        {"use_reentrant": False, "context_fn": lambda: (nullcontext(), packed_as_now(model))}
    )
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        backbone.gradient_checkpointing_disable()
        for layer in layers:
            layer.training = False
