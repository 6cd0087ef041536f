"""Rules that all engines share: the context limit, end tokens, and what a finished response is."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import GenerationConfig, PreTrainedTokenizerBase

from policyalign_assets.engine.base import Generation, PromptTooLong


def check_lengths(prompts: Sequence[Sequence[int]], response: int, context: int) -> None:
    """Raises PromptTooLong if the longest prompt and `response` tokens exceed `context` tokens."""
    longest = max(map(len, prompts), default=0)
    if longest + response > context:
        raise PromptTooLong(
            f"a prompt of {longest} tokens and a response of up to {response} exceed the model's "
            f"context of {context}. Fix: shorten the policy or lower max_new_tokens; a policy is "
            "never truncated."
        )


def end_ids(
    generation_config: GenerationConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    """All token ids that end a response.

    Rollouts and training must use the same ids: a model that is trained on answers cut at other
    tokens learns to run on, and response lengths explode.
    """
    ids = generation_config.eos_token_id
    ids = ids if isinstance(ids, list) else [ids]
    return tuple(dict.fromkeys(i for i in (*ids, tokenizer.eos_token_id) if i is not None))


def answer_if(
    guess: Sequence[int], chosen: Sequence[int], sure: bool, ends: Sequence[int], most: int
) -> list[int]:
    """The tokens of the answer if they are those of `guess`, which has no end token; else none.

    chosen: what the model chooses for each token of the guess, and after it.
    sure: whether rounding decided no choice.
    """
    same = [*chosen[: len(guess)]] == [*guess[: len(chosen)]]
    over = chosen[-1] in ends if len(chosen) > len(guess) else len(chosen) == most
    inside = any(token in ends for token in chosen[:-1])
    return list(chosen) if sure and same and over and not inside else []


def finished(
    tokens: Sequence[int], ends: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> Generation:
    """A `Generation` from sampled tokens, which include the end token if one was produced."""
    stopped = bool(tokens) and tokens[-1] in ends
    text_tokens = list(tokens[:-1] if stopped else tokens)
    text = str(tokenizer.decode(text_tokens, skip_special_tokens=False))
    return Generation(text.strip(), tuple(tokens), "stop" if stopped else "length")
