"""Next-token logits of given responses: the one forward pass that sensitivity scoring and distillation share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from policyalign_assets.engine.batching import can_share_prefix, common_prefix
from policyalign_assets.engine.transformers_engine import MIN_SHARED, prefix_cache


def response_logits(model, prompts: Sequence[list[int]], responses: Sequence[Sequence[int]], share_prefix: bool = True) -> torch.Tensor:
    """Logits that predict each response token: logits_MV (float32), rows concatenated in order, M = total response tokens.

    The hidden states are cut to the response positions before the head, so no [B, T, V] tensor is made. With gradients on,
    call with `share_prefix=False` (the student has no policy to share). Every response needs at least one token.
    """
    shared = common_prefix(prompts) if share_prefix and len(prompts) > 1 and can_share_prefix(model.config) else 0
    shared = shared if shared >= MIN_SHARED else 0
    rows = [list(p[shared:]) + list(r) for p, r in zip(prompts, responses, strict=True)]
    width = max(map(len, rows))
    device = model.device
    ids_BT = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    lengths_B = torch.tensor([len(row) for row in rows], device=device)
    mask_BT = (torch.arange(width, device=device)[None] < lengths_B[:, None]).long()  # right padding
    positions_BT = shared + torch.arange(width, device=device)[None].expand(len(rows), -1)
    cache = None
    if shared:
        cache = prefix_cache(model, prompts[0][:shared], len(rows))
        mask_BT = torch.cat([mask_BT.new_ones(len(rows), shared), mask_BT], 1)
    backbone = (model.get_base_model() if hasattr(model, "get_base_model") else model)
    hidden_BTD = backbone.model(input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT,
                                past_key_values=cache, use_cache=cache is not None).last_hidden_state
    # position t predicts token t + 1
    take = torch.tensor([(b, t) for b, (p, r) in enumerate(zip(prompts, responses))
                         for t in range(len(p) - shared - 1, len(p) - shared - 1 + len(r))], device=device)
    return backbone.lm_head(hidden_BTD[take[:, 0], take[:, 1]]).float()
