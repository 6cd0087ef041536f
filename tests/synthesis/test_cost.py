"""The estimate of a run's cost, against what synthesis then does."""

from dataclasses import replace

import pytest
from helpers import ScriptedEngine, answer, medical_policy, unlike

from policyalign_assets.settings import load_settings
from policyalign_assets.synthesis.cost import estimate
from policyalign_assets.synthesis.synthesize import synthesize

POLICY = medical_policy()


def settings(**changed):
    synthesis = {"per_rule": 6, "language": None, "recombined_ratio": 0.0} | changed
    model = {"id": "some/model"} if synthesis.get("grid") == "full" else {}
    overrides = {
        "synthesis": synthesis,
        "model": model,
        "filtering": {"per_rule": 5, "at_least": 3},
    }
    return load_settings(overrides=overrides, environ={})


@pytest.mark.slow
@pytest.mark.parametrize("grid", ["reduced", "full"])
def test_rows_and_drafts_are_those_of_a_run_whose_drafts_are_all_good(grid):
    chosen = settings(grid=grid, style_share=0.0)
    engine = ScriptedEngine(lambda p, n, s: answer(unlike(p, n, s.seed)))
    result = synthesize(POLICY, engine, chosen.synthesis)
    found = estimate(POLICY, chosen)
    assert found.drafts == sum(len(chats) for chats, _ in engine.calls)
    assert found.rows == result.table.num_rows
    assert (found.rules, found.skipped) == (len(result.yields), len(result.skipped))
    assert found.most_drafts == found.drafts * chosen.synthesis.rounds


def test_tokens_and_steps_follow_from_the_settings():
    chosen = settings(rounds=2, max_new_tokens=32)
    rough, exact = estimate(POLICY, chosen), estimate(POLICY, chosen, lambda text: 321)
    assert (exact.policy_tokens, exact.exact, rough.exact) == (321, True, False)
    assert rough.written_tokens["synthesis"] == rough.most_drafts * 32
    assert rough.steps == chosen.distillation.steps
    assert "321 tokens" in exact.sentence and "about" in rough.sentence
    assert rough.scored_rows == 0  # the bundled model's drafts are not attributed


@pytest.mark.parametrize(
    ("rules", "steps"), [(1, 150), (9, 150), (10, 150), (11, 165), (12, 180), (60, 900)]
)
def test_steps_grow_with_the_rules_beyond_ten(rules, steps):
    distillation = settings().distillation
    assert distillation.planned_steps(rules) == steps
    never = distillation.model_copy(update={"steps_for_rules": 1000})
    assert never.planned_steps(rules) == 150


def test_a_rule_of_a_long_policy_is_trained_on_as_often_as_one_of_a_short_policy():
    rules = [replace(POLICY.rules[0], rule_id=f"R{n}") for n in range(60)]
    ten, sixty = (estimate(replace(POLICY, rules=tuple(rules[:n])), settings()) for n in (10, 60))
    assert sixty.steps == 6 * ten.steps and sixty.passes == pytest.approx(ten.passes)


def test_the_cost_of_attribution_does_not_grow_with_the_square_of_the_rules():
    rules = [
        replace(POLICY.rules[0], rule_id=f"R{n}", text=f"Never help anyone sell item {n}.")
        for n in range(60)
    ]
    chosen = settings(grid="full")
    small, large = (
        estimate(replace(POLICY, rules=tuple(rules[:n])), chosen).scored_rows for n in (20, 60)
    )
    assert small > 0 and large == 3 * small
