"""The interface to a model's hidden states, key/values and next tokens.

`modules.py` implements it for any architecture, `engine/cpu/plain_llama.py` faster for some.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from policyalign_assets.engine.forward.shared_prefix import Prefix


class Decoding(Protocol):
    """A batch of rows that grow by one token at a time."""

    def start(self) -> torch.Tensor:
        """Returns logits_BV after the given rows."""
        ...

    def step(self, ids_B: torch.Tensor) -> torch.Tensor:
        """Appends one token to each row and returns the next logits_BV."""
        ...

    def keep(self, live_b: torch.Tensor) -> None:
        """Drops all rows but these from the batch."""
        ...


class Forward(Protocol):
    """Computes with a model's weights and its active PEFT adapter, as of the last `read()`.

    Call `read()` after the adapter has changed. Changes of the base weights may go unnoticed.
    """

    @property
    def model(self) -> Any:
        """The model, possibly wrapped by PEFT."""
        ...

    @property
    def copied(self) -> bool:
        """Whether it computes with copies, whatever adapter `model` has active later."""
        ...

    def read(self) -> None:
        """Takes over the current weights of the active adapter."""
        ...

    def prefix(self, tokens: Sequence[int]) -> Prefix:
        """Computes the key/values of `tokens`, without gradients."""
        ...

    def hidden(
        self, rows: Sequence[Sequence[int]], wanted: Sequence[slice], prefix: Prefix | None = None
    ) -> torch.Tensor:
        """Hidden states of the `wanted` tokens of each row, rows concatenated: hidden_MD.

        Every row continues `prefix`.
        """
        ...

    def logits(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        """Next-token logits_MV from hidden states."""
        ...

    def decoding(
        self, suffixes: Sequence[Sequence[int]], room: int, prefix: Prefix | None = None
    ) -> Decoding:
        """Starts a batch of rows that grow by up to `room` tokens and that continue `prefix`."""
        ...

    def applied(self) -> AbstractContextManager[None]:
        """While active, the model's own modules use the weights captured by `read()`.

        Call `prefix`, `hidden`, `logits` and `decoding` only inside this context.
        """
        ...
