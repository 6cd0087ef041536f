"""What a run would do with each rule and cost, said before any model is loaded."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from helpers import medical_policy

from policyalign_assets.evaluation.case_plan import NoCases, planned_cases
from policyalign_assets.policy import PolicyDocument, Rule, parse_policy
from policyalign_assets.report.context import NO_CASE, rule_states
from policyalign_assets.settings import Settings, load_settings
from policyalign_assets.stages import policy_document
from policyalign_assets.stages.interface import StageContext
from policyalign_assets.stages.run_plan import NothingTrained, plan_run

ROOT = Path(__file__).parents[2]
POLICY = medical_policy()
BUNDLED = load_settings(environ={})
JUDGE = {"kind": "policy", "engine": "endpoint", "base_url": "http://localhost:1/v1", "model": "m"}


def own_model(**more) -> Settings:
    return load_settings(overrides={"model": {"id": "some/model"}} | more, environ={})


def policy_of(*rules: Rule) -> PolicyDocument:
    return replace(POLICY, rules=rules)


def test_the_plan_is_that_of_the_cases_and_of_synthesis():
    plan = plan_run(POLICY, BUNDLED)
    assert tuple(p.cases for p in plan.rules) == planned_cases(POLICY, BUNDLED).rules
    assert [p.trained for p in plan.rules] == [p.rule.kind == "prohibit" for p in plan.rules]
    assert plan.cost.rules == sum(p.trained for p in plan.rules)
    assert plan.cases_per_suite == BUNDLED.evaluation.cases_per_suite


def test_each_rule_says_where_its_cases_come_from_or_why_there_are_none():
    rule = POLICY.prohibitions[0]
    duty, permit = POLICY.duties[0], replace(rule, rule_id="X1", kind="permit", limits="C1")
    plan = plan_run(policy_of(rule, duty, permit), BUNDLED)
    of_rule, of_duty, of_permit = (p.why for p in plan.rules)
    assert "measured with about 330 cases (330 from templates)" in of_rule
    assert "not trained: a positive duty" in of_duty and "no judge reads the rules" in of_duty
    assert of_permit.startswith("neither trained nor measured: a permission")
    assert of_permit.endswith("it limits C1")


def test_a_rule_with_few_cases_is_called_thin():
    written = replace(POLICY.prohibitions[0], action=None, violates=("One?", "Two?", "Three?"))
    plan = plan_run(policy_of(written), BUNDLED)
    assert "thin: fewer than 20" in plan.rules[0].why
    assert "1 of them thinly" in plan.sentences[1]


def test_a_rule_in_another_language_says_what_the_english_parts_do():
    german = replace(POLICY.prohibitions[0], action=None, language="de")
    why = plan_run(policy_of(german), own_model()).rules[0].why
    assert "the rule is in 'de'" in why


def test_the_cost_is_said_in_rows_tokens_and_steps():
    rows, _ = plan_run(POLICY, BUNDLED).sentences  # and no remark, since it knows these rules
    assert "rows" in rows and "tokens written at most" in rows and "training steps" in rows


def test_the_bundled_model_says_which_rules_it_was_not_made_to_read():
    rule = POLICY.prohibitions[0]
    other = replace(
        rule, rule_id="X1", text="Staff must not forge a permit.", action="forge a permit"
    )
    said = plan_run(policy_of(rule, other), BUNDLED).sentences[-1]
    assert said.startswith("1 of 2 trained rules have another form")
    assert len(plan_run(policy_of(other), own_model()).sentences) == 2


@pytest.mark.parametrize(
    ("rules", "settings", "error"),
    [
        (POLICY.duties, BUNDLED, NothingTrained),
        ((replace(POLICY.prohibitions[0], kind="define"),), own_model(), NothingTrained),
        ((replace(POLICY.prohibitions[0], action=None),), BUNDLED, NoCases),
        (POLICY.duties, own_model(), NoCases),
    ],
)
def test_a_policy_of_which_nothing_can_be_trained_or_measured_is_refused(rules, settings, error):
    plan = plan_run(policy_of(*rules), settings)
    with pytest.raises(error) as raised:
        plan.require_work()
    assert all(f"{rule.rule_id}: " in str(raised.value) for rule in rules)
    assert "Fix: " in str(raised.value)


def test_a_policy_of_duties_alone_works_with_a_judge_that_reads_rules():
    plan = plan_run(policy_of(*POLICY.duties), own_model(judge=JUDGE))
    plan.require_work()
    assert all(p.trained and p.measured for p in plan.rules)


def test_the_first_stage_shows_the_plan_and_the_cost():
    said: list[str] = []
    context = StageContext(
        settings=BUNDLED,
        data=Path("unused"),
        report=said.append,
        policies=ROOT / "policies",
        partition=("medical", "general-conduct"),
    )
    result = policy_document.make(context)
    assert "training steps" in result.facts["estimate"] and said[0] == result.facts["estimate"]
    assert "from templates" in result.facts["rule list"]["raw_value"]
    assert result.facts["measured rules"] == result.facts["trained rules"] > 0


def test_the_first_stage_refuses_a_policy_of_which_nothing_is_trained(tmp_path: Path):
    folder = tmp_path / "policies" / "kind"
    folder.mkdir(parents=True)
    (folder / "policy.md").write_text(
        "---\ntitle: T\nowner: O\ndomains: [general]\n---\n\n## Rules\n\n- A1: Be kind.\n\n"
        "## Declining\n\nDecline.\n"
    )
    assert parse_policy(tmp_path / "policies", "kind", "general").rules
    context = StageContext(
        settings=BUNDLED,
        data=tmp_path,
        report=lambda _: None,
        policies=tmp_path / "policies",
        partition=("general", "kind"),
    )
    with pytest.raises(NothingTrained, match="A1: not trained"):
        policy_document.make(context)


def test_the_report_gives_the_reasons_of_the_plan():
    plans = planned_cases(POLICY, BUNDLED).rules
    no_case = pa.table({"suite": pa.array([], pa.string()), "rule_id": pa.array([], pa.string())})
    states = {state["rule_id"]: state for state in rule_states(POLICY, no_case, plans)}
    for plan in plans:
        assert states[plan.rule_id]["why_not"] == (plan.why_not or NO_CASE)
    duty = POLICY.duties[0].rule_id
    assert "no judge reads the rules" in states[duty]["why_not"]
