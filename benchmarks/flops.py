"""Counts the floating-point operations of an update, and measures those of a matrix product."""

from __future__ import annotations

import argparse

import losses
import torch
from transformers import PretrainedConfig


def update_flops(config: PretrainedConfig, a: argparse.Namespace) -> float:
    """Operations of one LoRA update, with a frozen teacher whose policy prefix is cached.

    Counted are the products with the weights and those of attention. A token costs 2 operations a
    weight in the forward pass and 2 in the backward pass: only the gradient of the input is needed,
    since the base weights are frozen. The adapters, norms and softmaxes are not counted.
    """
    head_dim = config.hidden_size // config.num_attention_heads
    # Columns of the q, o, k and v projections.
    attention = 2 * config.hidden_size + 2 * config.num_key_value_heads * head_dim
    layers = (
        config.num_hidden_layers * config.hidden_size * (attention + 3 * config.intermediate_size)
    )
    head = config.vocab_size * config.hidden_size
    tokens, answered, seen = (
        a.batch * (a.prompt + a.response),
        a.batch * a.response,
        (a.prompt + a.response) / 2,
    )
    pair = 4 * config.num_hidden_layers * config.hidden_size  # query times key, weight times value
    student = 2 * (tokens * (2 * layers + pair * seen) + 2 * answered * head)
    teacher = tokens * (2 * layers + pair * (seen + a.policy)) + 2 * answered * head
    return student + teacher


def matmul_rate(dtype: torch.dtype, device: str) -> float:
    """Operations per second of a square matrix product: the median of ten."""
    n = 8_192 if device == "cuda" else 2_048
    x, y = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / losses.interleaved({"product": lambda: x @ y}, 10, device)["product"]
