"""Attention of packed rows by PyTorch's variable-length flash kernels: no padding, no scores in memory. For GPUs, in half precision.

Not taken on trust. Before the first use on a device the kernels compute a small example, gradients included, and so does
ordinary attention; where they are missing, fail or differ, rows are padded for attention instead, and the log says so once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch.nn.attention.varlen import AuxRequest, varlen_attn

SERVED = {"cuda": (torch.float16, torch.bfloat16)}
CLOSE = 0.02  # of the largest value: a few roundings of bfloat16
CAUSAL = (-1, 0)  # any distance back, none ahead

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
    """Each token attends to the prefix, to those before it in its row, and to itself: out_MHD.

    `bounds_b`: where each row starts, and the last one ends (int32); `longest`: tokens of a row. Gradients only without a prefix.
    """
    shared = {"scale": scaling, "enable_gqa": q_MHD.shape[1] != k_MGD.shape[1]}
    if prefix is None:
        return varlen_attn(
            q_MHD, k_MGD, v_MGD, bounds_b, bounds_b, longest, longest, window_size=CAUSAL, **shared
        )
    keys_PHD, values_PHD = (x.transpose(0, 1).contiguous() for x in prefix)
    asked = {**shared, "return_aux": AuxRequest(lse=True)}
    own_MHD, own_lse = varlen_attn(
        q_MHD, k_MGD, v_MGD, bounds_b, bounds_b, longest, longest, window_size=CAUSAL, **asked
    )
    # to the one prefix, all tokens are one row
    whole_b, prefix_b = (bounds_b.new_tensor([0, len(x)]) for x in (q_MHD, keys_PHD))
    far_MHD, far_lse = varlen_attn(
        q_MHD, keys_PHD, values_PHD, whole_b, prefix_b, len(q_MHD), len(keys_PHD), **asked
    )
    share = torch.sigmoid(
        far_lse - own_lse
    )  # [M, H] by its documentation, [H, M] by its code (torch 2.13)
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
    """Whether `varlen_attention` computes what `padded` does. That takes (lengths, q_MHD, k_MGD, v_MGD, prefix, scaling)."""
    if dtype not in SERVED.get(device.type, ()):
        return False
    try:
        with torch.inference_mode(False), torch.enable_grad():
            problem = _problem(device, dtype, heads, groups, dim, padded)
    except torch.OutOfMemoryError:  # says nothing about the kernels
        raise
    except (
        RuntimeError,
        ValueError,
        TypeError,
        NotImplementedError,
    ) as error:  # whatever a build, a chip or a head's size makes of it
        problem = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if problem:
        logging.getLogger(__name__).warning(
            "variable-length attention is not used: %s. Rows are padded for attention, which takes longer",
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
    """What is wrong with the kernels' answer to a small example, if anything."""
    lengths, random = [5, 1, 130, 33], torch.Generator().manual_seed(0)
    bounds_b = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32, device=device)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random).to(device, dtype)

    # laid out as models give them
    rows = [
        some(n, sum(lengths), dim).transpose(0, 1).requires_grad_() for n in (heads, groups, groups)
    ]
    prefix, weight_MHD = (
        (some(groups, 150, dim), some(groups, 150, dim)),
        some(sum(lengths), heads, dim),
    )
    pairs = {}
    for name, out_MHD in (
        ("ours", varlen_attention(*rows, bounds_b, max(lengths), dim**-0.5)),
        ("theirs", padded(lengths, *rows, None, dim**-0.5)),
    ):
        pairs[name] = [out_MHD, *torch.autograd.grad((out_MHD * weight_MHD).sum(), rows)]
    with torch.no_grad():
        pairs["ours"].append(varlen_attention(*rows, bounds_b, max(lengths), dim**-0.5, prefix))
        pairs["theirs"].append(padded(lengths, *rows, prefix, dim**-0.5))
    for what, ours, theirs in zip(
        (
            "its answer",
            *(f"its gradient of the {x}" for x in ("queries", "keys", "values")),
            "its answer with a prefix",
        ),
        pairs["ours"],
        pairs["theirs"],
    ):
        if (
            not (ours - theirs).abs().max() <= CLOSE * theirs.abs().max()
        ):  # false for what is not a number, too
            return f"{what} is not that of ordinary attention"
    return None
