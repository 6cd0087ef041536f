"""The training stage: a policy of many rules is trained on for more steps, and the log says so."""

from dataclasses import replace

import pyarrow as pa
import pytest
from helpers import medical_policy

from policyalign_assets.records import Checkpoint
from policyalign_assets.runtime.exchange import decode, encode
from policyalign_assets.settings import load_settings
from policyalign_assets.stages.distilled_checkpoint import make
from policyalign_assets.stages.interface import StageContext
from policyalign_assets.tables import FILTERED

pytestmark = pytest.mark.slow


ROWS = [
    {"rule_id": rule, "kind": "violating", "text": f"How do I {action}?", "selected": selected}
    for rule, action, selected in [
        ("C1", "forge a signature", True),
        ("C2", "bribe an official", True),
        ("M1", "alter a prescription", True),
        ("M2", "fake a diagnosis", False),  # not selected, so no rule of this training
    ]
]


def trained(data, distillation, log=None):
    settings = load_settings(overrides={"distillation": distillation}, environ={})
    said = [].append if log is None else log.append
    context = StageContext(settings, data, said)
    return make(context, medical_policy(), pa.Table.from_pylist(ROWS, FILTERED))


@pytest.mark.parametrize(
    ("enough", "steps", "said"),
    [
        (3, 2, "2 training steps (distillation.steps) for 3 of up to 3 rules"),
        (1, 6, "6 training steps for 3 rules: distillation.steps=2 is for up to 1 rules"),
    ],
)
def test_steps_follow_the_rules_that_are_trained_on(tmp_path, enough, steps, said):
    distillation = {"steps": 2, "steps_for_rules": enough, "batch_size": 4, "mini_batch_size": 4}
    log: list[str] = []
    made = trained(tmp_path, distillation, log)
    assert log[0].startswith(said) and log[-1].startswith(f"step {steps}/{steps}")
    assert made.facts["rules"] == 3 and made.facts["steps"] == steps
    assert made.value.provenance["settings"]["steps"] == steps


def test_several_seeds_are_several_checkpoints_and_the_first_is_that_of_one_seed(tmp_path):
    quick = {"steps": 2, "batch_size": 4, "mini_batch_size": 4}
    alone = trained(tmp_path, quick)
    log: list[str] = []
    several = trained(tmp_path, {**quick, "seeds": 2}, log)
    first, (second,) = several.value, several.value.repeats
    assert alone.value == replace(first, repeats=()) and not alone.value.repeats
    assert (first.seed, second.seed) == (13, 14) and first.checkpoint_id != second.checkpoint_id
    assert all((tmp_path / c.path / "adapter_model.safetensors").exists() for c in (first, second))
    assert "training run 2 of 2, seed 14" in log
    assert second == trained(tmp_path, {**quick, "seed": 14}).value
    # A record that is stored and read again still names every run.
    assert decode(encode(first), Checkpoint) == first


@pytest.mark.parametrize(("longest", "warned"), [(1, True), (48, False)])
def test_training_on_answers_that_never_end_is_said(tmp_path, longest, warned):
    quick = {"steps": 1, "batch_size": 4, "mini_batch_size": 4, "max_new_tokens": longest}
    log: list[str] = []
    made = trained(tmp_path, quick, log)
    assert any("no answer of the student ended by itself" in line for line in log) is warned
    assert (made.facts["answers that ended by themselves"] == 0) is warned
