"""An export answers the gated cases again, and is refused if it does not behave as the release."""

import json
from pathlib import Path

import pytest
import torch
from helpers import ScriptedEngine, answer, one_thread
from peft import LoraConfig, PeftModel, get_peft_model
from test_release_bundle import EVALUATION, Desk

from policyalign_assets.engine.loading import load_model
from policyalign_assets.evaluation.suites import ALIGNED
from policyalign_assets.releases import export as exporting
from policyalign_assets.releases.answer_again import Again, _cases, answer_again
from policyalign_assets.releases.errors import ReleaseError
from policyalign_assets.releases.export import (
    export_merged,
    faults_of,
    model_settings,
    write_merged,
)
from policyalign_assets.settings import BUNDLED, ModelSettings

pytestmark = pytest.mark.slow


def distinct(row: dict) -> dict:
    """The row with a prompt of its suite's own and an answer that the judge can read."""
    if row["suite"] != "capability":
        said = "I can't help with that." if row["refused"] else "Begin with a clear goal."
        prompt = f"{row['suite']}: {row['prompt']}"
        return row | {"prompt": prompt, "response": f"You asked how to do it. {said}"}
    number = int(row["case_id"][1:])
    right = f"1 plus {number} is {number + 1}."
    return row | {
        "prompt": f"Add {number} to 1.",
        "reference": str(number + 1),
        "response": right if row["correct"] else "I do not know.",
    }


ROWS = [distinct(row) for row in EVALUATION]


def replies(wrong: int = 0) -> ScriptedEngine:
    """Answers as the released model, but for the first `wrong` violating requests."""
    stored = {r["prompt"]: r["response"] for r in ROWS if r["arm"] == ALIGNED}
    violating = [p for p in stored if p.startswith("violations: ")][:wrong]

    def reply(prompt: str, number: int, sampling) -> object:
        return answer(
            "You asked how. Begin with a clear goal." if prompt in violating else stored[prompt]
        )

    return ScriptedEngine(reply)


def answered(bundle: Path, engine: ScriptedEngine) -> Again:
    """What an engine answered under the one policy of a bundle."""
    (again,) = answer_again(bundle, engine).values()
    return again


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    desk = Desk(tmp_path)
    return desk.release(desk.evidence(rows=ROWS))


def test_equal_answers_have_no_drift_and_pass_what_the_release_passed(bundle: Path):
    again = answered(bundle, replies())
    assert again.flipped == 0.0 and again.same_text == 1.0 and not again.drift.flips
    assert faults_of(again, 0.0) == []
    assert all(g.passed for g in again.gates)
    assert again.not_asked == {} and again.compared == sum(r["arm"] == ALIGNED for r in ROWS)


def test_an_export_that_answers_otherwise_is_refused_with_the_reason(bundle: Path):
    few = answered(bundle, replies(wrong=3))
    assert len(few.drift.flips) == 3 and faults_of(few, 0.01) == []
    assert any("cases have another outcome" in f for f in faults_of(few, 0.001))
    many = answered(bundle, replies(wrong=60))
    faults = " ".join(faults_of(many, 0.05))
    assert "the gate safety does not pass" in faults and "60 cases got worse" in faults


def test_a_case_that_cannot_be_asked_again_has_not_passed(tmp_path: Path):
    desk = Desk(tmp_path)
    rows = [r | {"prompt": None} if r["suite"] == "capability" else r for r in ROWS]
    again = answered(desk.release(desk.evidence(rows=rows)), replies())
    assert again.not_asked == {"capability": 300}
    assert [g.gate for g in again.gates if g.passed is not True] == ["capability"]
    assert "capability not measured" in " ".join(faults_of(again, 0.01))


def test_probes_that_the_gates_read_are_asked_and_others_are_not():
    rows = [
        {"arm": ALIGNED, "suite": suite, "prompt": "p", "scoring": "judge", "conversation": None}
        for suite in ("violations", "probe_typo", "probe_lower", "probe_opening")
    ]
    asked, left = _cases(rows, ["probe_typo", "probe_opening"])
    assert [case.row["suite"] for case in asked] == ["violations", "probe_typo"]
    assert dict(left) == {"probe_opening": 1}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    """A LoRA adapter of the bundled model that changes its answers."""
    folder = tmp_path_factory.mktemp("adapter")
    base = load_model(ModelSettings(device="cpu"))
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(base.model, config)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture
def real_bundle(tmp_path: Path, adapter: Path) -> Path:
    """A bundle whose adapter fits the bundled model, of the revision that is here."""
    revision = load_model(ModelSettings(device="cpu")).revision
    return Desk(tmp_path).real_bundle(adapter, revision, ROWS)


def test_the_merged_folder_computes_what_base_and_adapter_compute(
    real_bundle: Path, adapter: Path, tmp_path: Path
):
    settings = model_settings(real_bundle, None)
    assert settings.id == BUNDLED
    (tmp_path / "merged").mkdir()
    write_merged(real_bundle, settings, tmp_path / "merged")
    merged = load_model(ModelSettings(id=str(tmp_path / "merged"), device="cpu"))
    base = load_model(ModelSettings(device="cpu"))
    ids = base.tokenizer("How do I alter a prescription?", return_tensors="pt").input_ids
    with one_thread(), torch.no_grad():
        plain = base.model(ids).logits
        one = PeftModel.from_pretrained(base.model, str(adapter)).eval()(ids).logits
        other = merged.model(ids).logits
    assert torch.allclose(one, other, atol=1e-3) and not torch.allclose(one, plain, atol=0.1)


def test_nothing_is_written_unless_the_export_behaves(real_bundle: Path, tmp_path: Path):
    """The adapter is random, so what it answers is not what the bundle holds."""
    with pytest.raises(ReleaseError, match="does not behave as the release: the gate safety"):
        export_merged(real_bundle, tmp_path / "out/merged")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_export_says_what_was_measured(real_bundle: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(exporting, "_engine", lambda settings, folder: replies(wrong=2))
    made = export_merged(real_bundle, tmp_path / "out")
    record = json.loads((made.folder / "export.json").read_text())
    assert record["kind"] == "merged" and "model.safetensors" in record["files"]
    ((policy, again),) = made.again.items()
    measured = record["policies"][policy]
    assert measured["drift"]["outcomes changed"] == again.flipped == 2 / again.compared
    assert len(measured["gates"]) == 7 and all(g["passed"] for g in measured["gates"])
    with pytest.raises(ReleaseError, match="exists"):
        export_merged(real_bundle, tmp_path / "out")


def test_another_revision_of_the_base_is_refused(tmp_path: Path, adapter: Path):
    bundle = Desk(tmp_path).real_bundle(adapter, "older", ROWS)
    with pytest.raises(ReleaseError, match="was made with older"):
        export_merged(bundle, tmp_path / "out")
