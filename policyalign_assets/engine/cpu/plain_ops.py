"""The parts of a Llama-shaped layer as functions of packed tokens [M, ...], with written gradients.

They make fewer passes over memory than automatic differentiation would. Linear layers that read the
same input are one matrix product, a residual is added within it, and LoRA is folded into the weight
(`forward/folded.py` explains why that is sound). Gradients reach the activations and LoRA's A and
B, nothing else.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear as LoraLinear


class Part(NamedTuple):
    """A linear layer; `order_O` permutes its outputs."""

    layer: torch.nn.Module
    order_O: torch.Tensor | slice = slice(None)

    @property
    def base(self) -> Any:
        """The `torch.nn.Linear` itself, below a LoRA layer."""
        return self.layer.get_base_layer() if isinstance(self.layer, LoraLinear) else self.layer


class Adapter(NamedTuple):
    """A part's LoRA matrices.

    `outputs` are the part's columns among all parts; the rows of `b_OR` follow the part's order.
    """

    part: Part
    outputs: slice
    a_RI: torch.Tensor
    b_OR: torch.Tensor
    scaling: float


class Linear:
    """Linear layers that read the same input, side by side in one matrix.

    Their weights are copied once; `read` folds in the current weights of their adapters.
    """

    def __init__(self, *parts: Part):
        self._parts, ends = parts, list(itertools.accumulate(p.base.out_features for p in parts))
        self._outputs = [slice(end - p.base.out_features, end) for p, end in zip(parts, ends)]
        # Transposed, because a product with the few rows of a decoding step then takes half the
        # time.
        self._base_IO = torch.cat([p.base.weight.detach()[p.order_O] for p in parts]).T.contiguous()
        self._bias_O = (
            torch.cat([p.base.bias.detach()[p.order_O] for p in parts])
            if parts[0].base.bias is not None
            else None
        )
        self.weight_IO = self._base_IO
        self.adapters: list[Adapter] = []
        self._trained: list[torch.Tensor] = []  # A and B of each adapter, in turn

    @torch.no_grad()
    def read(self) -> None:
        active = [
            (p, o)
            for p, o in zip(self._parts, self._outputs)
            if isinstance(p.layer, LoraLinear) and not p.layer.disable_adapters
        ]
        if not active:
            self.weight_IO, self.adapters, self._trained = self._base_IO, [], []
            return
        if self.weight_IO is self._base_IO:
            self.weight_IO = self._base_IO.clone()
        self.adapters, self._trained = [], []
        for part, outputs in active:
            layer: Any = part.layer
            (name,) = layer.active_adapters
            a_RI, b_OR = layer.lora_A[name].weight, layer.lora_B[name].weight
            self._trained += [a_RI, b_OR]
            adapter = Adapter(
                part, outputs, a_RI.detach(), b_OR.detach()[part.order_O], layer.scaling[name]
            )
            torch.addmm(
                self._base_IO[:, outputs],
                adapter.a_RI.T,
                adapter.b_OR.T,
                alpha=adapter.scaling,
                out=self.weight_IO[:, outputs],
            )
            self.adapters.append(adapter)

    def __call__(self, x_MI: torch.Tensor, residual_MO: torch.Tensor | None = None) -> torch.Tensor:
        """x W + bias + residual: out_MO. Without gradients, `residual_MO` is overwritten."""
        if torch.is_grad_enabled():
            return _Linear.apply(x_MI, residual_MO, self, *self._trained)
        if residual_MO is None:
            return (
                x_MI @ self.weight_IO
                if self._bias_O is None
                else torch.addmm(self._bias_O, x_MI, self.weight_IO)
            )
        out_MO = residual_MO.addmm_(x_MI, self.weight_IO)
        return out_MO if self._bias_O is None else out_MO.add_(self._bias_O)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MI, residual_MO, linear: Linear, *_: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x_MI)
        ctx.linear, ctx.residual = linear, residual_MO is not None
        return linear(x_MI, residual_MO.clone() if ctx.residual else None)

    @staticmethod
    def backward(ctx: Any, *output_grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_MO,) = output_grads
        (x_MI,), linear = ctx.saved_tensors, ctx.linear
        grads: list[torch.Tensor] = []
        if linear.adapters:
            x_a_MR = x_MI @ torch.cat([a.a_RI for a in linear.adapters]).T
            # The gradients of all A matrices in one product: back through B, then against x.
            grad_x_a_MR = torch.cat(
                [(grad_MO[:, a.outputs] @ a.b_OR).mul_(a.scaling) for a in linear.adapters], -1
            )
            grad_a_RI = grad_x_a_MR.T @ x_MI
            at = 0
            for adapter in linear.adapters:
                ranks = slice(at, at + len(adapter.a_RI))
                at = ranks.stop
                grad_b_OR = torch.empty_like(adapter.b_OR)
                grad_b_OR[adapter.part.order_O] = (
                    (x_a_MR[:, ranks].T @ grad_MO[:, adapter.outputs]).mul_(adapter.scaling).T
                )
                grads += [grad_a_RI[ranks], grad_b_OR]
        grad_x_MI = grad_MO @ linear.weight_IO.T if ctx.needs_input_grad[0] else None
        return grad_x_MI, grad_MO if ctx.residual else None, None, *grads


class RmsNorm:
    """x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(self, weight_D: torch.Tensor, eps: float):
        # Computed as x / hypot(|x|, sqrt(D eps)) * (weight sqrt(D)), which needs fewer passes.
        self._floor, self._weight_D = (
            torch.tensor((len(weight_D) * eps) ** 0.5),
            weight_D.detach() * len(weight_D) ** 0.5,
        )

    def __call__(self, x_MD: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and x_MD.requires_grad:
            return _RmsNorm.apply(x_MD, self._weight_D, self._floor)
        return _normed(x_MD, self._weight_D, self._floor)[0]


def _normed(
    x_MD: torch.Tensor, weight_D: torch.Tensor, floor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    length_M1 = torch.linalg.vector_norm(x_MD, dim=-1, keepdim=True).hypot_(floor)
    return (x_MD / length_M1).mul_(weight_D), length_M1


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MD, weight_D, floor) -> torch.Tensor:
        out_MD, length_M1 = _normed(x_MD, weight_D, floor)
        ctx.save_for_backward(x_MD, weight_D, length_M1)
        return out_MD

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_MD,) = grads
        x_MD, weight_D, length_M1 = ctx.saved_tensors
        weighed_MD = grad_MD * weight_D
        share_M1 = torch.linalg.vecdot(weighed_MD, x_MD)[:, None].div_(length_M1.square())
        return weighed_MD.addcmul_(x_MD, share_M1, value=-1).div_(length_M1), None, None


def swiglu(gate_up_MJ: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, where gate and up are the two halves of J."""
    if torch.is_grad_enabled():
        return _SwiGlu.apply(gate_up_MJ)
    gate_MI, up_MI = gate_up_MJ.chunk(2, -1)
    return torch.nn.functional.silu(gate_MI).mul_(up_MI)


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_MJ: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate_up_MJ)
        return swiglu(gate_up_MJ)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        (grad_MI,) = grads
        gate_MI, up_MI = ctx.saved_tensors[0].chunk(2, -1)
        grad_MJ = torch.empty_like(ctx.saved_tensors[0])
        grad_gate_MI, grad_up_MI = grad_MJ.chunk(2, -1)
        activated_MI = torch.nn.functional.silu(gate_MI)
        torch.mul(grad_MI, activated_MI, out=grad_up_MI)
        torch.mul(grad_MI, up_MI, out=activated_MI)
        torch.ops.aten.silu_backward.grad_input(activated_MI, gate_MI, grad_input=grad_gate_MI)
        return grad_MJ


def pairs_first(heads: int, dim: int) -> torch.Tensor:
    """Orders a layer's outputs so that values rotated together are neighbours.

    Rotary positions rotate outputs i and i + D/2 of a head as a pair.
    """
    return torch.arange(heads * dim).view(heads, 2, dim // 2).transpose(1, 2).flatten()


def rotated_heads(
    qkv_MN: torch.Tensor, rotations_M1F: torch.Tensor, heads: int, groups: int
) -> tuple[torch.Tensor, ...]:
    """Splits into (queries_MHD, keys_MGD, values_MGD) and applies rotary positions, in place.

    Each pair of a query or key is multiplied by the complex number of its token's angle. There are
    F = D/2 pairs, in the order of `pairs_first`.
    """
    if torch.is_grad_enabled():
        return _RotatedHeads.apply(qkv_MN, rotations_M1F, heads, groups)
    qkv_MND = qkv_MN.unflatten(1, (heads + 2 * groups, -1))
    _pairs(qkv_MND[:, : heads + groups]).mul_(rotations_M1F)
    return qkv_MND.split((heads, groups, groups), 1)


def _pairs(x_MND: torch.Tensor) -> torch.Tensor:
    return torch.view_as_complex(x_MND.unflatten(-1, (-1, 2)))


class _RotatedHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv_MN, rotations_M1F, heads: int, groups: int
    ) -> tuple[torch.Tensor, ...]:
        ctx.save_for_backward(rotations_M1F)
        ctx.rotated = heads + groups
        return rotated_heads(qkv_MN.clone(), rotations_M1F, heads, groups)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_MND = torch.cat(grads, 1)
        _pairs(grad_MND[:, : ctx.rotated]).mul_(ctx.saved_tensors[0].conj())
        return grad_MND.flatten(1), None, None, None
