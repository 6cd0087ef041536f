"""Compares distillation losses on the same hidden states: this project's, TRL's and Liger's.

Measured are the time and the peak memory of a forward and backward pass.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from policyalign_assets.distillation.loss import Divergence, mixed_kl_top_k

K = 256
Step = Callable[[], None]


def contenders(
    tokens: int, hidden: int, vocabulary: int, dtype: torch.dtype, device: str
) -> dict[str, Step]:
    """Each computes the loss and its gradient for the student's hidden states.

    The language-model head is frozen, as it is with LoRA.
    """
    torch.manual_seed(0)
    weight_VD = torch.randn(vocabulary, hidden, dtype=dtype, device=device) / hidden**0.5
    student_MD = (3 * torch.randn(tokens, hidden, dtype=dtype, device=device)).requires_grad_()
    teacher_MD = student_MD.detach() + torch.randn_like(student_MD) / 2

    def ours(k: int) -> Step:
        def step():
            out = mixed_kl_top_k(
                student_MD, teacher_MD, lambda h: (h @ weight_VD.T).float(), Divergence(k)
            )
            (out.loss_sum / tokens).backward()

        return step

    def trl_sdft(mode: str) -> Step:
        from trl.experimental.sdft import loss_utils

        def step():
            student_BTV = (student_MD @ weight_VD.T)[None].float()
            with torch.no_grad():
                teacher_BTV = (teacher_MD @ weight_VD.T)[None].float()
            if mode == "top-k":
                loss = loss_utils.compute_topk_self_distillation_loss(
                    student_BTV,
                    teacher_BTV,
                    distillation_topk=K,
                    distillation_alpha=1.0,
                    distillation_add_tail=False,
                )
            else:
                loss = loss_utils.compute_full_logit_self_distillation_loss(
                    student_BTV, teacher_BTV, distillation_alpha=1.0
                )
            loss.mean().backward()

        return step

    def trl_chunked():
        from trl.trainer.distillation_trainer import _chunked_divergence_loss

        loss, *_ = _chunked_divergence_loss(
            student_MD[None],
            teacher_MD[None],
            weight_VD,
            weight_VD,
            torch.ones(1, tokens, device=device),
            1.0,
        )
        loss.backward()

    def liger():
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        loss = LigerFusedLinearJSDLoss(
            weight_hard_loss=0.0, weight_soft_loss=1.0, beta=1.0, compiled=False
        )
        loss(
            student_MD,
            weight_VD,
            teacher_MD,
            weight_VD,
            torch.zeros(tokens, dtype=torch.long, device=device),
        ).backward()

    steps = {
        "ours, top 256": ours(K),
        "ours, full vocabulary": ours(vocabulary),
        "TRL SDFT, top 256": trl_sdft("top-k"),
        "TRL SDFT, full vocabulary": trl_sdft("full"),
        "TRL chunked, full vocabulary": trl_chunked,
        "Liger fused JSD, full vocabulary": liger,
    }

    def fresh(step: Step) -> Step:
        def run():
            student_MD.grad = None
            step()

        return run

    return {name: fresh(step) for name, step in steps.items()}


def gradients(
    steps: dict[str, Step], student: Callable[[], torch.Tensor]
) -> dict[str, torch.Tensor]:
    out = {}
    for name, step in steps.items():
        step()
        out[name] = student().clone()
    return out


def peak_bytes(step: Step, device: str) -> int:
    """Peak bytes of tensors during `step`, beyond those that existed before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    now = peak = 0
    for event in sorted(
        (e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"),
        key=lambda e: e.start_ns(),
    ):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def seconds(step: Step, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def interleaved(steps: dict[str, Step], repeats: int, device: str) -> dict[str, float]:
    """Median seconds of each step, run in turn. A first round warms up and is not counted."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats + 1):
        for name, step in steps.items():
            times[name].append(seconds(step, device))
    return {name: statistics.median(t[1:]) for name, t in times.items()}
