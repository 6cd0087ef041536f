"""The teacher: the model with a policy in its context.

A policy's key/values are computed once for all prompts that hold it. A run may teach several
policies: then each request goes to the teacher that reads its policy, and all teachers are the same
weights with another prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from policyalign_assets.distillation.tuning import TeacherKind, Tuning
from policyalign_assets.engine.choose_forward import forward_of
from policyalign_assets.engine.forward.scoring import prompt_prefix, response_hidden
from policyalign_assets.engine.forward.shared_prefix import Prefix


class Teacher:
    """`prompts` are all prompts of the training run, by policy; those of one policy share it."""

    def __init__(self, tuning: Tuning, kind: TeacherKind, prompts: Mapping[int, list[list[int]]]):
        self._tuning, self._kind, self._prompts = tuning, kind, prompts
        self._forward = forward_of(tuning.teacher, tuning.plain)
        self._synced = False
        self._prefixes: dict[int, Prefix | None] = {}

    def sync(self) -> None:
        """Takes over the current weights and computes each policy's key/values with them.

        A frozen teacher does so only once.
        """
        if self._synced and self._kind == "frozen":
            return
        with self._tuning.teaching():
            self._forward.read()
        with self._computing():
            self._prefixes = {
                policy: prompt_prefix(self._forward, prompts)
                for policy, prompts in self._prompts.items()
            }
        self._synced = True

    def shared(self, policy: int) -> int:
        """The number of prompt tokens that the prefix of a policy covers."""
        prefix = self._prefixes[policy]
        return prefix.length if prefix else 0

    def hidden(
        self, policy: int, prompts: Sequence[list[int]], responses: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """See `response_hidden`. All `prompts` hold the one `policy`. Call `sync` first."""
        with self._computing():
            return response_hidden(self._forward, prompts, responses, self._prefixes[policy])

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
