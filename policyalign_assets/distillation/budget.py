"""How many tokens go through the model at once, found out where it is guessed too high."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


class DistillationFailed(RuntimeError):
    """Training cannot go on (a loss that is not a number, no responses, no memory). The last saved step stays on disk."""


class Budget:
    """`tokens` of a micro-batch. Smaller micro-batches give the same gradients up to rounding, so running out of memory only costs time.

    `may_halve` is false where other processes are in the middle of the same pass and would wait for this one.
    """

    SMALLEST = 8

    def __init__(self, tokens: int, report: Callable[[str], None], may_halve: bool = True):
        self.tokens, self._report, self._may_halve = tokens, report, may_halve

    def fitted(self, work: Callable[[], T]) -> T:
        """`work()`, done anew with half the budget each time that memory runs out. It must begin from nothing when called again."""
        while True:
            try:
                return work()
            except torch.OutOfMemoryError as error:
                first = str(error).splitlines()[0].rstrip(".")
                if not self._may_halve:
                    raise DistillationFailed(
                        f"micro-batches of {self.tokens} tokens do not fit into the memory of each GPU: {first}. Mend: lower "
                        "distillation.micro_batch_tokens, which FSDP2 cannot do by itself."
                    ) from None
                if self.tokens // 2 < self.SMALLEST:
                    raise DistillationFailed(
                        f"not even one response fits into the memory of the GPU: {first}. Mend: "
                        "distillation.gradient_checkpointing=true, shorter responses, or a GPU with more memory."
                    ) from None
                self.tokens //= 2
            torch.cuda.empty_cache()  # outside of `except`: the error holds on to the tensors of its frames
            self._report(f"out of memory: going on with micro-batches of {self.tokens} tokens")
