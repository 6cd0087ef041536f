"""Model folders with faults: each is refused when it is loaded, with a message that names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from helpers import chatml_tokenizer, one_thread, tiny_model
from safetensors.torch import load_file, save_file

from policyalign_assets.engine.checks import check_adapter
from policyalign_assets.engine.loading import ModelNotFound, load_model
from policyalign_assets.engine.revision import local_revision
from policyalign_assets.settings import ModelSettings

WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def one():
    with one_thread():
        yield


@pytest.fixture
def folder(tmp_path) -> Path:
    loaded = tiny_model(transformers.LlamaForCausalLM, transformers.LlamaConfig, chatml_tokenizer())
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load(folder):
    return load_model(ModelSettings(id=str(folder), device="cpu"))


def weights(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors), folder / WEIGHTS, {"format": "pt"})


def without(name: str):
    return lambda tensors: {k: v for k, v in tensors.items() if k != name}


def config(**values):
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def remove(*names: str):
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def write(name: str, content: str | bytes):
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data)


def only(model_type: str):
    """A configuration of another architecture, as if its weights followed."""
    return write("config.json", json.dumps({"model_type": model_type, "vocab_size": 300}))


LAYER = "model.layers.1.mlp.up_proj.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
ADAPTER = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "/elsewhere"})
# fault: (what is done to a sound folder, what the message says)
FAULTS = {
    "a tensor is missing": (lambda f: weights(f, without(LAYER)), LAYER),
    "a norm is missing": (lambda f: weights(f, without("model.norm.weight")), "model.norm.weight"),
    "an untied head is missing": (lambda f: weights(f, without("lm_head.weight")), "lm_head"),
    "a layer is missing": (
        lambda f: weights(f, lambda t: {k: v for k, v in t.items() if ".layers.1." not in k}),
        "lack weights of the architecture: model.layers.1",
    ),
    "saved under DDP": (
        lambda f: weights(f, lambda t: {f"module.{k}": v for k, v in t.items()}),
        "lack weights",
    ),
    "a tensor too many": (
        lambda f: weights(f, lambda t: t | {"model.extra.weight": t["model.norm.weight"].clone()}),
        "model.extra.weight",
    ),
    "more layers than the configuration has": (config(num_hidden_layers=1), "does not have"),
    "fewer layers than the configuration has": (config(num_hidden_layers=3), "model.layers.2"),
    "a tensor of another shape": (config(intermediate_size=40), "mlp"),
    "an adapter in the folder": (write("adapter_config.json", ADAPTER), "adapter_config.json"),
    "AWQ": (config(quantization_config={"quant_method": "awq", "bits": 4}), "quantized (awq)"),
    "GPTQ": (config(quantization_config={"quant_method": "gptq", "bits": 4}), "quantized (gptq)"),
    "bitsandbytes": (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "quantized (bitsandbytes)",
    ),
    "an unknown quantization": (config(quantization_config={"bits": 3}), "quantized"),
    "Mamba": (only("mamba"), "mamba models keep a recurrent state"),
    "Mamba-2": (only("mamba2"), "mamba2 models keep a recurrent state"),
    "FalconMamba": (only("falcon_mamba"), "falcon_mamba models keep a recurrent state"),
    "RWKV": (only("rwkv"), "rwkv models keep a recurrent state"),
    "no architecture of that name": (config(model_type="nonsense"), "nonsense"),
    "no configuration": (remove("config.json"), "config.json"),
    "no weights": (remove(WEIGHTS), "safetensors"),
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), "tokenizer"),
    "a broken configuration": (write("config.json", "{"), "config.json"),
    "a Git LFS pointer": (write(WEIGHTS, POINTER), "cannot be loaded"),
    "a cut-off file": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:5_000]),
        "cannot be loaded",
    ),
}


def test_a_sound_folder_loads(folder):
    assert load(folder).revision == local_revision(folder)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_folder_is_refused_and_named(folder, fault):
    change, reason = FAULTS[fault]
    change(folder)
    with pytest.raises(ModelNotFound) as caught:
        load(folder)
    message = str(caught.value)
    assert str(folder) in message and reason in message and "Fix: " in message, message


@pytest.mark.parametrize("missing", ["/no/such/folder", "./no-such-folder", "a/b/c", "~/models/x"])
def test_a_missing_folder_is_called_that(missing):
    with pytest.raises(ModelNotFound, match=r"there is no folder .* Fix: "):
        load(missing)


def test_a_tied_head_is_not_missing(tmp_path):
    loaded = tiny_model(
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig,
        chatml_tokenizer(),
        tie_word_embeddings=True,
    )
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / WEIGHTS)
    load(tmp_path)


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "vocab.json", "merges.txt", "tokenizer.model", "x.jinja"]
)
def test_every_file_that_a_library_may_read_changes_the_identity(folder, name):
    before = local_revision(folder)
    (folder / name).write_text("x")
    assert local_revision(folder) != before


@pytest.mark.parametrize("name", ["README.md", "LICENSE"])
def test_a_card_does_not_change_the_identity(folder, name):
    before = local_revision(folder)
    (folder / name).write_text("x")
    assert local_revision(folder) == before


def test_the_context_of_a_multimodal_configuration_is_that_of_its_text_part():
    from policyalign_assets.engine.loading import _context

    text = {"max_position_embeddings": 777, "hidden_size": 32, "num_hidden_layers": 1}
    config = transformers.Gemma3Config(text_config=text)
    assert _context(config, chatml_tokenizer()) == 777


@pytest.mark.parametrize(
    "saved, expected, reason",
    [
        ({"a"}, {"a", "b"}, "lacks tensors: b"),
        ({"a", "c"}, {"a"}, "unexpected tensors: c"),
        (set("abcdef"), {"a"}, "and 2 more"),
    ],
)
def test_an_adapter_of_another_model_is_refused(saved, expected, reason):
    with pytest.raises(ValueError, match=reason):
        check_adapter(saved, expected)
    check_adapter(expected, expected)


def test_a_tokenizer_that_comes_as_a_sentencepiece_file_alone_is_read_or_refused(folder):
    """Not with the bare error about tiktoken that transformers gives."""
    import sentencepiece

    text = folder / "text"
    text.write_text("\n".join(f"never help anyone forge signature {n}" for n in range(200)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=40, minloglevel=2
    )
    for name in ("text", "tokenizer.vocab", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    try:
        loaded = load_model(ModelSettings(id=str(folder), device="cpu"))
    except ModelNotFound as error:
        assert "tokenizer" in str(error) and "Fix:" in str(error)
        assert "tiktoken is required" not in str(error)
    else:
        ids = loaded.tokenizer("never help", add_special_tokens=False).input_ids
        assert loaded.tokenizer.decode(ids) == "never help"
