"""Checks that the engine computes what the model computes.

Scores and training read logits through the engine's own forward passes, and answers come from its
own decoding loop. Both are compared with the model's plain forward pass on random tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from policyalign_assets.doctor.record import Finding
from policyalign_assets.engine.choose_forward import forward_of
from policyalign_assets.engine.forward.scoring import prompt_prefix, response_logits
from policyalign_assets.engine.loading import LoadedModel

# Largest difference relative to the largest logit: some roundings of the dtype.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.06}
PREFIX, LENGTHS, STEPS = 20, (9, 5, 7), 3
ANOTHER_MODEL = (
    "use a model of another architecture; about 45 are known to work, such as Llama, Qwen, Gemma, "
    "Mistral, Phi and Granite"
)


@torch.inference_mode()
def logits_check(loaded: LoadedModel) -> Finding:
    """Compares the engine's logits, with and without a shared prefix, with the model's own."""
    rows = _random_rows(loaded)
    prompts, responses = [row[:-3] for row in rows], [row[-3:] for row in rows]
    try:
        forward = forward_of(loaded.model)
        forward.read()
        with forward.applied():
            given = [
                response_logits(forward, prompts, responses),
                response_logits(forward, prompts, responses, prompt_prefix(forward, prompts)),
            ]
        expected_MV = torch.cat([_own_logits(loaded, row)[-4:-1] for row in rows])
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        return _failed("logits", "the engine cannot score this model", error)
    worst = max(_difference(g, expected_MV) for g in given)
    return _compared("logits", worst, loaded, "scored log-probabilities")


@torch.inference_mode()
def decoding_check(loaded: LoadedModel) -> Finding:
    """Decodes three rows of different lengths for three steps, one of which ends after the first.

    Every step's logits are compared with a full forward pass over the text so far.
    """
    rows = [list(row) for row in _random_rows(loaded)]
    try:
        forward = forward_of(loaded.model)
        forward.read()
        worst = 0.0
        with forward.applied():
            decoding = forward.decoding(rows, STEPS)
            logits_BV = decoding.start()
            for step in range(STEPS):
                expected_BV = torch.stack([_own_logits(loaded, row)[-1] for row in rows])
                worst = max(worst, _difference(logits_BV, expected_BV))
                tokens_B = expected_BV.argmax(-1)
                if step == 0:  # the second row ends
                    live_b = torch.tensor([0, 2], device=loaded.device)
                    decoding.keep(live_b)
                    rows, tokens_B = [rows[0], rows[2]], tokens_B[live_b]
                if step + 1 < STEPS:
                    for row, token in zip(rows, tokens_B.tolist()):
                        row.append(token)
                    logits_BV = decoding.step(tokens_B)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        return _failed("decoding", "the engine cannot generate with this model", error)
    return _compared("decoding", worst, loaded, "three decoding steps with one row ending")


def _random_rows(loaded: LoadedModel) -> list[list[int]]:
    """Rows of different lengths that share a prefix. They avoid the first tokens of the vocabulary.

    Those are often control tokens, such as image placeholders, that models treat specially.
    """
    vocabulary = loaded.model.config.get_text_config().vocab_size
    draw = torch.Generator().manual_seed(0)
    lowest = min(100, vocabulary // 2)
    ids = torch.randint(lowest, vocabulary, (PREFIX + sum(LENGTHS),), generator=draw).tolist()
    prefix, rest = ids[:PREFIX], iter(ids[PREFIX:])
    return [prefix + [next(rest) for _ in range(length)] for length in LENGTHS]


def _own_logits(loaded: LoadedModel, row: Sequence[int]) -> torch.Tensor:
    """The model's own logits after each token of one row: logits_TV."""
    model: Any = loaded.model
    ids_1T = torch.tensor([list(row)], device=loaded.device)
    return model(input_ids=ids_1T, use_cache=False).logits[0].float()


def _difference(given: torch.Tensor, expected: torch.Tensor) -> float:
    difference = (given.float() - expected).abs().max() / expected.abs().max().clamp_min(1e-6)
    return float(difference.nan_to_num(float("inf")))


def _compared(check: str, worst: float, loaded: LoadedModel, subject: str) -> Finding:
    dtype: Any = loaded.model.dtype
    limit = TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16])
    if worst <= limit:
        return Finding(check, "ok", f"{subject} equal the model's own (difference {worst:.1g})")
    return Finding(
        check,
        "error",
        f"{subject} differ from the model's own by {worst:.2g} of the largest logit, where "
        f"rounding explains {limit:g}: {loaded.model.config.model_type} models compute something "
        "that the engine does not know",
        ANOTHER_MODEL + ".",
    )


def _failed(check: str, what: str, error: Exception) -> Finding:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return Finding(
        check, "error", f"{what} ({type(error).__name__}: {reason})", f"{ANOTHER_MODEL}."
    )
