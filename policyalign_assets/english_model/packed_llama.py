"""A Llama with LoRA adapters that runs many requests after one shared prefix, without padding.

The forward pass is written out because the lessons read attention weights in the middle of the
network, and because gradients are needed only down to the first adapted layer. The base weights are
frozen in float32; only the adapters are trained.
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
    return Packed(torch.tensor(ids), torch.tensor(positions), mask_TT, tuple(starts))


@dataclass(frozen=True)
class Watched:
    """The attention to return: that of `heads` in each of `layers`, at the tokens `rows_Q`."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    rows_Q: torch.Tensor


class PackedLlama:
    def __init__(
        self, folder: Path, rank: int, first_layer: int, scale: float = 2.0, seed: int = 0
    ):
        config = json.loads((folder / "config.json").read_text())
        self.heads, self.groups = config["num_attention_heads"], config["num_key_value_heads"]
        self.width, self.eps = config["hidden_size"], config["rms_norm_eps"]
        self.head = config.get("head_dim") or self.width // self.heads
        self.inner = config["intermediate_size"]
        self.kv = self.groups * self.head
        self.first, self.rank, self.scale = first_layer, rank, scale
        weights = load_file(folder / "model.safetensors")

        def weight(name: str) -> torch.Tensor:
            return weights[name].float().contiguous()

        self.embedding_VE, self.norm_E = (
            weight("model.embed_tokens.weight"),
            weight("model.norm.weight"),
        )
        self.head_VE = (
            self.embedding_VE if config.get("tie_word_embeddings") else weight("lm_head.weight")
        )
        self.layers = []
        for i in range(config["num_hidden_layers"]):
            p = f"model.layers.{i}."
            self.layers.append(
                {
                    "norm1": weight(p + "input_layernorm.weight"),
                    "norm2": weight(p + "post_attention_layernorm.weight"),
                    "qkv": torch.cat([weight(p + PROJECTIONS[n] + ".weight") for n in "qkv"]),
                    "o": weight(p + PROJECTIONS["o"] + ".weight"),
                    "gu": torch.cat([weight(p + PROJECTIONS[n] + ".weight") for n in "gu"]),
                    "d": weight(p + PROJECTIONS["d"] + ".weight"),
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
        outputs = dict.fromkeys("qod", self.width) | dict.fromkeys("kv", self.kv)
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

    def _delta(self, x_TI: torch.Tensor, layer: int, names: str) -> torch.Tensor:
        """Return what the adapters add to the projections `names`: [T, sum of output widths]."""
        low_TR = x_TI @ torch.cat([self.lora[f"{layer}.{n}.A"] for n in names]).T
        parts = [
            part @ self.lora[f"{layer}.{n}.B"].T
            for n, part in zip(names, low_TR.split(self.rank, -1), strict=True)
        ]
        return self.scale * torch.cat(parts, -1)

    def _rotated(self, x_HTD: torch.Tensor, position_T: torch.Tensor) -> torch.Tensor:
        half = self.head // 2
        turned = torch.cat([-x_HTD[..., half:], x_HTD[..., :half]], -1)
        return x_HTD * self.cos_PD[position_T] + turned * self.sin_PD[position_T]

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
        count = len(packed.ids_T)
        for i, weights in enumerate(self.layers):
            if i < begin:
                continue
            if i == until:
                return x_TE, seen
            lora = adapted and i >= self.first
            h_TE = F.rms_norm(x_TE, (self.width,), weights["norm1"], self.eps)
            qkv = h_TE @ weights["qkv"].T
            if lora:
                qkv = qkv + self._delta(h_TE, i, "qkv")
            q, k, v = qkv.split([self.heads * self.head, self.kv, self.kv], -1)
            q_HTD = self._rotated(q.view(count, -1, self.head).transpose(0, 1), packed.position_T)
            k_GTD = self._rotated(k.view(count, -1, self.head).transpose(0, 1), packed.position_T)
            v_GTD = v.view(count, -1, self.head).transpose(0, 1)
            if watched and i in watched.layers:
                seen.append(self._log_attention(q_HTD, k_GTD, packed.mask_TT, watched))
                if rows_N is None and len(seen) == len(watched.layers):
                    return None, seen
            mixed_HTD = F.scaled_dot_product_attention(
                q_HTD[None], k_GTD[None], v_GTD[None], packed.mask_TT[None, None], enable_gqa=True
            )[0]
            mixed_TE = mixed_HTD.transpose(0, 1).reshape(count, -1)
            if i == len(self.layers) - 1 and rows_N is not None:
                mixed_TE, x_TE = mixed_TE[rows_N], x_TE[rows_N]  # only these logits are needed
            z_TE = mixed_TE @ weights["o"].T
            x_TE = x_TE + (z_TE + self._delta(mixed_TE, i, "o") if lora else z_TE)
            h_TE = F.rms_norm(x_TE, (self.width,), weights["norm2"], self.eps)
            gu = h_TE @ weights["gu"].T
            if lora:
                gu = gu + self._delta(h_TE, i, "gu")
            gate, up = gu.chunk(2, -1)
            inner_TF = F.silu(gate) * up
            z_TE = inner_TF @ weights["d"].T
            x_TE = x_TE + (z_TE + self._delta(inner_TF, i, "d") if lora else z_TE)
        return F.rms_norm(x_TE, (self.width,), self.norm_E, self.eps) @ self.head_VE.T, seen

    def _log_attention(self, q_HTD, k_GTD, mask_TT, watched: Watched) -> torch.Tensor:
        group = self.heads // self.groups
        q_HQD = q_HTD[list(watched.heads)][:, watched.rows_Q]
        k_HTD = k_GTD[[h // group for h in watched.heads]]
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
