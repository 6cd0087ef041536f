"""Hidden states and next-token logits of given responses: the one forward pass that sensitivity scoring and distillation share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from policyalign_assets.engine.shared_prefix import Prefix, attending_to, compute_prefix, shared_length


def prompt_prefix(model, prompts: Sequence[list[int]]) -> Prefix | None:
    """The prefix that all `prompts` share, computed with the weights of now; None where sharing cannot pay."""
    shared = shared_length(model.config, prompts)
    return compute_prefix(model, prompts[0][:shared]) if shared else None


def response_hidden(model, prompts: Sequence[list[int]], responses: Sequence[Sequence[int]], prefix: Prefix | None = None) -> torch.Tensor:
    """Hidden states that predict each response token: hidden_MD, rows concatenated in order, M = total response tokens.

    `prefix`: from `prompt_prefix`, and every prompt must start with it. Every response needs at least one token.
    """
    backbone = model.get_base_model() if hasattr(model, "get_base_model") else model
    with attending_to(model, prefix) as shared:
        suffixes = [p[shared:] for p in prompts]
        rows = [[*s, *r] for s, r in zip(suffixes, responses, strict=True)]
        width = max(map(len, rows))
        ids_BT = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)  # right padding
        lengths_B = torch.tensor([len(row) for row in rows], device=model.device)
        steps_T = torch.arange(width, device=model.device)
        hidden_BTD = backbone.model(input_ids=ids_BT, attention_mask=(steps_T[None] < lengths_B[:, None]).long(),
                                    position_ids=shared + steps_T[None].expand(len(rows), -1), use_cache=False).last_hidden_state
        # position t predicts token t + 1
        take = torch.tensor([(b, t) for b, (s, r) in enumerate(zip(suffixes, responses)) for t in range(len(s) - 1, len(s) - 1 + len(r))],
                            device=model.device)
        return hidden_BTD[take[:, 0], take[:, 1]]


def head(model) -> Callable[[torch.Tensor], torch.Tensor]:
    """hidden_MD -> logits_MV (float32), as the model itself computes them."""
    backbone = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = model.config.get_text_config()
    return lambda hidden_MD: _scaled(backbone.lm_head(hidden_MD).float(), config)


def response_logits(model, prompts: Sequence[list[int]], responses: Sequence[Sequence[int]], prefix: Prefix | None = None) -> torch.Tensor:
    """As `response_hidden`, through the head: logits_MV. No [B, T, V] tensor is made."""
    return head(model)(response_hidden(model, prompts, responses, prefix))


def _scaled(logits_MV: torch.Tensor, config) -> torch.Tensor:
    """What some models do to their logits after the head: Granite, Cohere, Gemma 2."""
    scale = (getattr(config, "logit_scale", None) or 1) / (getattr(config, "logits_scaling", None) or 1)
    logits_MV = logits_MV if scale == 1 else logits_MV * scale
    cap = getattr(config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits_MV / cap) if cap else logits_MV
