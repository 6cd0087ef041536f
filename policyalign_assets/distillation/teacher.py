"""The teacher: the model with the policy in its context, whose key/values are computed once for all that it is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from policyalign_assets.distillation.tuning import Tuning
from policyalign_assets.engine.forward.protocol import forward_of
from policyalign_assets.engine.forward.scoring import prompt_prefix, response_hidden
from policyalign_assets.settings import DistillationSettings


class Teacher:
    """`prompts`: all that it will be asked with; they share the policy."""

    def __init__(
        self, tuning: Tuning, settings: DistillationSettings, prompts: Sequence[list[int]]
    ):
        self._tuning, self._settings, self._prompts = tuning, settings, prompts
        self._forward, self._read = forward_of(tuning.teacher, tuning.plain), False

    def follow(self) -> None:
        """Takes over the weights of now, and computes the policy's key/values with them. A frozen teacher does so once."""
        if self._read and self._settings.teacher == "frozen":
            return
        with self._tuning.teaching():
            self._forward.read()
        with self._computing():
            self._prefix = prompt_prefix(self._forward, self._prompts)
        self._read = True

    @property
    def shared(self) -> int:
        """Tokens of the prompts that are in the prefix."""
        return self._prefix.length if self._prefix else 0

    def hidden(
        self, prompts: Sequence[list[int]], responses: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """As `response_hidden`."""
        with self._computing():
            return response_hidden(self._forward, prompts, responses, self._prefix)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with (
            torch.no_grad() if self._forward.copied else self._tuning.teaching(),
            self._forward.applied(),
        ):
            yield

    def logits(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        return self._forward.logits(hidden_MD)
