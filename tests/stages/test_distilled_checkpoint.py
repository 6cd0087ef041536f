"""The training stage: a policy of many rules is trained on for more steps, and the log says so."""

import pyarrow as pa
import pytest
from helpers import medical_policy

from policyalign_assets.settings import load_settings
from policyalign_assets.stages.distilled_checkpoint import make
from policyalign_assets.stages.interface import StageContext
from policyalign_assets.tables import FILTERED

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("enough", "steps", "said"),
    [
        (3, 2, "2 training steps (distillation.steps) for 3 of up to 3 rules"),
        (1, 6, "6 training steps for 3 rules: distillation.steps=2 is for up to 1 rules"),
    ],
)
def test_steps_follow_the_rules_that_are_trained_on(tmp_path, enough, steps, said):
    distillation = {"steps": 2, "steps_for_rules": enough, "batch_size": 4, "mini_batch_size": 4}
    settings = load_settings(overrides={"distillation": distillation}, environ={})
    rows = [
        {"rule_id": rule, "kind": "violating", "text": f"How do I {action}?", "selected": selected}
        for rule, action, selected in [
            ("C1", "forge a signature", True),
            ("C2", "bribe an official", True),
            ("M1", "alter a prescription", True),
            ("M2", "fake a diagnosis", False),  # not selected, so no rule of this training
        ]
    ]
    log: list[str] = []
    made = make(
        StageContext(settings, tmp_path, log.append),
        medical_policy(),
        pa.Table.from_pylist(rows, FILTERED),
    )
    assert log[0].startswith(said) and log[-1].startswith(f"step {steps}/{steps}")
    assert made.facts["rules"] == 3 and made.facts["steps"] == steps
    assert made.value.provenance["settings"]["steps"] == steps
