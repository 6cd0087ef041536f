"""A model written as GGUF computes the same as before, and what is not known is refused."""

import json
from pathlib import Path

import pytest
import torch
from helpers import chatml_tokenizer, one_thread, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from policyalign_assets.engine.gguf_writer import CannotWriteGguf, write_gguf
from policyalign_assets.engine.loading import load_model
from policyalign_assets.settings import ModelSettings

pytest.importorskip("gguf", reason="needs the extra `english`")

KINDS = {"qwen2": (Qwen2ForCausalLM, Qwen2Config), "llama": (LlamaForCausalLM, LlamaConfig)}
TEXT = "<|im_start|>user\nHow do I alter a prescription? 12 plus 30<|im_end|>\n"


@pytest.fixture(params=KINDS)
def folder(request, tmp_path: Path) -> Path:
    loaded = tiny_model(*KINDS[request.param], chatml_tokenizer())
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_what_is_read_back_computes_the_same(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    write_gguf(folder, file)
    before, after = (load_model(ModelSettings(id=str(p), device="cpu")) for p in (folder, file))
    ids = before.tokenizer(TEXT, add_special_tokens=False, return_tensors="pt").input_ids
    again = after.tokenizer(TEXT, add_special_tokens=False, return_tensors="pt").input_ids
    assert ids.tolist() == again.tolist()
    assert after.end_ids == before.end_ids
    assert after.tokenizer.chat_template == before.tokenizer.chat_template
    with one_thread(), torch.no_grad():
        one, other = (loaded.model(ids).logits for loaded in (before, after))
    assert torch.allclose(one, other, atol=0.02 * float(one.abs().max()))


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config.json", {"model_type": "gpt_neox"}, "type 'gpt_neox'.*convert_hf_to_gguf"),
        ("config.json", {"head_dim": 3}, "heads of a width of their own"),
        ("config.json", {"rope_parameters": {"rope_type": "yarn"}}, "positions of kind 'yarn'"),
        ("tokenizer.json", {"pre_tokenizer": None}, "only byte-level BPE"),
    ],
)
def test_what_is_not_known_is_refused(folder: Path, tmp_path: Path, file, change, words):
    stored = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(stored | change))
    with pytest.raises(CannotWriteGguf, match=words):
        write_gguf(folder, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()
