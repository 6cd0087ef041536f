"""Measures how long each phase of a training step takes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PHASES = ("rollout", "prefix", "teacher", "student")


class Phases:
    """Seconds by phase. GPU work is asynchronous, so each phase waits for the GPU to finish."""

    def __init__(self, device: torch.device):
        self._device = device
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begun = self._now()
        yield
        self.seconds[name] += self._now() - begun

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
