"""A LoRA adapter folded into copies of the weights: one matrix product a layer instead of three.

Decoding consists of many small products, so on a CPU folding halves its time. In training it takes
the adapter out of the forward pass, and the backward pass gets the gradients of A and B from the
same products (`benchmarks/speed.py`). Only float32 weights are folded: bfloat16 would round away
an adapter that has moved little, and rollouts would come from the base model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch.distributed.tensor import DTensor


class FoldedLinear(torch.nn.Module):
    """Computes what a LoRA layer with one active adapter does.

    Gradients reach the adapter's own A and B, never the base weight.
    """

    def __init__(self, layer: Linear):
        super().__init__()
        base: Any = layer.get_base_layer()
        (name,) = layer.active_adapters
        lora_a: Any = layer.lora_A[name]
        lora_b: Any = layer.lora_B[name]
        with torch.no_grad():
            self.weight_OI: torch.Tensor = base.weight + layer.get_delta_weight(name)
        self.bias: torch.Tensor | None = base.bias
        self.scaling: float = layer.scaling[name]
        self.a_RI: torch.Tensor = lora_a.weight
        self.b_OR: torch.Tensor = lora_b.weight
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return torch.nn.functional.linear(x, self.weight_OI, self.bias)
        return _Folded.apply(x, self.weight_OI, self.bias, self.a_RI, self.b_OR, self.scaling)


class _Folded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, weight_OI, bias, a_RI, b_OR, scaling: float) -> torch.Tensor:
        ctx.save_for_backward(x, weight_OI, a_RI, b_OR)
        ctx.scaling = scaling
        return torch.nn.functional.linear(x, weight_OI, bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        x, weight_OI, a_RI, b_OR = ctx.saved_tensors
        x_MI, grad_MO = x.flatten(0, -2), grad.flatten(0, -2)
        grad_x = grad @ weight_OI if ctx.needs_input_grad[0] else None
        grad_a_RI = (grad_MO @ b_OR).mul_(ctx.scaling).T @ x_MI
        grad_b_OR = grad_MO.T @ (x_MI @ a_RI.T).mul_(ctx.scaling)
        return grad_x, None, None, grad_a_RI, grad_b_OR, None


Folded = dict[str, FoldedLinear]


def fold(model: torch.nn.Module) -> Folded:
    """The adapted layers of `model` by name, folded with their current adapter weights.

    Empty without LoRA, in half precision, with sharded weights, or with the adapter switched off.
    Costs a copy of the adapted weights for as long as the result is kept.
    """
    return {
        name: FoldedLinear(module)
        for name, module in model.named_modules()
        if isinstance(module, Linear) and _can_fold(module)
    }


@contextmanager
def using(model: torch.nn.Module, folded: Folded) -> Iterator[None]:
    """While active, `model` computes with the `folded` layers: the same result up to rounding.

    Afterwards its own layers are put back, unchanged.
    """
    before = {name: model.get_submodule(name) for name in folded}
    try:
        for name, layer in folded.items():
            model.set_submodule(name, layer)
        yield
    finally:
        for name, own_layer in before.items():
            model.set_submodule(name, own_layer)


def _can_fold(layer: Linear) -> bool:
    base = layer.get_base_layer()
    return (
        type(base) is torch.nn.Linear
        and base.weight.dtype == torch.float32
        and not isinstance(base.weight, DTensor)
        and not layer.disable_adapters
        and not layer.merged
        and not layer.lora_variant
        and len(layer.active_adapters) == 1
        and layer.active_adapters[0] in layer.lora_A
    )
