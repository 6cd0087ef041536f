"""Checks that servers read a text with the log-probabilities with which they wrote it.

Scores of a model whose weights are at servers alone come from both ways. A server that counts
positions otherwise, or lists other than raw log-probabilities, would give scores without meaning.
"""

from __future__ import annotations

from policyalign_assets.doctor.record import Finding
from policyalign_assets.engine.base import EngineUnavailable, NotFinite, Sampling, chat
from policyalign_assets.engine.chat import render
from policyalign_assets.engine.generation.vllm_server_engine import VllmServerEngine

REQUEST, TOKENS = "What is the capital of France?", 16
TOLERANCE = 0.2  # nats: one pass over a text adds up in another order than token by token


def read_again_check(engine: VllmServerEngine, top: int) -> Finding:
    """Have every server write an answer and read it again. Lists `top` tokens, as scores do."""
    check = "served log-probabilities"
    prompts = [render(engine.tokenizer, chat(REQUEST))] * engine.replicas  # row n: server n
    try:
        made, written = engine.with_top_log_probs(prompts, Sampling(TOKENS), top)
        read = engine.read_responses(prompts, [g.token_ids for g in made], top)
    except (EngineUnavailable, NotFinite) as error:
        detail, _, fix = str(error).partition(" Fix: ")
        return Finding(check, "error", detail, fix)
    worst = max(
        abs(wrote[token] - reads[token])
        for generation, of_row, again in zip(made, written, read, strict=True)
        for token, wrote, reads in zip(generation.token_ids, of_row, again, strict=True)
    )
    if worst <= TOLERANCE:
        return Finding(check, "ok", f"a text that is read again differs by {worst:.2g} nats")
    return Finding(
        check,
        "error",
        f"a text that is read again differs by {worst:.2g} nats from what was written, where "
        f"rounding explains {TOLERANCE:g}",
        "start the servers with --logprobs-mode raw_logprobs and no speculative decoding.",
    )
