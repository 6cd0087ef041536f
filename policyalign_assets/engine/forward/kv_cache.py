"""A key/value cache with room for the tokens still to come.

A new token is written in place; transformers' own cache joins it to a copy at every step.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin


class RoomyLayer(DynamicLayer):
    """One layer's key/values, allocated once for `room` tokens a row."""

    def __init__(self, room: int):
        super().__init__()
        self.room, self.length = room, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._keys, self._values = (
            s.new_empty(*s.shape[:2], self.room, s.shape[3]) for s in (key_states, value_states)
        )

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends the new key/values; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        self._keys[:, :, self.length : end] = key_states
        self._values[:, :, self.length : end] = value_states
        self.length = end
        return self._expose_filled_part()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._keys, self._values = self._keys[indices], self._values[indices]
        self._expose_filled_part()

    def _expose_filled_part(self) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._keys[:, :, : self.length], self._values[:, :, : self.length]
        self.keys, self.values = keys, values
        return keys, values


def keeps_recurrent_state(config: PretrainedConfig) -> bool:
    """Whether some layers keep a recurrent or convolutional state instead of key/values."""
    layers = DynamicCache(config=config).layers
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers)


def has_full_attention_only(config: PretrainedConfig) -> bool:
    """Whether every layer keeps plain key/values of all tokens."""
    layers = DynamicCache(config=config).layers
    return all(type(layer) is DynamicLayer for layer in layers)


def keep_rows(cache: Any, live_b: torch.Tensor) -> None:
    """Drops all other rows of a batch from `cache`."""
    layer: Any
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            # These layers cannot select rows (some would select their key/values but not their
            # states). Reordering with fewer indices does the same for all that they keep.
            reorder: Any = layer.reorder_cache
            reorder(live_b)
        else:
            layer.batch_select_indices(live_b)


def roomy_cache(config: PretrainedConfig, room: int) -> DynamicCache:
    """A cache for at most `room` tokens a row.

    Layers that keep a bounded state, such as sliding windows, stay as transformers makes them.
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache
