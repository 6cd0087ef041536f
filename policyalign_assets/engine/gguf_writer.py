"""Writes a transformers folder as a GGUF file, for llama.cpp and Ollama.

Llama and Qwen2 models with a byte-level BPE tokenizer are written with the package `gguf`, whose
tables name the tensors. Matrices are stored as 16-bit floats, vectors as 32-bit ones. Any other
model is refused: a wrong guess of its layout would be a silent fault.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

# Regular expressions that split text, by the name that llama.cpp has for them.
PRE_TOKENIZERS = {
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"
    r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "llama-bpe": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| "
    r"?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
ARCHITECTURES = {"qwen2": "QWEN2", "llama": "LLAMA"}


class CannotWriteGguf(ValueError):
    """The model or its tokenizer is of a kind that is not written. The message says which."""


def write_gguf(folder: Path, file: Path) -> None:
    """Writes the model in `folder` to `file`.

    Raises CannotWriteGguf before anything is written.
    """
    try:
        import gguf
    except ImportError:
        raise CannotWriteGguf(
            "the package gguf is not installed. Fix: pip install 'policyalign-assets[english]'."
        ) from None
    config = _json(folder / "config.json")
    kind = str(config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise CannotWriteGguf(
            f"models of type {kind!r} are not written, only {', '.join(ARCHITECTURES)}. Fix: "
            "export it with --merged and convert that folder with llama.cpp's "
            "convert_hf_to_gguf.py; then measure the result."
        )
    tokenizer = _Tokenizer(folder)
    architecture = gguf.MODEL_ARCH[ARCHITECTURES[kind]]
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(str(file), kind)
    _describe(writer, config)
    tokenizer.write(writer, config)
    heads = (config["num_attention_heads"], config.get("num_key_value_heads"))
    for weights in sorted(folder.glob("*.safetensors")):
        with safe_open(str(weights), "pt") as tensors:
            for name in sorted(tensors.keys()):
                written = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if written is None:
                    raise CannotWriteGguf(f"the tensor {name} has no name in GGUF.")
                tensor = tensors.get_tensor(name).float()
                if kind == "llama":
                    tensor = _reordered(name, tensor, heads)
                narrow = tensor.half() if tensor.dim() > 1 else tensor
                writer.add_tensor(written, narrow.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: Any, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise CannotWriteGguf(f"positions of kind {rope['rope_type']!r} are not written.")
    if config.get("head_dim") not in (None, config["hidden_size"] // heads):
        raise CannotWriteGguf("heads of a width of their own are not written.")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(float(rope.get("rope_theta", config.get("rope_theta", 10000.0))))


class _Tokenizer:
    """A byte-level BPE tokenizer. Raises CannotWriteGguf for any other."""

    def __init__(self, folder: Path) -> None:
        self.stored = _json(folder / "tokenizer.json")
        self.settings = _json(folder / "tokenizer_config.json")
        template = folder / "chat_template.jinja"
        self.template = (
            template.read_text(encoding="utf-8")
            if template.exists()
            else self.settings.get("chat_template")
        )
        model = self.stored["model"]
        steps = (self.stored.get("pre_tokenizer") or {}).get("pretokenizers") or [{}]
        pattern = (steps[0].get("pattern") or {}).get("Regex")
        known = {regex: name for name, regex in PRE_TOKENIZERS.items()}
        if model["type"] != "BPE" or pattern not in known:
            raise CannotWriteGguf(
                "only byte-level BPE tokenizers that split text as Qwen2's or Llama 3's do are "
                "written. Fix: export it with --merged and use llama.cpp's convert_hf_to_gguf.py."
            )
        self.pre_tokenizer = known[pattern]

    def write(self, writer: Any, config: dict[str, Any]) -> None:
        import gguf

        added = {t["id"]: t for t in self.stored["added_tokens"]}
        by_id = {i: text for text, i in self.stored["model"]["vocab"].items()}
        by_id |= {i: token["content"] for i, token in added.items()}
        size = config["vocab_size"]
        tokens = [by_id.get(i, f"[unused{i}]") for i in range(size)]
        kinds = [
            gguf.TokenType.UNUSED
            if i not in by_id
            else gguf.TokenType.CONTROL
            if i in added and added[i]["special"]
            else gguf.TokenType.USER_DEFINED
            if i in added
            else gguf.TokenType.NORMAL
            for i in range(size)
        ]
        merges = [m if isinstance(m, str) else " ".join(m) for m in self.stored["model"]["merges"]]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre_tokenizer)
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        writer.add_token_merges(merges)
        writer.add_add_bos_token(bool(self.settings.get("add_bos_token", False)))
        ids = {text: i for i, text in by_id.items()}
        for setting, add in (
            ("bos_token", writer.add_bos_token_id),
            ("eos_token", writer.add_eos_token_id),
            ("pad_token", writer.add_pad_token_id),
        ):
            token = self.settings.get(setting)
            text = token.get("content") if isinstance(token, dict) else token
            if text in ids:
                add(ids[text])
        if self.template:
            writer.add_chat_template(self.template)


def _reordered(name: str, tensor: torch.Tensor, heads: tuple[int, int | None]) -> torch.Tensor:
    """llama.cpp rotates neighbouring elements of a head, transformers its two halves."""
    if name.endswith(("q_proj.weight", "q_proj.bias")):
        count = heads[0]
    elif name.endswith(("k_proj.weight", "k_proj.bias")):
        count = heads[1] or heads[0]
    else:
        return tensor
    rest = tensor.shape[1:]
    halves = tensor.reshape(count, 2, tensor.shape[0] // count // 2, *rest)
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
