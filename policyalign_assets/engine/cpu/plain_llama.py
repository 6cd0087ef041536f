"""Llama-shaped models (Llama, Qwen2, Mistral) on a CPU in float32, without transformers' modules.

On a CPU, a small model spends its time on what surrounds the matrix products: module calls, masks,
padding, and a cache that grows token by token. Here a forward pass is a loop over layers. Tokens
are packed, and weights are copied into the layout that decoding needs, with LoRA folded in. Results
equal those of the modules up to rounding (tested for each architecture). Any other model, dtype or
device is computed by its modules (`forward/modules.py`). The release of the paper has no
counterpart, because it runs on GPUs only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM, MistralForCausalLM, PretrainedConfig, Qwen2ForCausalLM

from policyalign_assets.engine.cpu.plain_ops import (
    Linear,
    Part,
    RmsNorm,
    pairs_first,
    rotated_heads,
    swiglu,
)
from policyalign_assets.engine.forward.modules import backbone_of
from policyalign_assets.engine.forward.packed_rows import Rows, packed_tokens
from policyalign_assets.engine.forward.padding import Padding
from policyalign_assets.engine.forward.protocol import Decoding
from policyalign_assets.engine.forward.shared_prefix import Prefix, attend, can_share

ARCHITECTURES = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM)
# Kinds of rotary positions whose angles do not depend on the length of the text.
ROTARY = ("default", "linear", "llama3", "yarn")
# The copies double the memory. Compared with modules, answers take half the time at 5 M parameters,
# three quarters at 69 M, four fifths at 135 M (SmolLM2), and more time at 630 M.
MOST_PARAMETERS = 1 << 28
# Tokens of a forward pass. What lies between its matrix products then stays in the processor's
# cache: passes over 16,000 tokens take up to a third longer.
PASS_TOKENS = 2048
MOST_LOOKED_UP = 1 << 23  # numbers of the first layer's table: 32 MiB

# (layer, q_MHD, k_MGD, v_MGD) -> out_MHD
Attention = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def is_plain(model: Any) -> bool:
    """Whether `PlainLlama` computes what `model` does, PEFT's LoRA adapters included."""
    backbone = backbone_of(model)
    if type(backbone) not in ARCHITECTURES or model.device.type != "cpu" or not can_share(model):
        return False
    config = model.config
    adapted: list[Any] = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
    linear = [
        m
        for layer in backbone.model.layers
        for part in (layer.self_attn, layer.mlp)
        for m in part.children()
        if hasattr(m, "weight")
    ]
    return (
        all(
            type(m) in (torch.nn.Linear, LoraLinear) and type(Part(m).base) is torch.nn.Linear
            for m in linear
        )
        and {id(m) for m in adapted} <= {id(m) for m in linear}  # neither head nor embedding
        and not any(m.lora_variant or m.merged or any(m.lora_bias.values()) for m in adapted)
        and all(
            len(m.active_adapters) == 1 and m.lora_A.keys() == adapted[0].lora_A.keys()
            for m in adapted
        )
        and config.hidden_act == "silu"
        and config.rope_parameters["rope_type"] in ROTARY
        and all(
            p.dtype == torch.float32 and not isinstance(p, DTensor) for p in backbone.parameters()
        )
        and sum(p.numel() for p in backbone.parameters()) <= MOST_PARAMETERS
    )


class _Layer:
    def __init__(self, layer: Any, config: PretrainedConfig):
        attention, mlp = layer.self_attn, layer.mlp
        queries, keys = (
            pairs_first(n, attention.head_dim)
            for n in (config.num_attention_heads, config.num_key_value_heads)
        )
        self.qkv = Linear(
            Part(attention.q_proj, queries), Part(attention.k_proj, keys), Part(attention.v_proj)
        )
        self.out = Linear(Part(attention.o_proj))
        self.gate_up, self.down = (
            Linear(Part(mlp.gate_proj), Part(mlp.up_proj)),
            Linear(Part(mlp.down_proj)),
        )
        self.before_attention, self.before_mlp = (
            RmsNorm(norm.weight, config.rms_norm_eps)
            for norm in (layer.input_layernorm, layer.post_attention_layernorm)
        )

    def read(self) -> None:
        for linear in (self.qkv, self.out, self.gate_up, self.down):
            linear.read()


class PlainLlama:
    """A `Forward` that computes with copies of the weights.

    The base weights are copied when it is made; the active adapter then and at every `read()`.
    """

    copied = True

    def __init__(self, model: Any):
        self.model, self.config = model, model.config
        backbone = backbone_of(model)
        self.heads, self.groups = self.config.num_attention_heads, self.config.num_key_value_heads
        self.dim = backbone.model.layers[0].self_attn.head_dim
        self.scaling = self.dim**-0.5
        self._embeddings, self._rotary = backbone.model.embed_tokens, backbone.model.rotary_emb
        # Tensors made in inference mode could not take part in a training step.
        with torch.inference_mode(False):
            self.layers = [_Layer(layer, self.config) for layer in backbone.model.layers]
            self._norm, self._head = (
                RmsNorm(backbone.model.norm.weight, self.config.rms_norm_eps),
                Linear(Part(backbone.lm_head)),
            )
            self._rotations_P1F = torch.empty(0)
        self._first_VN: torch.Tensor | None = None
        self._computed = 0  # tokens since the last `read`
        self.read()

    @torch.inference_mode(False)
    def read(self) -> None:
        for layer in self.layers:
            layer.read()
        self._head.read()
        self._first_VN, self._computed = None, 0

    def applied(self) -> AbstractContextManager[None]:
        return nullcontext()

    def hidden(
        self, rows: Sequence[Sequence[int]], wanted: Sequence[slice], prefix: Prefix | None = None
    ) -> torch.Tensor:
        # With gradients, one pass: its caller has chosen how much is kept for the way back.
        parts = [slice(None)] if torch.is_grad_enabled() else _passes([len(row) for row in rows])
        return torch.cat([self._hidden(rows[part], wanted[part], prefix) for part in parts])

    def _hidden(
        self, rows: Sequence[Sequence[int]], wanted: Sequence[slice], prefix: Prefix | None
    ) -> torch.Tensor:
        padding = Padding([len(r) for r in rows], self.model.device)
        ids_M, keep_M = packed_tokens(rows, wanted, self.model.device)
        return self._run(
            ids_M,
            (prefix.length if prefix else 0) + padding.positions_M,
            self._rows(padding, prefix),
            keep_M,
        )

    @torch.no_grad()
    def prefix(self, tokens: Sequence[int]) -> Prefix:
        layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        attention = self._rows(Padding([len(tokens)], self.model.device))

        def recorded(
            layer: int, q_MHD: torch.Tensor, k_MGD: torch.Tensor, v_MGD: torch.Tensor
        ) -> torch.Tensor:
            layers.append((k_MGD.transpose(0, 1).contiguous(), v_MGD.transpose(0, 1).contiguous()))
            return attention(layer, q_MHD, k_MGD, v_MGD)

        ids_M, positions_M = torch.tensor(list(tokens)), torch.arange(len(tokens))
        self._run(ids_M, positions_M, recorded, torch.tensor([0]))
        return Prefix(len(tokens), layers)

    def logits(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        return self._head(hidden_MD)

    def decoding(
        self, suffixes: Sequence[Sequence[int]], room: int, prefix: Prefix | None = None
    ) -> Decoding:
        return _Decoding(self, suffixes, room, prefix)

    def _rows(self, padding: Padding, prefix: Prefix | None = None) -> Attention:
        return partial(Rows(padding, prefix).attention, scaling=self.scaling)

    def _run(
        self,
        ids_M: torch.Tensor,
        positions_M: torch.Tensor,
        attention: Attention,
        keep_M: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states of the tokens `keep_M`, or of all if None.

        The other tokens are dropped after the last attention, where nothing depends on them.
        """
        x_MD = torch.nn.functional.embedding(ids_M, self._embeddings.weight).detach()
        rotations_M1F = self._rotations(positions_M)
        for i, layer in enumerate(self.layers):
            first_MN = self._first(ids_M) if i == 0 else None
            qkv_MN = layer.qkv(layer.before_attention(x_MD)) if first_MN is None else first_MN
            out_MN = attention(
                i, *rotated_heads(qkv_MN, rotations_M1F, self.heads, self.groups)
            ).flatten(1)
            if keep_M is not None and i == len(self.layers) - 1:
                x_MD, out_MN = x_MD.index_select(0, keep_M), out_MN.index_select(0, keep_M)
            x_MD = layer.out(out_MN, x_MD)
            x_MD = layer.down(swiglu(layer.gate_up(layer.before_mlp(x_MD))), x_MD)
        return self._norm(x_MD)

    def _first(self, ids_M: torch.Tensor) -> torch.Tensor | None:
        """Queries, keys and values of the first layer, which depend on the tokens alone: qkv_MN.

        Once more tokens have been computed than the vocabulary has, it is computed for each of
        those, and looked up from then on. None before, with gradients, or where it is too large.
        """
        size = len(self._embeddings.weight)
        if torch.is_grad_enabled() or size * self.layers[0].qkv.weight_IO.shape[1] > MOST_LOOKED_UP:
            return None
        if self._first_VN is None:
            self._computed += len(ids_M)
            if self._computed <= size:
                return None
            layer = self.layers[0]
            self._first_VN = layer.qkv(layer.before_attention(self._embeddings.weight.detach()))
        return self._first_VN.index_select(0, ids_M)

    def _rotations(self, positions_M: torch.Tensor) -> torch.Tensor:
        """The rotary angles at `positions_M` as complex numbers, cosine + i sine: rotations_M1F."""
        if (most := int(positions_M.max())) >= len(self._rotations_P1F):
            with torch.inference_mode(False), torch.no_grad():
                cos_1PD, sin_1PD = self._rotary(
                    self._embeddings.weight, torch.arange(2 * most + 1)[None]
                )
                half = cos_1PD.shape[-1] // 2  # both halves are equal
                self._rotations_P1F = torch.complex(
                    cos_1PD[0, :, None, :half].contiguous(), sin_1PD[0, :, None, :half].contiguous()
                )
        return self._rotations_P1F[positions_M]


def _passes(lengths: Sequence[int]) -> list[slice]:
    """Splits rows of these lengths into runs of at most PASS_TOKENS tokens, or of a single row."""
    ends, tokens = [0], 0
    for row, length in enumerate(lengths):
        if tokens and tokens + length > PASS_TOKENS:
            ends, tokens = [*ends, row], 0
        tokens += length
    return [slice(*bounds) for bounds in itertools.pairwise([*ends, len(lengths)])]


class _Decoding:
    """A batch of rows that grow by one token at a time.

    Key/values are left-padded, so that each step writes a single column.
    """

    def __init__(
        self, plain: PlainLlama, suffixes: Sequence[Sequence[int]], room: int, prefix: Prefix | None
    ):
        self._plain, self._prefix = plain, prefix
        lengths = [len(s) for s in suffixes]
        self._width, self._offset = max(lengths), prefix.length if prefix else 0
        shape = (len(suffixes), plain.groups, self._width + room, plain.dim)
        # keys_BGSD and values_BGSD of each layer
        self._cache = [(torch.empty(shape), torch.empty(shape)) for _ in plain.layers]
        padded_B1 = self._width - torch.tensor(lengths)[:, None]
        self._masked = min(lengths) < self._width
        self._mask_B11S = torch.where(torch.arange(shape[2]) < padded_B1, -torch.inf, 0.0)[
            :, None, None
        ]
        self._positions_B = self._offset + torch.tensor(lengths)
        self._suffixes, self._lengths = suffixes, lengths

    def start(self) -> torch.Tensor:
        """logits_BV after the suffixes."""
        return torch.cat([self._started(rows) for rows in _passes(self._lengths)])

    def _started(self, rows: slice) -> torch.Tensor:
        lengths = self._lengths[rows]
        padding = Padding(lengths, self._plain.model.device)
        attend_rows, width = self._plain._rows(padding, self._prefix), self._width
        lengths_b = torch.tensor(lengths)
        firsts_b = lengths_b.cumsum(0) - lengths_b
        source_bT = (firsts_b - (width - lengths_b))[:, None] + torch.arange(width)
        source_N = torch.where(source_bT >= firsts_b[:, None], source_bT, 0).flatten()

        def attention(
            layer: int, q_MHD: torch.Tensor, k_MGD: torch.Tensor, v_MGD: torch.Tensor
        ) -> torch.Tensor:
            for cache_BGSD, new_MGD in zip(self._cache[layer], (k_MGD, v_MGD)):
                cache_BGSD[rows, :, :width] = (
                    new_MGD[source_N].unflatten(0, (-1, width)).transpose(1, 2)
                )
            return attend_rows(layer, q_MHD, k_MGD, v_MGD)

        ids_M = torch.tensor([token for suffix in self._suffixes[rows] for token in suffix])
        hidden_bD = self._plain._run(
            ids_M, self._offset + padding.positions_M, attention, firsts_b + lengths_b - 1
        )
        return self._plain.logits(hidden_bD)

    def step(self, ids_B: torch.Tensor) -> torch.Tensor:
        """logits_BV after one more token a row."""
        at, end = self._width, self._width + 1
        mask_B11S = self._mask_B11S[..., :end] if self._masked else None

        def attention(
            layer: int, q_BHD: torch.Tensor, k_BGD: torch.Tensor, v_BGD: torch.Tensor
        ) -> torch.Tensor:
            keys_BGSD, values_BGSD = self._cache[layer]
            keys_BGSD.select(2, at).copy_(k_BGD)
            values_BGSD.select(2, at).copy_(v_BGD)
            keys_BGSD, values_BGSD, q_BH1D = (
                keys_BGSD.narrow(2, 0, end),
                values_BGSD.narrow(2, 0, end),
                q_BHD.unsqueeze(2),
            )
            if self._prefix:
                return attend(
                    q_BH1D,
                    keys_BGSD,
                    values_BGSD,
                    self._prefix.layers[layer],
                    self._plain.scaling,
                    mask_B11S,
                )
            return torch.nn.functional.scaled_dot_product_attention(
                q_BH1D, keys_BGSD, values_BGSD, mask_B11S, enable_gqa=True
            )

        hidden_BD = self._plain._run(ids_B, self._positions_B, attention)
        self._width, self._positions_B = end, self._positions_B + 1
        return self._plain.logits(hidden_BD)

    def keep(self, live_b: torch.Tensor) -> None:
        """Drops all other rows. A row that keeps its place is not copied."""
        moved_m = (live_b != torch.arange(len(live_b))).nonzero().flatten()
        for cache_BGSD in (c for layer in self._cache for c in layer):
            used_BGSD = cache_BGSD.narrow(2, 0, self._width)
            used_BGSD[moved_m] = used_BGSD[live_b[moved_m]]
        self._cache = [
            (keys_BGSD.narrow(0, 0, len(live_b)), values_BGSD.narrow(0, 0, len(live_b)))
            for keys_BGSD, values_BGSD in self._cache
        ]
        self._mask_B11S, self._positions_B = self._mask_B11S[live_b], self._positions_B[live_b]
