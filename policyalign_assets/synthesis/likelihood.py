"""How likely the model itself finds requests after a context: the scorer behind `attribution`.

One forward pass per context reads all requests: the context is computed once and shared, and the
requests are batched by length. No gradient, no sampling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from policyalign_assets.engine.batching import by_length
from policyalign_assets.engine.chat import content_ids
from policyalign_assets.engine.choose_forward import forward_of
from policyalign_assets.engine.forward.scoring import prompt_prefix, response_hidden
from policyalign_assets.engine.loading import LoadedModel
from policyalign_assets.synthesis.attribution import LogProb

_LOGITS = 1 << 24  # numbers at a time (64 MiB in float32)


class LikelihoodScorer:
    """Log-probabilities under `loaded`, which must be on no adapter. Remembers what it computed."""

    def __init__(self, loaded: LoadedModel, batch_tokens: int):
        self.id = f"{loaded.model_id}@{loaded.revision}"
        self._loaded, self._batch_tokens = loaded, batch_tokens
        self._forward = forward_of(loaded.model)
        self._known: dict[tuple[str, str], LogProb] = {}

    def log_probs(self, context: str, requests: Sequence[str]) -> list[LogProb]:
        """log p(request | context) of each request. Both are untrusted text."""
        new = [r for r in dict.fromkeys(requests) if (context, r) not in self._known]
        if new:
            for request, found in zip(new, self._computed(context, new), strict=True):
                self._known[context, request] = found
        return [self._known[context, request] for request in requests]

    @torch.inference_mode()
    def _computed(self, context: str, requests: Sequence[str]) -> list[LogProb]:
        tokenizer = self._loaded.tokenizer
        prompt = [*self._start(), *content_ids(tokenizer, context)]
        # The break stays a token of its own, so every request starts at the same place.
        prompt += tokenizer("\n", add_special_tokens=False).input_ids
        room = self._loaded.context - len(prompt)
        rows = [content_ids(tokenizer, request)[: max(room, 0)] for request in requests]
        results = [LogProb(0.0, 0)] * len(rows)
        todo = [i for i, row in enumerate(rows) if row]
        if not todo:
            return results
        self._forward.read()
        with self._forward.applied():
            prefix = prompt_prefix(self._forward, [prompt] * max(2, len(todo)))
            shared = prefix.length if prefix else 0
            lengths = [len(prompt) - shared + len(rows[i]) for i in todo]
            for batch in by_length(lengths, self._batch_tokens):
                places = [todo[j] for j in batch]
                tokens = [rows[i] for i in places]
                hidden_MD = response_hidden(self._forward, [prompt] * len(tokens), tokens, prefix)
                logps_M = self._token_logps(hidden_MD, [t for row in tokens for t in row])
                for i, row_logps in zip(places, logps_M.split([len(t) for t in tokens])):
                    results[i] = LogProb(row_logps.sum().item(), len(row_logps))
        return results

    def _token_logps(self, hidden_MD: torch.Tensor, tokens: list[int]) -> torch.Tensor:
        """Log-probability of each token: logps_M in float32."""
        ids_M = torch.tensor(tokens, device=hidden_MD.device)
        step = max(1, _LOGITS // self._loaded.model.config.get_text_config().vocab_size)
        parts = []
        for at in range(0, len(tokens), step):
            logits_NV = self._forward.logits(hidden_MD[at : at + step]).float()
            chosen_N = logits_NV.gather(1, ids_M[at : at + step, None])[:, 0]
            parts.append(chosen_N - logits_NV.logsumexp(-1))
        return torch.cat(parts).cpu()

    def _start(self) -> list[int]:
        """The token that starts every text, for tokenizers that have one."""
        tokenizer = self._loaded.tokenizer
        ids = tokenizer("a").input_ids
        return ids[:1] if ids and ids[0] == tokenizer.bos_token_id else []
