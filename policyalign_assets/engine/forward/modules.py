"""A `Forward` that calls the model's own modules, for any architecture, device and dtype."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from policyalign_assets.engine.forward.folded import Folded, fold, using
from policyalign_assets.engine.forward.kv_cache import (
    keep_rows,
    keeps_recurrent_state,
    roomy_cache,
)
from policyalign_assets.engine.forward.packed_rows import Rows, packed, packed_tokens
from policyalign_assets.engine.forward.padding import Padding
from policyalign_assets.engine.forward.protocol import Decoding
from policyalign_assets.engine.forward.shared_prefix import (
    Prefix,
    attending_to,
    can_share,
    compute_prefix,
)


def backbone_of(model: Any) -> Any:
    """The transformers model below a PEFT wrapper, or `model` itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class ModelForward:
    """A `Forward` by the model's own modules. LoRA is folded into copies of weights if possible."""

    copied = False

    def __init__(self, model: Any):
        self.model = model
        self._backbone = backbone_of(model)
        self._decoder = self._backbone.base_model
        if self._decoder is self._backbone:  # some models (Llama 4) misname their decoder
            self._decoder = getattr(self._backbone, "model", self._backbone)
        self._folded: Folded = {}

    # Outside inference mode, because generation calls `read` and training steps use the result.
    @torch.inference_mode(False)
    def read(self) -> None:
        self._folded = fold(self.model)

    @contextmanager
    def applied(self) -> Iterator[None]:
        with using(self.model, self._folded):
            yield

    def prefix(self, tokens: Sequence[int]) -> Prefix:
        return compute_prefix(self.model, tokens)

    def hidden(
        self, rows: Sequence[Sequence[int]], wanted: Sequence[slice], prefix: Prefix | None = None
    ) -> torch.Tensor:
        padding = Padding([len(row) for row in rows], self.model.device)
        ids_M, keep_M = packed_tokens(rows, wanted, self.model.device)
        if can_share(self.model):
            positions_M = padding.positions_M + (prefix.length if prefix else 0)
            with packed(self.model, Rows(padding, prefix)):
                hidden_MD = self._decoder(
                    input_ids=ids_M[None], position_ids=positions_M[None], use_cache=False
                ).last_hidden_state[0]
        else:
            hidden_MD = padding.pack(
                self._decoder(
                    input_ids=padding.pad(ids_M),
                    attention_mask=padding.real_BT.long(),
                    use_cache=False,
                ).last_hidden_state
            )
        return hidden_MD.index_select(0, keep_M)

    def logits(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        logits_MV = self._backbone.get_output_embeddings()(hidden_MD)
        scale, cap = logit_scale_and_cap(self.model.config.get_text_config())
        logits_MV = logits_MV if scale == 1 else logits_MV.float() * scale
        return cap * torch.tanh(logits_MV.float() / cap) if cap else logits_MV

    def decoding(
        self, suffixes: Sequence[Sequence[int]], room: int, prefix: Prefix | None = None
    ) -> Decoding:
        lengths = {len(s) for s in suffixes}
        if prefix is None and len(lengths) > 1 and keeps_recurrent_state(self.model.config):
            return _GroupedDecoding(self.model, suffixes, room)
        return _ModelDecoding(self.model, suffixes, room, prefix)


def logit_scale_and_cap(config: Any) -> tuple[float, float | None]:
    """What a model does to its logits after the head: a factor, then a soft cap.

    The model doctor compares the result with the model's own logits, so that a model of another
    kind is refused instead of scored wrongly.
    """
    scale = getattr(config, "logit_scale", None) or 1  # Cohere
    scale *= getattr(config, "lm_head_multiplier", None) or 1  # Falcon-H1
    scaling = getattr(config, "logits_scaling", None) or 1
    # HyperCLOVA X multiplies by the setting by which Granite and MiniCPM3 divide.
    multiplies = getattr(config, "model_type", "").startswith("hyperclovax")
    scale = scale * scaling if multiplies else scale / scaling
    # Gemma, and RecurrentGemma under another name.
    cap = getattr(config, "final_logit_softcapping", None) or getattr(
        config, "logits_soft_cap", None
    )
    return scale, cap


class _ModelDecoding:
    """Decodes a batch of left-padded rows."""

    def __init__(
        self, model: Any, suffixes: Sequence[Sequence[int]], room: int, prefix: Prefix | None
    ):
        self._model, self._prefix = model, prefix
        width, device = max(map(len, suffixes)), model.device
        self._ids_BT = torch.tensor(
            [[0] * (width - len(s)) + [*s] for s in suffixes], device=device
        )
        self._mask_BT = torch.tensor(
            [[0] * (width - len(s)) + [1] * len(s) for s in suffixes], device=device
        )
        self._positions_BT = (prefix.length if prefix else 0) + (
            self._mask_BT.cumsum(1) - 1
        ).clamp_min(0)
        self._cache = roomy_cache(model.config, width + room)

    def start(self) -> torch.Tensor:
        with attending_to(self._model, self._prefix):
            return self._model(
                input_ids=self._ids_BT,
                attention_mask=self._mask_BT,
                position_ids=self._positions_BT,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]

    def step(self, ids_B: torch.Tensor) -> torch.Tensor:
        self._ids_BT, self._positions_BT = ids_B[:, None], self._positions_BT[:, -1:] + 1
        self._mask_BT = torch.cat([self._mask_BT, self._mask_BT.new_ones(len(ids_B), 1)], 1)
        return self.start()

    def keep(self, live_b: torch.Tensor) -> None:
        keep_rows(self._cache, live_b)
        self._mask_BT, self._positions_BT = self._mask_BT[live_b], self._positions_BT[live_b]


class _GroupedDecoding:
    """Decodes rows of different lengths in groups of equal length, so that none is padded.

    Padding would enter the state of recurrent layers, which cannot be masked as attention can.
    """

    def __init__(self, model: Any, suffixes: Sequence[Sequence[int]], room: int):
        by_length: dict[int, list[int]] = {}
        for row, suffix in enumerate(suffixes):
            by_length.setdefault(len(suffix), []).append(row)
        self._device = model.device
        self._groups: list[tuple[list[int], _ModelDecoding]] = [
            (rows, _ModelDecoding(model, [suffixes[r] for r in rows], room, None))
            for rows in by_length.values()
        ]

    def start(self) -> torch.Tensor:
        return self._in_order([decoding.start() for _, decoding in self._groups])

    def step(self, ids_B: torch.Tensor) -> torch.Tensor:
        return self._in_order([decoding.step(ids_B[rows]) for rows, decoding in self._groups])

    def keep(self, live_b: torch.Tensor) -> None:
        new_place = {row: place for place, row in enumerate(live_b.tolist())}
        remaining = []
        for rows, decoding in self._groups:
            live = [i for i, row in enumerate(rows) if row in new_place]
            if not live:
                continue
            if len(live) < len(rows):
                decoding.keep(torch.tensor(live, device=self._device))
            remaining.append(([new_place[rows[i]] for i in live], decoding))
        self._groups = remaining

    def _in_order(self, logits: list[torch.Tensor]) -> torch.Tensor:
        """Joins the groups' logits in the order of the batch's rows: logits_BV."""
        places = [row for rows, _ in self._groups for row in rows]
        return torch.cat(logits)[torch.tensor(places, device=self._device).argsort()]
