"""Generation with Hugging Face transformers: runs anywhere, on CPU or GPU.

The decoding loop is our own. `generate` of transformers copies a shared policy into every row and
keeps decoding finished rows until the slowest one ends. Here the policy is computed once, and
finished rows leave the batch. On a CPU, each core decodes batches of its own (`engine/cpu/forks`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch

from policyalign_assets.engine.base import Chat, Generation, NotFinite, Progress, Sampling
from policyalign_assets.engine.chat import render
from policyalign_assets.engine.choose_forward import forward_of
from policyalign_assets.engine.cpu.forks import batches_for, forks_for, spread
from policyalign_assets.engine.forward.protocol import Forward
from policyalign_assets.engine.forward.scoring import prompt_prefix
from policyalign_assets.engine.forward.shared_prefix import Prefix
from policyalign_assets.engine.loading import LoadedModel
from policyalign_assets.engine.responses import check_lengths, finished
from policyalign_assets.engine.sampling import NO_TOKEN, choose, uniforms

CHARACTERS = 4  # of a token, about


class TransformersEngine:
    """A `TokenEngine` over a loaded model. A PEFT adapter on `loaded.model` is used as it is.

    Without `forward`, the engine makes its own and reads the model's current weights at every
    call. A caller who passes `forward` (over the same model) owns it, and must call its `read()`
    whenever the weights have changed.
    """

    def __init__(self, loaded: LoadedModel, batch_tokens: int, forward: Forward | None = None):
        self.loaded, self.batch_tokens = loaded, batch_tokens
        self._owns_forward = forward is None
        self.forward: Forward = forward or forward_of(loaded.model)
        self.model_id, self.revision = loaded.model_id, loaded.revision
        self.tokenizer, self.device = loaded.tokenizer, loaded.device.type

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, progress: Progress | None = None
    ) -> list[Generation]:
        return self.generate_ids(self._rendered(chats), sampling, progress)

    def _rendered(self, chats: Sequence[Chat]) -> list[list[int]]:
        """The token ids of each chat, from forks where there are thousands of long ones."""
        about = [sum(len(m.content) for m in c) // CHARACTERS for c in chats]
        forks = forks_for(self.forward, about)
        size = max(1, math.ceil(len(chats) / (4 * forks)))
        parts = [chats[at : at + size] for at in range(0, len(chats), size)]

        def of_part(part: Sequence[Chat]) -> list[list[int]]:
            return [render(self.loaded.tokenizer, c) for c in part]

        made = dict(spread(of_part, parts, forks))
        return [ids for i in range(len(parts)) for ids in made[i]]

    @torch.inference_mode()
    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        progress: Progress | None = None,
        rows: Sequence[int] | None = None,
    ) -> list[Generation]:
        """Like `generate`, from rendered prompts; see `TokenEngine.generate_ids` for `rows`.

        Only the temperature shapes the distribution: sampling parameters in the model's own
        generation_config are ignored, because training needs samples of the model itself.
        Raises PromptTooLong before any work, and NotFinite.
        """
        check_lengths(prompts, sampling.max_new_tokens, self.loaded.context)
        if self._owns_forward:
            self.forward.read()
        rows = range(len(prompts)) if rows is None else rows
        results: dict[int, Generation] = {}
        with self.forward.applied():
            prefix = prompt_prefix(self.forward, prompts)
            shared = prefix.length if prefix else 0
            lengths = [len(p) - shared + sampling.max_new_tokens for p in prompts]

            def decode(batch: list[int]) -> list[list[int]] | None:
                return self._decode_if_it_fits(
                    [prompts[i][shared:] for i in batch], prefix, sampling, [rows[i] for i in batch]
                )

            forks = forks_for(self.forward, lengths)
            todo = batches_for(forks, lengths, self.batch_tokens)
            while todo:
                too_large = []
                for at, decoded in spread(decode, todo, forks):
                    if decoded is None:
                        too_large.append(todo[at])
                        continue
                    for i, tokens in zip(todo[at], decoded, strict=True):
                        results[i] = finished(tokens, self.loaded.end_ids, self.loaded.tokenizer)
                    if progress:
                        progress(len(results), len(prompts))
                if too_large:
                    self._halve()
                # Try again in halves. A row's answer does not depend on its batch.
                todo = [
                    half
                    for batch in too_large
                    for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :])
                ]
        return [results[i] for i in range(len(prompts))]

    def _decode_if_it_fits(
        self,
        suffixes: list[list[int]],
        prefix: Prefix | None,
        sampling: Sampling,
        row_numbers: list[int],
    ) -> list[list[int]] | None:
        """Like `_decode`; returns None if the batch does not fit into memory.

        Raises OutOfMemoryError if a single row does not fit.
        """
        try:
            return self._decode(suffixes, prefix, sampling, row_numbers)
        except torch.OutOfMemoryError:
            if len(suffixes) == 1:
                raise
        # Outside of `except`, because the error keeps the tensors of its frames alive.
        torch.cuda.empty_cache()
        return None

    def _halve(self) -> None:
        self.batch_tokens //= 2
        logging.getLogger(__name__).warning(
            "out of memory: generation continues with batches of %d tokens", self.batch_tokens
        )

    def _decode(
        self,
        suffixes: list[list[int]],
        prefix: Prefix | None,
        sampling: Sampling,
        row_numbers: list[int],
    ) -> list[list[int]]:
        """Returns each row's sampled tokens, including the end token."""
        ends, device = set(self.loaded.end_ids), self.loaded.device
        decoding = self.forward.decoding(suffixes, sampling.max_new_tokens, prefix)
        out: list[list[int]] = [[] for _ in suffixes]
        live_rows = list(range(len(suffixes)))  # index into `out` for each row still decoding
        uniform_BT = uniforms(sampling, row_numbers).to(device)
        logits_BV = decoding.start()
        for t in range(sampling.max_new_tokens):
            next_B = choose(logits_BV, sampling.temperature, uniform_BT[:, t])
            tokens = next_B.tolist()
            if NO_TOKEN in tokens:
                raise NotFinite(f"model {self.model_id!r} gives logits that are not numbers")
            for row, token in zip(live_rows, tokens):
                out[row].append(token)
            live = [i for i, token in enumerate(tokens) if token not in ends]
            if not live or t + 1 == sampling.max_new_tokens:
                break
            if len(live) < len(live_rows):  # finished rows leave the batch
                live = _closed_up(live)
                live_b = torch.tensor(live, device=device)
                decoding.keep(live_b)
                live_rows = [live_rows[i] for i in live]
                next_B, uniform_BT = next_B[live_b], uniform_BT[live_b]
            logits_BV = decoding.step(next_B)
        return out


def _closed_up(live: list[int]) -> list[int]:
    """These row numbers, in an order in which most rows stay where they are.

    The last rows fill the gaps of the finished ones, so that few keys and values must be moved.
    """
    kept, last = set(live), iter([i for i in live if i >= len(live)])
    return [i if i in kept else next(last) for i in range(len(live))]
