"""While a model generates, its LoRA adapter is folded into copies of the weights: one matrix product a layer instead of three.

Decoding is many small products, so on a CPU this more than halves its time (`benchmarks/speed.py`). In float32 alone: bfloat16
would round away an adapter that has moved little, and the rollouts would be the base model's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.lora import Linear


@contextmanager
def merged(model) -> Iterator[None]:
    """Inside, `model` computes what it computes outside, up to rounding, without adapters. The weights themselves stay untouched.

    Costs a copy of the adapted weights. Does nothing to a model without LoRA, in half precision, or with its adapter off.
    """
    wrapped = [(name, module) for name, module in model.named_modules() if isinstance(module, Linear) and _can_merge(module)]
    try:
        for name, module in wrapped:
            _put(model, name, _folded(module))
        yield
    finally:
        for name, module in wrapped:
            _put(model, name, module)


def _can_merge(module: Linear) -> bool:
    base = module.get_base_layer()
    return (type(base) is torch.nn.Linear and base.weight.dtype == torch.float32 and not module.disable_adapters and not module.merged
            and not module.lora_variant)


def _folded(module: Linear) -> torch.nn.Linear:
    base = module.get_base_layer()
    linear = torch.nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
    with torch.no_grad():
        weight = base.weight + sum(module.get_delta_weight(a) for a in module.active_adapters if a in module.lora_A)
    linear.weight, linear.bias = torch.nn.Parameter(weight, requires_grad=False), base.bias
    return linear.eval()


def _put(model, name: str, module: torch.nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
