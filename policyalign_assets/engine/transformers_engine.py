"""Generation with Hugging Face transformers: runs anywhere, on CPU or GPU."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from transformers import DynamicCache, GenerationConfig

from policyalign_assets.engine.base import Chat, Generation, Progress, PromptTooLong, Sampling
from policyalign_assets.engine.batching import by_length, can_share_prefix, common_prefix
from policyalign_assets.engine.chat import render
from policyalign_assets.engine.loading import LoadedModel

log = logging.getLogger(__name__)
MIN_SHARED = 16  # tokens of common prefix from which one cache for the batch pays


class TransformersEngine:
    """An `Engine` over a loaded model. An adapter put on `loaded.model` (PEFT) is used as it is."""

    def __init__(self, loaded: LoadedModel, batch_tokens: int):
        self.loaded, self.batch_tokens = loaded, batch_tokens
        self.model_id, self.revision = loaded.model_id, loaded.revision

    def generate(self, chats: Sequence[Chat], sampling: Sampling, progress: Progress | None = None) -> list[Generation]:
        return self.generate_ids([render(self.loaded.tokenizer, c) for c in chats], sampling, progress)

    def generate_ids(self, prompts: Sequence[list[int]], sampling: Sampling, progress: Progress | None = None) -> list[Generation]:
        check_lengths(prompts, sampling.max_new_tokens, self.loaded.context)
        results: list[Generation | None] = [None] * len(prompts)
        torch.manual_seed(sampling.seed)
        done = 0
        for batch in by_length([len(p) + sampling.max_new_tokens for p in prompts], self.batch_tokens):
            for i, generation in zip(batch, self._generate_batch([prompts[i] for i in batch], sampling), strict=True):
                results[i] = generation
            done += len(batch)
            if progress:
                progress(done, len(prompts))
        return results

    @torch.inference_mode()
    def _generate_batch(self, prompts: list[list[int]], sampling: Sampling) -> list[Generation]:
        model, tokenizer = self.loaded.model, self.loaded.tokenizer
        pad, ends = tokenizer.pad_token_id, self.loaded.end_ids
        shared = common_prefix(prompts) if len(prompts) > 1 and can_share_prefix(model.config) else 0
        shared = shared if shared >= MIN_SHARED else 0
        cache = prefix_cache(model, prompts[0][:shared], len(prompts)) if shared else None
        # padding stands between the shared prefix and each row's own tokens: positions count unpadded tokens only
        width = max(map(len, prompts))
        ids_BP = torch.tensor([p[:shared] + [pad] * (width - len(p)) + p[shared:] for p in prompts], device=model.device)
        mask_BP = torch.tensor([[1] * shared + [0] * (width - len(p)) + [1] * (len(p) - shared) for p in prompts], device=model.device)
        out_BT = model.generate(
            input_ids=ids_BP, attention_mask=mask_BP, past_key_values=cache,
            # every field that shapes sampling is set here: a model's own generation_config must not change the distribution
            generation_config=GenerationConfig(
                max_new_tokens=sampling.max_new_tokens, do_sample=sampling.temperature > 0, temperature=sampling.temperature or 1.0,
                top_k=0, top_p=1.0, repetition_penalty=1.0, eos_token_id=list(ends), pad_token_id=pad, use_cache=True))
        texts = []
        for row in out_BT[:, width:].tolist():
            stop = next((i for i, t in enumerate(row) if t in ends), None)
            kept = row if stop is None else row[: stop + 1]
            text = tokenizer.decode(kept if stop is None else kept[:-1], skip_special_tokens=False)
            texts.append(Generation(text.strip(), tuple(kept), "length" if stop is None else "stop"))
        return texts


def check_lengths(prompts: Sequence[Sequence[int]], response: int, context: int) -> None:
    longest = max(map(len, prompts), default=0)
    if longest + response > context:
        raise PromptTooLong(f"a prompt of {longest} tokens and a response of up to {response} exceed the model's context of {context}. "
                            "Mend: shorten the policy or lower max_new_tokens; a policy is never truncated.")


def prefix_cache(model, prefix: list[int], rows: int) -> DynamicCache:
    """Key/values of `prefix`, computed once and repeated for `rows` rows. The cache is consumed by one forward pass or generation."""
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.tensor([prefix], device=model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(rows)
    return cache
