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
from policyalign_assets.engine.folded import fold, using
from policyalign_assets.engine.kv_cache import roomy_cache
from policyalign_assets.engine.loading import LoadedModel
from policyalign_assets.engine.responses import check_lengths, finished
from policyalign_assets.engine.sampling import choose, uniforms
from policyalign_assets.engine.shared_prefix import attending_to, compute_prefix, shared_length


class TransformersEngine:
    """An `Engine` over a loaded model. An adapter put on `loaded.model` (PEFT) is used as it is."""

    def __init__(self, loaded: LoadedModel, batch_tokens: int):
        self.loaded, self.batch_tokens = loaded, batch_tokens
        self.model_id, self.revision = loaded.model_id, loaded.revision
        self.tokenizer, self.device = loaded.tokenizer, loaded.device.type

    def generate(self, chats: Sequence[Chat], sampling: Sampling, progress: Progress | None = None) -> list[Generation]:
        return self.generate_ids([render(self.loaded.tokenizer, c) for c in chats], sampling, progress)

    @torch.inference_mode()
    def generate_ids(self, prompts: Sequence[list[int]], sampling: Sampling, progress: Progress | None = None,
                     rows: Sequence[int] | None = None) -> list[Generation]:
        """As `generate`, from rendered prompts. Only temperature shapes the distribution: a model's own generation_config does not.

        `rows`: which row of a larger batch each prompt is; its random numbers are that row's, and the same in any part of the batch.
        """
        check_lengths(prompts, sampling.max_new_tokens, self.loaded.context)
        model = self.loaded.model
        shared = shared_length(model.config, prompts)
        rows = range(len(prompts)) if rows is None else rows
        results: list[Generation | None] = [None] * len(prompts)
        done = 0
        with using(model, fold(model)), attending_to(model, compute_prefix(model, prompts[0][:shared]) if shared else None) as offset:
            todo = list(by_length([len(p) - shared + sampling.max_new_tokens for p in prompts], self.batch_tokens))
            while todo:
                batch = todo.pop(0)
                decoded = self._decoded([prompts[i][shared:] for i in batch], offset, sampling, [rows[i] for i in batch])
                if decoded is None:  # in halves; a row's answer does not depend on its batch
                    todo[:0] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
                    continue
                for i, tokens in zip(batch, decoded, strict=True):
                    results[i] = finished(tokens, self.loaded.end_ids, self.loaded.tokenizer)
                done += len(batch)
                if progress:
                    progress(done, len(prompts))
        return results

    def _decoded(self, suffixes: list[list[int]], offset: int, sampling: Sampling, numbers: list[int]) -> list[list[int]] | None:
        """As `_decode`; None where the batch does not fit into the memory, and from then on batches are half as large."""
        try:
            return self._decode(suffixes, offset, sampling, numbers)
        except torch.OutOfMemoryError:
            if len(suffixes) == 1:
                raise
        self.batch_tokens //= 2
        torch.cuda.empty_cache()  # outside of `except`: the error holds on to the tensors of its frames
        logging.getLogger(__name__).warning("out of memory: generating on with batches of %d tokens", self.batch_tokens)
        return None

    def _decode(self, suffixes: list[list[int]], offset: int, sampling: Sampling, numbers: list[int]) -> list[list[int]]:
        """Sampled tokens per row, the end token included. Rows are left-padded; `offset` is the position of the first suffix token."""
        model, device = self.loaded.model, self.loaded.model.device
        ends = torch.tensor(self.loaded.end_ids, device=device)
        width = max(map(len, suffixes))
        ids_BT = torch.tensor([[0] * (width - len(s)) + s for s in suffixes], device=device)
        mask_BT = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in suffixes], device=device)
        positions_BT = offset + (mask_BT.cumsum(1) - 1).clamp_min(0)
        cache = roomy_cache(model.config, width + sampling.max_new_tokens)
        out: list[list[int]] = [[] for _ in suffixes]
        rows = torch.arange(len(suffixes), device=device)  # which row of the batch each live row is
        uniform_BT = uniforms(sampling, numbers).to(device)
        for t in range(sampling.max_new_tokens):
            logits_BV = model(input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT, past_key_values=cache,
                              use_cache=True, logits_to_keep=1).logits[:, -1].float()
            if logits_BV.isnan().any():
                raise NotFinite(f"model {self.model_id!r} gives logits that are not numbers")
            next_B = choose(logits_BV, sampling.temperature, uniform_BT[rows, t])
            for row, token in zip(rows.tolist(), next_B.tolist()):
                out[row].append(token)
            live = (~torch.isin(next_B, ends)).nonzero()[:, 0]
            if not len(live):
                break
            positions_BT = positions_BT[:, -1:] + 1
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(mask_BT), 1)], 1)
            ids_BT = next_B[:, None]
            if len(live) < len(ids_BT):  # finished rows leave
                cache.batch_select_indices(live)
                rows, ids_BT, mask_BT, positions_BT = rows[live], ids_BT[live], mask_BT[live], positions_BT[live]
        return out
