"""What all engines agree on: what fits into the context, which tokens end a response, and what a finished one looks like."""

from __future__ import annotations

from collections.abc import Sequence

from policyalign_assets.engine.base import Generation, PromptTooLong


def check_lengths(prompts: Sequence[Sequence[int]], response: int, context: int) -> None:
    longest = max(map(len, prompts), default=0)
    if longest + response > context:
        raise PromptTooLong(
            f"a prompt of {longest} tokens and a response of up to {response} exceed the model's context of {context}. "
            "Mend: shorten the policy or lower max_new_tokens; a policy is never truncated."
        )


def end_ids(generation_config, tokenizer) -> tuple[int, ...]:
    """Every id that ends a response: rollouts and training must agree on them (method.md: length explosion)."""
    ids = generation_config.eos_token_id
    ids = ids if isinstance(ids, list) else [ids]
    return tuple(dict.fromkeys(i for i in (*ids, tokenizer.eos_token_id) if i is not None))


def finished(tokens: Sequence[int], ends: Sequence[int], tokenizer) -> Generation:
    """`tokens` are the sampled ones, the end token included when the model produced one."""
    stopped = bool(tokens) and tokens[-1] in ends
    text = tokenizer.decode(tokens[:-1] if stopped else tokens, skip_special_tokens=False)
    return Generation(text.strip(), tuple(tokens), "stop" if stopped else "length")
