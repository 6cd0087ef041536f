"""The teacher: the model with the policy in its context.

The policy's key/values are computed once for all prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from policyalign_assets.distillation.tuning import TeacherKind, Tuning
from policyalign_assets.engine.choose_forward import forward_of
from policyalign_assets.engine.forward.scoring import prompt_prefix, response_hidden
from policyalign_assets.engine.forward.shared_prefix import Prefix


class Teacher:
    """`prompts` are all prompts of the training run; they share the policy."""

    def __init__(self, tuning: Tuning, kind: TeacherKind, prompts: Sequence[list[int]]):
        self._tuning, self._kind, self._prompts = tuning, kind, prompts
        self._forward = forward_of(tuning.teacher, tuning.plain)
        self._synced = False
        self._prefix: Prefix | None = None

    def sync(self) -> None:
        """Takes over the current weights and computes the policy's key/values with them.

        A frozen teacher does so only once.
        """
        if self._synced and self._kind == "frozen":
            return
        with self._tuning.teaching():
            self._forward.read()
        with self._computing():
            self._prefix = prompt_prefix(self._forward, self._prompts)
        self._synced = True

    @property
    def shared(self) -> int:
        """The number of prompt tokens that the shared prefix covers."""
        return self._prefix.length if self._prefix else 0

    def hidden(
        self, prompts: Sequence[list[int]], responses: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """See `response_hidden`. Call `sync` first."""
        with self._computing():
            return response_hidden(self._forward, prompts, responses, self._prefix)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        # A forward pass with its own copies needs no switch of adapters.
        with (
            torch.no_grad() if self._forward.copied else self._tuning.teaching(),
            self._forward.applied(),
        ):
            yield

    def logits(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        return self._forward.logits(hidden_MD)
