"""Samples the student's answers with vLLM, and verifies that the current student gave them.

vLLM has its own copy of the weights, so each step's adapter is handed over again. If vLLM kept
serving an older adapter, training would silently become off-policy. Therefore the trainer scores a
few answers of every step with its own weights. Their tokens must have the log-probabilities with
which vLLM sampled them, up to the rounding differences between two engines. That noise is measured
on the base model when training starts. Differences below a few times the noise go unnoticed. In
float32 they are negligible; in bfloat16 they are at most a step at a small learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from policyalign_assets.distillation.adapters import save_student
from policyalign_assets.distillation.processes import SINGLE_PROCESS, Processes
from policyalign_assets.engine.base import AdapterEngine, Generation, NotFinite, Progress, Sampling
from policyalign_assets.engine.forward.modules import ModelForward
from policyalign_assets.engine.forward.scoring import response_logits
from policyalign_assets.engine.generation.vllm_server_engine import VllmServerEngine

CHECKED, TOKENS = 8, 64  # answers checked per step, and the number of their first tokens
OVER_NOISE = 4.0  # a difference of more than this many times the noise means stale weights
# Root mean square in nats. A difference below the floor never counts as stale. Noise above the
# ceiling means that the two engines do not hold the same base model.
FLOOR = {torch.float32: 1e-4, torch.bfloat16: 0.02}
CEILING = {torch.float32: 5e-3, torch.bfloat16: 0.3}


class StaleWeights(RuntimeError):
    """vLLM's weights differ from the trainer's. The last saved step stays on disk."""


class VllmRollouts:
    """Samples with the student's current weights, like the trainer's own engine.

    The engine runs in this process or at servers. With several training processes, each samples its
    share, and the main one hands the adapter over for all; then the engine must be one of servers.
    `mismatch` is the difference between the two engines' log-probabilities in the last call (root
    mean square over tokens of all processes, in nats).
    """

    def __init__(
        self,
        engine: AdapterEngine,
        model: PeftModel,
        log: Callable[[str], None] = lambda _: None,
        processes: Processes = SINGLE_PROCESS,
    ):
        self.engine, self.model, self.log, self.processes = engine, model, log, processes
        self.mismatch: float | None = None
        base: Any = model.get_base_model()
        self._dtype: torch.dtype = base.dtype
        self._calls = 0
        self._limit: float | None = None
        self._checked = max(CHECKED, engine.replicas)  # each copy of the weights is checked

    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        progress: Progress | None = None,
        rows: Sequence[int] | None = None,
    ) -> list[Generation]:
        """Raises StaleWeights, PromptTooLong, NotFinite; of servers also ServersDown."""
        row_numbers = range(len(prompts)) if rows is None else rows
        if self._limit is None:
            some = slice(self._checked)
            self._limit = self._measure_noise(prompts[some], sampling, row_numbers[some])
        self._calls += 1
        self._hand_over(lambda folder: save_student(self.model, folder))
        generations, log_probs = self.engine.with_log_probs(
            prompts, sampling, progress, row_numbers
        )
        self.mismatch = self._difference(prompts, generations, log_probs, self._checked)
        if self.mismatch > self._limit:
            # A single rare token can cause that. All answers together are conclusive.
            self.mismatch = self._difference(prompts, generations, log_probs, len(prompts))
        if self.mismatch > self._limit:
            raise StaleWeights(
                f"the log-probabilities of vLLM's answers differ by {self.mismatch:.2g} nats from "
                f"those of the trainer's weights. Rounding explains {self._limit:.2g}, so vLLM "
                "serves an older adapter or none. The last saved step is kept. Fix: start the "
                "stage again; if this happens again, set model.engine to 'transformers' and report "
                "it with vLLM's version."
            )
        return generations

    def _hand_over(self, write: Callable[[Path], object] | None) -> None:
        """The engine answers with the adapter that `write` saves, or with the base model."""
        if self.processes.main:
            self.engine.use_adapter(write, f"call-{self._calls}")
        if isinstance(self.engine, VllmServerEngine):
            self.engine.adopt(self.processes.from_main(self.engine.adapter))

    def _measure_noise(
        self, prompts: Sequence[list[int]], sampling: Sampling, rows: Sequence[int]
    ) -> float:
        self._hand_over(None)
        with self.model.disable_adapter():
            noise = self._difference(
                prompts, *self.engine.with_log_probs(prompts, sampling, rows=rows), len(prompts)
            )
        self.log(f"vLLM and the trainer differ by {noise:.2g} nats on the base model")
        if noise > CEILING[self._dtype]:
            raise StaleWeights(
                f"vLLM and the trainer differ by {noise:.2g} nats on the base model, more than "
                "rounding explains: they do not compute the same model. Fix: set model.engine to "
                "'transformers', or start the servers with the model, --dtype and "
                "--logprobs-mode raw_logprobs that docs/deploy.md names."
            )
        return max(OVER_NOISE * noise, FLOOR[self._dtype])

    # Not in inference mode: with sharded weights, later updates need what is gathered here.
    @torch.no_grad()
    def _difference(
        self,
        prompts: Sequence[list[int]],
        generations: Sequence[Generation],
        log_probs: Sequence[Sequence[float]],
        rows: int,
    ) -> float:
        """The mismatch over the first `rows` answers of each process. Raises NotFinite.

        All processes must call it with the same numbers of prompts and rows.
        """
        sums = torch.zeros(2, dtype=torch.float64)  # squares, tokens
        for start in range(0, min(rows, len(prompts)), CHECKED):
            some = slice(start, min(start + CHECKED, rows))
            responses = [g.token_ids[:TOKENS] for g in generations[some]]
            tokens_M = torch.tensor([t for r in responses for t in r], device=self.model.device)
            theirs_M = torch.tensor(
                [p for row in log_probs[some] for p in row[:TOKENS]], device=self.model.device
            )
            ours_MV = response_logits(
                ModelForward(self.model), prompts[some], responses
            ).log_softmax(-1)
            squares_M = (ours_MV.gather(-1, tokens_M[:, None])[:, 0] - theirs_M).square()
            sums += torch.stack([squares_M.double().sum().cpu(), torch.tensor(len(squares_M))])
        squares, tokens = self.processes.sum(sums).tolist()
        difference = math.sqrt(squares / tokens) if not math.isnan(squares) else math.nan
        if math.isnan(difference):
            raise NotFinite("the student's log-probabilities are not numbers")
        return difference
