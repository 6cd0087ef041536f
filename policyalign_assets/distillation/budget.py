"""How many tokens go through the model at once; halved whenever memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


class DistillationFailed(RuntimeError):
    """Training cannot continue: loss not finite, all responses empty, or out of memory.

    The last saved step stays on disk.
    """


class Budget:
    """The number of `tokens` of a micro-batch.

    Smaller micro-batches give the same gradients up to rounding, so running out of memory only
    costs time. `may_halve` is false if other processes are in the middle of the same pass and
    would wait for this one.
    """

    SMALLEST = 8  # tokens; with fewer, not even one response fits

    def __init__(self, tokens: int, report: Callable[[str], None], may_halve: bool = True):
        self.tokens, self._report, self._may_halve = tokens, report, may_halve

    def fitted(self, work: Callable[[], T]) -> T:
        """Calls `work`, and again with half the budget each time memory runs out.

        Each call of `work` must start from scratch.
        """
        while True:
            try:
                return work()
            except torch.OutOfMemoryError as error:
                first = str(error).splitlines()[0].rstrip(".")
                if not self._may_halve:
                    raise DistillationFailed(
                        f"micro-batches of {self.tokens} tokens do not fit into the memory of "
                        "each GPU: "
                        f"{first}. Fix: lower distillation.micro_batch_tokens, which FSDP2 cannot "
                        "do by itself."
                    ) from None
                if self.tokens // 2 < self.SMALLEST:
                    raise DistillationFailed(
                        f"not even one response fits into the memory of the GPU: {first}. Fix: set "
                        "distillation.gradient_checkpointing=true, use shorter responses, or a GPU "
                        "with more memory."
                    ) from None
                self.tokens //= 2
            # Outside of `except`, because the error keeps the tensors of its frames alive.
            torch.cuda.empty_cache()
            self._report(
                f"out of memory: training continues with micro-batches of {self.tokens} tokens"
            )
