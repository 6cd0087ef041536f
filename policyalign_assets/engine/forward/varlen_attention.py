"""Attention of packed rows by PyTorch's variable-length flash kernels, on GPUs in half precision.

It needs no padding and keeps no scores in memory. The kernels are verified before use: on each
device they compute a small example with gradients, which is compared with ordinary attention.
Where they are missing, fail or differ, rows are padded for attention, and the log says so once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn.attention.varlen import AuxRequest, varlen_attn

SERVED = {"cuda": (torch.float16, torch.bfloat16)}
TOLERANCE = 0.02  # relative to the largest value: a few roundings of bfloat16
CAUSAL = (-1, 0)  # attend to any earlier token, to no later one

KeyValues = tuple[torch.Tensor, torch.Tensor]  # keys_HPD, values_HPD


def varlen_attention(
    q_MHD: torch.Tensor,
    k_MGD: torch.Tensor,
    v_MGD: torch.Tensor,
    bounds_b: torch.Tensor,
    longest: int,
    scaling: float,
    prefix: KeyValues | None = None,
) -> torch.Tensor:
    """Each token attends to the prefix, to earlier tokens of its row and to itself: out_MHD.

    `bounds_b` (int32) holds the start of each row, then the end of the last one; `longest` is the
    length of the longest row. Gradients are available only without a prefix.
    """
    options: dict[str, Any] = {"scale": scaling, "enable_gqa": q_MHD.shape[1] != k_MGD.shape[1]}
    own_rows = (q_MHD, k_MGD, v_MGD, bounds_b, bounds_b, longest, longest)
    if prefix is None:
        return torch.as_tensor(varlen_attn(*own_rows, window_size=CAUSAL, **options))
    keys_PHD, values_PHD = (x.transpose(0, 1).contiguous() for x in prefix)
    options["return_aux"] = AuxRequest(lse=True)
    own_MHD, own_lse = varlen_attn(*own_rows, window_size=CAUSAL, **options)
    # Against the single prefix, all tokens count as one row.
    all_b, prefix_b = (bounds_b.new_tensor([0, len(x)]) for x in (q_MHD, keys_PHD))
    far_MHD, far_lse = varlen_attn(
        q_MHD, keys_PHD, values_PHD, all_b, prefix_b, len(q_MHD), len(keys_PHD), **options
    )
    # [M, H] according to its documentation, [H, M] according to its code (torch 2.13).
    share = torch.sigmoid(far_lse - own_lse)
    share_MH1 = (share if share.shape == q_MHD.shape[:2] else share.T)[..., None]
    return torch.lerp(own_MHD, far_MHD, share_MH1.to(own_MHD.dtype))


@cache
def serves(
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    groups: int,
    dim: int,
    padded: Callable[..., torch.Tensor],
) -> bool:
    """Whether `varlen_attention` computes the same as `padded`.

    `padded` takes (lengths, q_MHD, k_MGD, v_MGD, prefix, scaling).
    """
    if dtype not in SERVED.get(device.type, ()):
        return False
    try:
        with torch.inference_mode(False), torch.enable_grad():
            problem = _problem(device, dtype, heads, groups, dim, padded)
    except torch.OutOfMemoryError:  # tells nothing about the kernels
        raise
    # The kinds of error that an unsupported build, GPU or head size raises.
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        problem = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if problem:
        logging.getLogger(__name__).warning(
            "variable-length attention is not used: %s. Rows are padded for attention, which takes "
            "longer",
            problem,
        )
    return not problem


def _problem(
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    groups: int,
    dim: int,
    padded: Callable[..., torch.Tensor],
) -> str | None:
    """Describes what is wrong with the kernels' result on a small example; None if nothing is."""
    lengths, random = [5, 1, 130, 33], torch.Generator().manual_seed(0)
    bounds_b = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32, device=device)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).to(device, dtype)

    # The memory layout is the one that models produce.
    rows = [
        some(n, sum(lengths), dim).transpose(0, 1).requires_grad_() for n in (heads, groups, groups)
    ]
    prefix, weight_MHD = (
        (some(groups, 150, dim), some(groups, 150, dim)),
        some(sum(lengths), heads, dim),
    )
    pairs = {}
    q_MHD, k_MGD, v_MGD = rows
    longest, scaling = max(lengths), dim**-0.5
    for name, out_MHD in (
        ("ours", varlen_attention(q_MHD, k_MGD, v_MGD, bounds_b, longest, scaling)),
        ("theirs", padded(lengths, *rows, None, scaling)),
    ):
        pairs[name] = [out_MHD, *torch.autograd.grad((out_MHD * weight_MHD).sum(), rows)]
    with torch.no_grad():
        pairs["ours"].append(
            varlen_attention(q_MHD, k_MGD, v_MGD, bounds_b, longest, scaling, prefix)
        )
        pairs["theirs"].append(padded(lengths, *rows, prefix, scaling))
    for what, ours, theirs in zip(
        (
            "its answer",
            *(f"its gradient of the {x}" for x in ("queries", "keys", "values")),
            "its answer with a prefix",
        ),
        pairs["ours"],
        pairs["theirs"],
    ):
        # Written with `not`, so that a NaN counts as a difference.
        if not (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max():
            return f"{what} is not that of ordinary attention"
    return None
