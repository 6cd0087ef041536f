"""A Llama with LoRA adapters that runs many requests after one shared prefix, without padding.

The forward pass is written out because the lessons read attention weights in the middle of the
network, and because gradients are needed only down to the first adapted layer. The base weights are
frozen. Matrix products use `dtype`; the residual stream and the adapters, which alone are trained,
stay in float32.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

# Maps our short name of a projection to its name in transformers.
PROJECTIONS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "g": "mlp.gate_proj",
    "u": "mlp.up_proj",
    "d": "mlp.down_proj",
}


@dataclass(frozen=True)
class Packed:
    """One sequence of T tokens: the prefix, then the requests.

    A request sees only the prefix and itself, and its positions continue from the prefix.
    """

    ids_T: torch.Tensor
    position_T: torch.Tensor
    mask_TT: torch.Tensor  # True where the row may attend to the column
    starts: tuple[int, ...]  # index of each request's first token
    own_ML: torch.Tensor  # the requests' tokens, padded with their first one to L columns
    place_S: torch.Tensor  # where the requests' tokens lie in `own_ML`, counted row by row


def pack(prefix: Sequence[int], requests: Sequence[Sequence[int]]) -> Packed:
    ids, positions, owner, starts = list(prefix), list(range(len(prefix))), [-1] * len(prefix), []
    for number, request in enumerate(requests):
        starts.append(len(ids))
        ids += request
        positions += range(len(prefix), len(prefix) + len(request))
        owner += [number] * len(request)
    owner_T = torch.tensor(owner)
    causal_TT = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    mask_TT = causal_TT & ((owner_T[None] == -1) | (owner_T[None] == owner_T[:, None]))
    longest = max(map(len, requests), default=0)
    own_ML = torch.tensor(
        [
            [start + (n if n < len(request) else 0) for n in range(longest)]
            for start, request in zip(starts, requests, strict=True)
        ],
        dtype=torch.long,
    )
    places = [m * longest + n for m, request in enumerate(requests) for n in range(len(request))]
    return Packed(
        torch.tensor(ids),
        torch.tensor(positions),
        mask_TT,
        tuple(starts),
        own_ML,
        torch.tensor(places, dtype=torch.long),
    )


@dataclass(frozen=True)
class Watched:
    """The attention to return: that of `heads` in each of `layers`, at the tokens `rows_Q`."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    rows_Q: torch.Tensor


Adapters = list[tuple[torch.Tensor, torch.Tensor]]


def _projected(
    x_TI: torch.Tensor, weight_OI: torch.Tensor, widths: list[int], adapters: Adapters, scale: float
) -> list[torch.Tensor]:
    """Return projections of these widths that share an input, with their adapters if there are
    any."""
    parts = list((x_TI @ weight_OI.T).split(widths, -1))
    dtype = x_TI.dtype
    for n, (a_RI, b_OR) in enumerate(adapters):
        low_TR = x_TI @ a_RI.to(dtype).T
        parts[n] = torch.addmm(parts[n], low_TR, b_OR.to(dtype).T, alpha=scale)
    return parts


def _before_attention(
    x_TE: torch.Tensor,
    norm_E: torch.Tensor,
    weight_OE: torch.Tensor,
    adapters: Adapters,
    rotation: tuple[torch.Tensor, torch.Tensor],
    shape: tuple[int, int, int],
    scale: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries [H, T, D], keys and values [G, T, D]."""
    heads, groups, width = shape
    h_TE = F.rms_norm(x_TE, norm_E.shape, norm_E, eps).to(weight_OE.dtype)
    widths = [heads * width, groups * width, groups * width]
    cos_TD, sin_TD = (part.to(h_TE.dtype) for part in rotation)
    made = []
    for n, part in enumerate(_projected(h_TE, weight_OE, widths, adapters, scale)):
        x_HTD = part.view(len(part), -1, width).transpose(0, 1)
        if n < 2:
            first, second = x_HTD.chunk(2, -1)
            x_HTD = x_HTD * cos_TD + torch.cat([-second, first], -1) * sin_TD
        made.append(x_HTD)
    return made[0], made[1], made[2]


def _after_attention(
    mixed_TE: torch.Tensor,
    x_TE: torch.Tensor,
    norm_E: torch.Tensor,
    weights: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    adapters: Adapters,
    scale: float,
    eps: float,
) -> torch.Tensor:
    """Return the layer's output [T, E]. `weights` and `adapters` are of o, gate and up, and d."""
    out, gate_up, down = weights
    x_TE = x_TE + _projected(mixed_TE, out, [len(out)], adapters[:1], scale)[0]
    h_TE = F.rms_norm(x_TE, norm_E.shape, norm_E, eps).to(out.dtype)
    inner = len(gate_up) // 2
    gate_TF, up_TF = _projected(h_TE, gate_up, [inner, inner], adapters[1:3], scale)
    return x_TE + _projected(F.silu(gate_TF) * up_TF, down, [len(down)], adapters[3:], scale)[0]


class PackedLlama:
    def __init__(
        self,
        folder: Path,
        rank: int,
        first_layer: int,
        scale: float = 2.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ):
        config = json.loads((folder / "config.json").read_text())
        self.heads, self.groups = config["num_attention_heads"], config["num_key_value_heads"]
        self.width, self.eps = config["hidden_size"], config["rms_norm_eps"]
        self.head = config.get("head_dim") or self.width // self.heads
        self.inner = config["intermediate_size"]
        self.first, self.rank, self.scale = first_layer, rank, scale
        weights = load_file(folder / "model.safetensors")

        def weight(name: str) -> torch.Tensor:
            return weights[name].float().contiguous()

        def matrix(*names: str) -> torch.Tensor:
            return torch.cat([weights[name] for name in names]).to(dtype)

        self.dtype = dtype
        self.embedding_VE, self.norm_E = (
            weight("model.embed_tokens.weight"),
            weight("model.norm.weight"),
        )
        tied = config.get("tie_word_embeddings")
        self.head_VE = matrix("model.embed_tokens.weight" if tied else "lm_head.weight")
        self.layers = []
        for i in range(config["num_hidden_layers"]):
            p = f"model.layers.{i}."
            self.layers.append(
                {
                    "norm1": weight(p + "input_layernorm.weight"),
                    "norm2": weight(p + "post_attention_layernorm.weight"),
                    **{
                        together: matrix(*(p + PROJECTIONS[n] + ".weight" for n in together))
                        for together in ("qkv", "o", "gu", "d")
                    },
                }
            )
        self.lora = self._fresh_adapters(seed)
        theta = (config.get("rope_parameters") or {}).get("rope_theta") or config["rope_theta"]
        frequency = theta ** -(torch.arange(0, self.head, 2).float() / self.head)
        angle_PD = torch.outer(torch.arange(config["max_position_embeddings"]).float(), frequency)
        angle_PD = torch.cat([angle_PD, angle_PD], -1)
        self.cos_PD, self.sin_PD = angle_PD.cos(), angle_PD.sin()

    def _fresh_adapters(self, seed: int) -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(seed)
        inputs = dict.fromkeys("qkvogu", self.width) | {"d": self.inner}
        outputs = dict.fromkeys("qod", self.width) | dict.fromkeys("kv", self.groups * self.head)
        outputs |= dict.fromkeys("gu", self.inner)
        lora = {}
        for i in range(self.first, len(self.layers)):
            for n in PROJECTIONS:
                lora[f"{i}.{n}.A"] = torch.randn(self.rank, inputs[n], generator=draw) / math.sqrt(
                    inputs[n]
                )
                lora[f"{i}.{n}.B"] = torch.zeros(outputs[n], self.rank)
        return {name: tensor.requires_grad_() for name, tensor in lora.items()}

    def set_adapters(self, lora: Mapping[str, torch.Tensor]) -> None:
        """Copy the given values into the adapters of these names; leave the others unchanged."""
        with torch.no_grad():
            for name, tensor in lora.items():
                self.lora[name].copy_(tensor)

    def _adapters(self, layer: int, names: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(self.lora[f"{layer}.{n}.A"], self.lora[f"{layer}.{n}.B"]) for n in names]

    def forward(
        self,
        packed: Packed,
        rows_N: torch.Tensor | None,
        watched: Watched | None = None,
        adapted: bool = True,
        until: int | None = None,
        resume: tuple[int, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Return logits [N, V] at `rows_N`, and log attention [Q, heads, T] of each watched layer.

        Without `rows_N`, the pass ends in the last watched layer, and the logits are None. With
        `until`, the pass ends before that layer and returns its input [T, E] in place of the
        logits. `resume` gives a layer to begin at, and its input.
        """
        seen: list[torch.Tensor] = []
        begin, x_TE = resume or (0, self.embedding_VE[packed.ids_T])
        for i, weights in enumerate(self.layers):
            if i < begin:
                continue
            if i == until:
                return x_TE, seen
            lora = adapted and i >= self.first
            q_HTD, k_GTD, v_GTD = _before_attention(
                x_TE,
                weights["norm1"],
                weights["qkv"],
                self._adapters(i, "qkv") if lora else [],
                (self.cos_PD[packed.position_T], self.sin_PD[packed.position_T]),
                (self.heads, self.groups, self.head),
                self.scale,
                self.eps,
            )
            if watched and i in watched.layers:
                seen.append(self._log_attention(q_HTD, k_GTD, packed.mask_TT, watched))
                if rows_N is None and len(seen) == len(watched.layers):
                    return None, seen
            mixed_TE = self._mixed(q_HTD, k_GTD, v_GTD, packed)
            if i == len(self.layers) - 1 and rows_N is not None:
                mixed_TE, x_TE = mixed_TE[rows_N], x_TE[rows_N]  # only these logits are needed
            x_TE = _after_attention(
                mixed_TE,
                x_TE,
                weights["norm2"],
                (weights["o"], weights["gu"], weights["d"]),
                self._adapters(i, "ogud") if lora else [],
                self.scale,
                self.eps,
            )
        last_NE = F.rms_norm(x_TE, (self.width,), self.norm_E, self.eps).to(self.dtype)
        return (last_NE @ self.head_VE.T).float(), seen

    def _mixed(
        self, q_HTD: torch.Tensor, k_GTD: torch.Tensor, v_GTD: torch.Tensor, packed: Packed
    ) -> torch.Tensor:
        """Return the attention's output [T, E].

        One call with the mask [T, T] would spend most of its time on pairs of different requests.
        """
        length = packed.starts[0] if packed.starts else len(packed.ids_T)
        first_HPD, key_GPD, value_GPD = q_HTD[:, :length], k_GTD[:, :length], v_GTD[:, :length]
        prefix_HPD = F.scaled_dot_product_attention(
            first_HPD[None], key_GPD[None], value_GPD[None], is_causal=True, enable_gqa=True
        )[0]
        prefix_PE = prefix_HPD.transpose(0, 1).reshape(length, self.heads * self.head)
        if not packed.starts:
            return prefix_PE
        own_ML = packed.own_ML
        count, longest = own_ML.shape

        groups, width = self.groups, self.heads // self.groups
        q_GWMLD = q_HTD[:, own_ML].view(groups, width, count, longest, self.head)
        q_GWMLD = q_GWMLD / math.sqrt(self.head)
        k_GMLD, v_GMLD = k_GTD[:, own_ML], v_GTD[:, own_ML]
        to_prefix = q_GWMLD.reshape(groups, -1, self.head) @ key_GPD.transpose(1, 2)
        to_own = q_GWMLD @ k_GMLD.transpose(2, 3)[:, None]
        # A padded column lies after every token of its request, so this hides it as well.
        later_LL = torch.ones(longest, longest, dtype=torch.bool).triu(1)
        to_own = to_own.masked_fill(later_LL, -torch.inf)
        scores = torch.cat([to_prefix.view(*to_own.shape[:-1], length), to_own], -1)
        to_prefix, to_own = scores.softmax(-1).split([length, longest], -1)
        rows = width * count * longest
        mixed = (to_prefix.reshape(groups, rows, length) @ value_GPD).view_as(q_GWMLD)
        mixed = mixed + to_own @ v_GMLD[:, None]
        mixed_SE = mixed.permute(2, 3, 0, 1, 4).reshape(count * longest, -1)
        return torch.cat([prefix_PE, mixed_SE[packed.place_S]])

    def _log_attention(self, q_HTD, k_GTD, mask_TT, watched: Watched) -> torch.Tensor:
        group = self.heads // self.groups
        q_HQD = q_HTD[list(watched.heads)][:, watched.rows_Q].float()
        k_HTD = k_GTD[[h // group for h in watched.heads]].float()
        scores_HQT = q_HQD @ k_HTD.transpose(1, 2) / math.sqrt(self.head)
        scores_HQT = scores_HQT.masked_fill(~mask_TT[watched.rows_Q], -1e9)
        return F.log_softmax(scores_HQT, -1).transpose(0, 1)

    def save_adapter(self, folder: Path, base: str) -> None:
        """Save the adapter in PEFT's format, in bfloat16.

        Projections that were never trained (B is all zero) are left out.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors, layers = {}, set()
        for name, tensor in self.lora.items():
            layer, projection, side = name.split(".")
            if self.lora[f"{layer}.{projection}.B"].abs().max() == 0:
                continue
            layers.add(int(layer))
            module = f"base_model.model.model.layers.{layer}.{PROJECTIONS[projection]}"
            key = f"{module}.lora_{side}.weight"
            tensors[key] = tensor.detach().to(torch.bfloat16).contiguous()
        save_file(tensors, folder / "adapter_model.safetensors")
        settings = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.rank,
            "lora_alpha": self.scale * self.rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "inference_mode": True,
            "target_modules": sorted({n.split(".")[-1] for n in PROJECTIONS.values()}),
            "layers_to_transform": sorted(layers),
        }
        (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def read_adapter(folder: Path) -> dict[str, torch.Tensor]:
    """Read what `save_adapter` wrote, with this module's names, in float32."""
    short = {long.split(".")[-1]: n for n, long in PROJECTIONS.items()}
    adapters = {}
    for key, tensor in load_file(folder / "adapter_model.safetensors").items():
        layer, _, projection, side, _ = key.split(".layers.")[1].split(".")
        adapters[f"{layer}.{short[projection]}.{side[-1]}"] = tensor.float()
    return adapters
