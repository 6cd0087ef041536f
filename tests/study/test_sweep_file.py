"""The sweep file: what is refused in plain words, and what the settings of an arm are."""

from pathlib import Path

import pytest

from policyalign_assets.study.sweep import SHIPPED, Sweep, SweepError, read_sweep
from policyalign_assets.study.trials import Trial

GOOD = """
partitions: ["medical|general-conduct"]
seeds: [13, 14]
share: 0.3
steps: 90
reference: ours
arms:
  base: {about: the model, training: none}
  ours: {about: the defaults}
"""


def read(tmp_path: Path, text: str):
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    return read_sweep(file)


def test_the_shipped_file_is_sound_and_has_every_arm_of_a_comparison():
    sweep = read_sweep(SHIPPED)
    trained = {arm.training for arm in sweep.arms.values()}
    assert trained == {"none", "distillation", "sft", "dpo"}
    assert {arm.guard for arm in sweep.arms.values()} >= {"none", "words", "model"}
    assert sweep.arms[sweep.reference].settings == {} and len(sweep.seeds) >= 3


def test_the_english_models_sweep_names_its_model_and_its_own_command():
    sweep = read_sweep(SHIPPED.parent / "english.yaml")
    assert all(sweep.settings_of(arm, 13).model.id == "english" for arm in sweep.arms)
    assert "english.yaml" in sweep.made_by and len(sweep.seeds) >= 3
    with pytest.raises(ValueError, match="made_by"):
        Sweep.model_validate(sweep.model_dump() | {"made_by": "two\nlines"})


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seeds: [13, 14]", "seeds: []", "seeds"),
        ("seeds: [13, 14]", "seeds: [13, 13]", "seeds names one twice"),
        ("seeds: [13, 14]", "seeds: [-1]", "no seed is below 0"),
        ("share: 0.3", "share: 3", "share"),
        ("steps: 90", "steps: ninety", "steps"),
        ("steps: 90", "stepps: 90", "stepps"),
        ("reference: ours", "reference: theirs", "'theirs' is no arm"),
        ('"medical|general-conduct"', "medical", "write <domain>|<policy>"),
        ("training: none", "training: magic", "training"),
        ("training: none", "training: none, without: [twins]", "speak of a training"),
        ("training: none", "training: none, guard: judge", "judge.kind='rules' reads only"),
        ("about: the defaults", "about: x, against: ours", "compared with itself"),
        ("about: the defaults", "about: x, against: nobody", "'nobody' is no arm"),
        ("about: the defaults", "about: x, training: dpo", "beta belongs to training: dpo"),
        ("about: the defaults", "about: x, beta: 0.1", "beta belongs to training: dpo"),
        ("about: the defaults", "about: x, settings: {model: {id: y}}", "all arms must share"),
        (
            "about: the defaults",
            "about: x, settings: {distillation: {seed: 3}}",
            "distillation.seed, which the sweep's own seeds decide",
        ),
        (
            "about: the defaults",
            "about: x, settings: {distillation: {steps: -3}}",
            "arm ours: Wrong settings",
        ),
        (
            "about: the defaults",
            "about: x, training: sft, settings: {distillation: {teacher: ema}}",
            "distillation.teacher='ema' has no effect",
        ),
        ("  base:", "  Base!:", "'Base!' is no name of an arm"),
        ("  base:", "  ours:", "the key 'ours' stands twice"),
        ("steps: 90", "steps: [90", "cannot be read"),
        ("steps: 90", "steps: 90\nsettings: {gates: {}}", "'gates'"),
    ],
)
def test_what_cannot_work_is_refused_with_the_file_and_a_fix(tmp_path, old, new, words):
    assert old in GOOD
    with pytest.raises(SweepError) as refused:
        read(tmp_path, GOOD.replace(old, new))
    said = str(refused.value)
    assert words in said and "sweep.yaml" in said and "Fix:" in said


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SweepError, match=r"absent\.yaml cannot be read"):
        read_sweep(tmp_path / "absent.yaml")


def test_arms_differ_in_what_they_say_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("POLICYALIGN_DISTILLATION__STEPS", "7")  # no arm may read the environment
    sweep = read_sweep(SHIPPED)
    ours = sweep.settings_of("ours", 14)
    assert ours.distillation.steps == sweep.steps and ours.distillation.seed == 14
    assert ours.filtering.per_rule < ours.synthesis.per_rule  # the filter has something to drop
    everything = sweep.settings_of("no_filter", 14)
    assert everything.filtering.per_rule == everything.synthesis.per_rule
    random = sweep.settings_of("random_filter", 14)
    assert random.filtering.score == "random"
    assert random.filtering.per_rule == ours.filtering.per_rule
    assert sweep.settings_of("no_everyday", 14).distillation.anchors == 0
    assert sweep.settings_of("paper_loss", 14).distillation.forward_weight == 0
    assert sweep.settings_of("full", 14).distillation.learning_rate == 1.2e-4
    for arm in sweep.arms:
        settings = sweep.settings_of(arm, 14)
        assert settings.synthesis == ours.synthesis and settings.evaluation == ours.evaluation


def test_a_fingerprint_covers_what_decides_a_result_and_nothing_else(tmp_path):
    def fingerprint(text: str, arm: str, seed: int = 13) -> str:
        sweep = read(tmp_path, text)
        policies = Path(__file__).parents[2] / "policies"
        return Trial(sweep, arm, "medical|general-conduct", seed, tmp_path, policies).fingerprint()

    before = {arm: fingerprint(GOOD, arm) for arm in ("base", "ours")}
    reworded = GOOD.replace("the defaults", "other words")
    assert fingerprint(reworded, "ours") == before["ours"]
    longer = GOOD.replace("steps: 90", "steps: 91")
    assert fingerprint(longer, "ours") != before["ours"]
    assert fingerprint(longer, "base") == before["base"]  # it is not trained
    assert fingerprint(GOOD, "ours", 14) != before["ours"]
    changed = GOOD.replace(
        "about: the defaults", "about: the defaults, settings: {distillation: {lora_rank: 4}}"
    )
    assert fingerprint(changed, "ours") != before["ours"]
    assert fingerprint(changed, "base") == before["base"]
