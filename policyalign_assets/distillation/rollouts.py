"""The student's answers by vLLM, and the canary that says whether it was really the student who answered.

vLLM holds weights of its own, so each step's adapter is handed over anew. Were an older one served (a swap that did not happen, a
cache that was not dropped), training would go on, off-policy and without a sound. So every step a few answers are scored by the
trainer's own weights too: their tokens must have the log-probabilities that vLLM sampled them with, up to what rounding makes of
the very same weights in two engines. That noise is measured on the base model, when training starts. What differs by less than a
few times the noise goes unseen, and matters as little: in float32 nothing, in bfloat16 a step of a small learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from peft import PeftModel

from policyalign_assets.distillation.adapters import save_student
from policyalign_assets.engine.base import Generation, NotFinite, Progress, Sampling
from policyalign_assets.engine.forward.protocol import ModelForward
from policyalign_assets.engine.forward.scoring import response_logits
from policyalign_assets.engine.generation.vllm_engine import VllmEngine

CHECKED, TOKENS = 8, 64  # answers a step, and their first tokens
OVER_NOISE = 4.0
# Nats (root mean square). A difference below the floor is never called stale; above the ceiling the base models are not the same
FLOOR = {torch.float32: 1e-4, torch.bfloat16: 0.02}
CEILING = {torch.float32: 5e-3, torch.bfloat16: 0.3}


class StaleWeights(RuntimeError):
    """vLLM answers with other weights than the trainer's. The last saved step stays on disk."""


class VllmRollouts:
    """Answers like the trainer's own engine, with the student's weights of the moment. `mismatch`: how far the two
    engines' log-probabilities were apart in the last call (root mean square over tokens, nats)."""

    def __init__(
        self, engine: VllmEngine, model: PeftModel, report: Callable[[str], None] = lambda _: None
    ):
        self.engine, self.model, self.report = engine, model, report
        self.mismatch: float | None = None
        self._dtype, self._calls, self._limit = model.get_base_model().dtype, 0, None

    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        progress: Progress | None = None,
        rows: Sequence[int] | None = None,
    ) -> list[Generation]:
        """Raises StaleWeights, PromptTooLong, NotFinite."""
        if self._limit is None:
            self._limit = self._measure_noise(prompts[:CHECKED], sampling)
        self._calls += 1
        self.engine.use_adapter(
            lambda folder: save_student(self.model, folder), f"call-{self._calls}"
        )
        generations, log_probs = self.engine.with_log_probs(prompts, sampling, progress, rows)
        self.mismatch = self._difference(prompts, generations, log_probs, CHECKED)
        if self.mismatch > self._limit:  # one rare token can do that; all answers together say
            self.mismatch = self._difference(prompts, generations, log_probs, len(prompts))
        if self.mismatch > self._limit:
            raise StaleWeights(
                f"vLLM's answers have log-probabilities {self.mismatch:.2g} nats off those of the trainer's weights, of which "
                f"rounding explains {self._limit:.2g}: it serves an older adapter or none. The last saved step is kept. Mend: start "
                "the stage again; if this comes back, set model.engine to 'transformers' and report it with vLLM's version."
            )
        return generations

    def _measure_noise(self, prompts: Sequence[list[int]], sampling: Sampling) -> float:
        self.engine.use_adapter(None)
        with self.model.disable_adapter():
            noise = self._difference(
                prompts, *self.engine.with_log_probs(prompts, sampling), CHECKED
            )
        self.report(f"vLLM and the trainer differ by {noise:.2g} nats on the base model")
        if noise > CEILING[self._dtype]:
            raise StaleWeights(
                f"vLLM and the trainer differ by {noise:.2g} nats on the base model, more than rounding explains: they do "
                "not compute the same model. Mend: set model.engine to 'transformers'."
            )
        return max(OVER_NOISE * noise, FLOOR[self._dtype])

    @torch.inference_mode()
    def _difference(
        self,
        prompts: Sequence[list[int]],
        generations: Sequence[Generation],
        log_probs: Sequence[Sequence[float]],
        rows: int,
    ) -> float:
        """Over the first `rows` answers."""
        squares = []
        for start in range(0, min(rows, len(prompts)), CHECKED):
            some = slice(start, start + CHECKED)
            responses = [g.token_ids[:TOKENS] for g in generations[some]]
            tokens_M = torch.tensor([t for r in responses for t in r], device=self.model.device)
            theirs_M = torch.tensor(
                [p for row in log_probs[some] for p in row[:TOKENS]], device=self.model.device
            )
            ours_MV = response_logits(
                ModelForward(self.model), prompts[some], responses
            ).log_softmax(-1)
            squares.append((ours_MV.gather(-1, tokens_M[:, None])[:, 0] - theirs_M).square())
        difference = torch.cat(squares).mean().sqrt().item()
        if math.isnan(difference):
            raise NotFinite("the student's log-probabilities are not numbers")
        return difference
