"""Generation with Hugging Face transformers: runs anywhere, on CPU or GPU.

The decoding loop is ours, because `generate` copies a shared policy into every row and decodes finished rows until the
slowest ends; here the policy is shared and finished rows leave the batch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from policyalign_assets.engine.base import Chat, Generation, NotFinite, Progress, Sampling
from policyalign_assets.engine.batching import by_length
from policyalign_assets.engine.chat import render
from policyalign_assets.engine.forward.protocol import Forward, forward_of
from policyalign_assets.engine.forward.scoring import prompt_prefix
from policyalign_assets.engine.forward.shared_prefix import Prefix
from policyalign_assets.engine.loading import LoadedModel
from policyalign_assets.engine.responses import check_lengths, finished
from policyalign_assets.engine.sampling import NO_TOKEN, choose, uniforms


class TransformersEngine:
    """An `Engine` over a loaded model. An adapter put on `loaded.model` (PEFT) is used as it is. `forward`: of that model, where the
    caller has one."""

    def __init__(self, loaded: LoadedModel, batch_tokens: int, forward: Forward | None = None):
        self.loaded, self.batch_tokens = loaded, batch_tokens
        self.forward = forward or forward_of(loaded.model)
        self.model_id, self.revision = loaded.model_id, loaded.revision
        self.tokenizer, self.device = loaded.tokenizer, loaded.device.type

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, progress: Progress | None = None
    ) -> list[Generation]:
        return self.generate_ids(
            [render(self.loaded.tokenizer, c) for c in chats], sampling, progress
        )

    @torch.inference_mode()
    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        progress: Progress | None = None,
        rows: Sequence[int] | None = None,
    ) -> list[Generation]:
        """As `generate`, from rendered prompts. Only temperature shapes the distribution: a model's own generation_config does not.

        `rows`: which row of a larger batch each prompt is; its random numbers are that row's, and the same in any part of the batch.
        """
        check_lengths(prompts, sampling.max_new_tokens, self.loaded.context)
        self.forward.read()
        rows = range(len(prompts)) if rows is None else rows
        results: list[Generation | None] = [None] * len(prompts)
        done = 0
        with self.forward.applied():
            prefix = prompt_prefix(self.forward, prompts)
            shared = prefix.length if prefix else 0
            todo = list(
                by_length(
                    [len(p) - shared + sampling.max_new_tokens for p in prompts], self.batch_tokens
                )
            )
            while todo:
                batch = todo.pop(0)
                decoded = self._decoded(
                    [prompts[i][shared:] for i in batch], prefix, sampling, [rows[i] for i in batch]
                )
                if decoded is None:  # in halves; a row's answer does not depend on its batch
                    todo[:0] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
                    continue
                for i, tokens in zip(batch, decoded, strict=True):
                    results[i] = finished(tokens, self.loaded.end_ids, self.loaded.tokenizer)
                done += len(batch)
                if progress:
                    progress(done, len(prompts))
        return results

    def _decoded(
        self,
        suffixes: list[list[int]],
        prefix: Prefix | None,
        sampling: Sampling,
        numbers: list[int],
    ) -> list[list[int]] | None:
        """As `_decode`; None where the batch does not fit into the memory, and from then on batches are half as large."""
        try:
            return self._decode(suffixes, prefix, sampling, numbers)
        except torch.OutOfMemoryError:
            if len(suffixes) == 1:
                raise
        self.batch_tokens //= 2
        torch.cuda.empty_cache()  # outside of `except`: the error holds on to the tensors of its frames
        logging.getLogger(__name__).warning(
            "out of memory: generating on with batches of %d tokens", self.batch_tokens
        )
        return None

    def _decode(
        self,
        suffixes: list[list[int]],
        prefix: Prefix | None,
        sampling: Sampling,
        numbers: list[int],
    ) -> list[list[int]]:
        """Sampled tokens per row, the end token included."""
        ends, device = set(self.loaded.end_ids), self.loaded.device
        decoding = self.forward.decoding(suffixes, sampling.max_new_tokens, prefix)
        out: list[list[int]] = [[] for _ in suffixes]
        rows = list(range(len(suffixes)))  # which row of the batch each live row is
        uniform_BT = uniforms(sampling, numbers).to(device)
        logits_BV = decoding.start()
        for t in range(sampling.max_new_tokens):
            next_B = choose(logits_BV, sampling.temperature, uniform_BT[:, t])
            tokens = next_B.tolist()
            if NO_TOKEN in tokens:
                raise NotFinite(f"model {self.model_id!r} gives logits that are not numbers")
            for row, token in zip(rows, tokens):
                out[row].append(token)
            live = [i for i, token in enumerate(tokens) if token not in ends]
            if not live or t + 1 == sampling.max_new_tokens:
                break
            if len(live) < len(rows):  # finished rows leave
                live_b = torch.tensor(live, device=device)
                decoding.keep(live_b)
                rows, next_B, uniform_BT = (
                    [rows[i] for i in live],
                    next_B[live_b],
                    uniform_BT[live_b],
                )
            logits_BV = decoding.step(next_B)
        return out
