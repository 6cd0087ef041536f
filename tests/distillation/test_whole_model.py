"""The model that full fine-tuning makes: its folder, its name, and the stages that read it."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from helpers import medical_policy
from test_full_tuning import ASKED, SMALL, run
from transformers import AutoModelForCausalLM, AutoTokenizer

from policyalign_assets.distillation.checkpoint import (
    CheckpointChanged,
    NotAnAdapter,
    adapter_folder,
    load_aligned,
    publish,
)
from policyalign_assets.engine.base import Sampling, chat
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import load_model
from policyalign_assets.engine.shipped_models import BUNDLED_WEIGHTS
from policyalign_assets.files import location
from policyalign_assets.records import Checkpoint, training_table
from policyalign_assets.runtime.exchange import decode, encode
from policyalign_assets.settings import (
    ModelSettings,
    load_settings,
)
from policyalign_assets.stages import distilled_checkpoint, generations
from policyalign_assets.stages.aligned_engine import base_and_aligned
from policyalign_assets.stages.interface import StageContext

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick")]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    model, table, loaded = run(folder / "work", steps=8, learning_rate=1e-3)
    return publish(model, loaded, table, folder, {"policy_id": "general-conduct"}), folder, table


def answered(loaded) -> list[str]:
    return [
        g.text
        for g in TransformersEngine(loaded, 4096).generate(
            [chat(i.text) for i in ASKED], Sampling(24)
        )
    ]


def test_the_folder_is_a_plain_model_and_answers_the_same(published, tmp_path):
    checkpoint, data, table = published
    folder = data / checkpoint.path
    assert (
        checkpoint.tuning
        == json.loads((folder / "checkpoint.json").read_text())["tuning"]
        == "full"
    )
    assert {f.name for f in folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.parquet",
        "checkpoint.json",
    }
    texts = "".join(f.read_text() for f in folder.glob("*.json") if f.name != "tokenizer.json")
    assert not any(where in texts for where in (str(data), str(BUNDLED_WEIGHTS), "is_local"))
    assert training_table(checkpoint, data).equals(table)

    plain, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    theirs = []
    for i in ASKED:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": i.text}], add_generation_prompt=True, return_tensors="pt"
        )
        out = plain.generate(**ids, max_new_tokens=24, do_sample=False)
        theirs.append(
            tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        )
    base = load_model(ModelSettings())
    aligned = load_aligned(checkpoint, base, data)
    assert answered(aligned) == theirs != answered(base)
    assert aligned.revision == f"{base.revision}+{checkpoint.checkpoint_id}"


@pytest.mark.parametrize("change", ["weights", "configuration", "a new file", "a missing file"])
def test_a_changed_folder_is_refused_before_it_is_loaded(published, tmp_path, monkeypatch, change):
    checkpoint, data, _ = published
    folder = tmp_path / checkpoint.path
    shutil.copytree(data / checkpoint.path, folder)
    load_aligned(checkpoint, load_model(ModelSettings()), tmp_path)  # as it was
    if change == "weights":
        (folder / "model.safetensors").write_bytes(
            (folder / "model.safetensors").read_bytes()[:-1] + b"\x01"
        )
    elif change == "configuration":
        (folder / "config.json").write_text(
            (folder / "config.json")
            .read_text()
            .replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-02')
        )
    elif change == "a new file":
        (folder / "adapter_config.json").write_text("{}")  # transformers would put that adapter on
    else:
        (folder / "generation_config.json").unlink()
    base = load_model(ModelSettings())
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded")
    )
    with pytest.raises(CheckpointChanged, match=checkpoint.checkpoint_id):
        load_aligned(checkpoint, base, tmp_path)


def test_a_large_model_lies_in_several_files_and_the_same_training_has_the_same_name(
    published, tmp_path, monkeypatch
):
    checkpoint, data, table = published
    aligned = load_aligned(checkpoint, load_model(ModelSettings()), data)
    assert (
        publish(aligned.model, aligned, table, tmp_path, {}).checkpoint_id
        == checkpoint.checkpoint_id
    )
    save = type(aligned.model).save_pretrained
    monkeypatch.setattr(
        type(aligned.model),
        "save_pretrained",
        lambda model, folder: save(model, folder, max_shard_size="5MB"),
    )
    sharded = publish(aligned.model, aligned, table, tmp_path, {})
    assert len(list((tmp_path / sharded.path).glob("model-*.safetensors"))) > 1
    assert answered(load_aligned(sharded, load_model(ModelSettings()), tmp_path)) == answered(
        aligned
    )
    next(iter((tmp_path / sharded.path).glob("model-*.safetensors"))).unlink()
    with pytest.raises(CheckpointChanged):
        load_aligned(sharded, load_model(ModelSettings()), tmp_path)


def test_it_can_lie_in_an_object_store(published):
    checkpoint, data, table = published
    aligned, store = (
        load_aligned(checkpoint, load_model(ModelSettings()), data),
        location("memory://full-tuning"),
    )
    again = publish(aligned.model, aligned, table, store, {})
    assert again.checkpoint_id == checkpoint.checkpoint_id and training_table(again, store).equals(
        table
    )
    assert answered(load_aligned(again, load_model(ModelSettings()), store)) == answered(aligned)
    (store / again.path / "config.json").write_text("{}")
    with pytest.raises(CheckpointChanged):
        load_aligned(again, load_model(ModelSettings()), store)


def test_a_record_from_before_is_that_of_an_adapter_and_a_new_one_keeps_its_kind(published):
    checkpoint, _, _ = published
    assert decode(encode(checkpoint), Checkpoint) == checkpoint
    old = {k: v for k, v in json.loads(encode(checkpoint)).items() if k != "tuning"}
    assert decode(json.dumps(old).encode(), Checkpoint).tuning == Checkpoint(**old).tuning == "lora"


def test_vllm_is_not_given_a_whole_model_as_an_adapter(published):
    checkpoint, data, _ = published
    base = load_model(ModelSettings())
    with (
        pytest.raises(NotAnAdapter, match=r"engine='transformers'"),
        adapter_folder(checkpoint, data),
    ):
        pass
    with (
        base_and_aligned(ModelSettings(engine="vllm"), base, [checkpoint], data) as (_, (aligned,)),
        pytest.raises(NotAnAdapter),
    ):
        aligned()


def test_the_stages_make_it_and_ask_it(tmp_path):
    settings = load_settings(
        overrides={
            "model": {"device": "cpu"},
            "evaluation": {
                "cases_per_suite": 9,
                "cases_per_rule": 1,
                "benign_cases": 9,
                "capability_cases": 4,
                "probe_cases": 0,
                "pressure_cases": 0,
            },
            "distillation": {**SMALL.model_dump(), "steps": 2, "anchors": 2},
        },
        environ={},
    )
    work = StageContext(settings, tmp_path)
    mix = pa.table(
        {
            "text": [i.text for i in ASKED],
            "rule_id": ["r"] * 4,
            "kind": ["violating"] * 4,
            "selected": [True] * 4,
            "split": ["train"] * 4,
        }
    )
    made = distilled_checkpoint.make(work, medical_policy(), mix)
    assert (
        made.value.tuning
        == made.facts["tuning"]
        == made.value.provenance["settings"]["tuning"]
        == "full"
    )
    asked = generations.make(work, medical_policy(), mix, made.value).value
    assert {"base", "aligned"} <= set(asked["arm"].to_pylist())
    with generations._models(
        work, loaded := load_model(settings.model), loaded.revision, made.value
    ) as (base, aligned, _):
        assert (base.weights.pretrained, aligned.weights.adapter) == (str(BUNDLED_WEIGHTS), None)
        assert Path(aligned.weights.pretrained) == tmp_path / made.value.path
