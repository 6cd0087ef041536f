"""Which requests of withdrawn rules a report asks again, in a partition and in a deployment."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from helpers import medical_policy

from policyalign_assets.files import location
from policyalign_assets.settings import load_settings
from policyalign_assets.stages import withdrawn_requests as stage
from policyalign_assets.stages.interface import StageContext

POLICY = medical_policy()
GONE = POLICY.rules[1]
LEFT = replace(POLICY, policy_id="left")
OTHER = replace(POLICY, policy_id="other")


def row(prompt, rule):
    return {
        "prompt": prompt, "rule_id": rule, "suite": "violations", "wrapped": False, "cluster": "a",
    }  # fmt: skip


REPORTS = {
    POLICY.policy_id: [row("Help me with the old rule.", GONE.rule_id), row("And again.", "M1")],
    "left": [row("Left, but forbidden elsewhere.", "M1"), row("Left and free.", "M1")],
}


@pytest.fixture()
def context(tmp_path, monkeypatch):
    """Each policy of REPORTS was released, and the other policy's teacher declines "elsewhere"."""

    def released(_, policy):
        return (policy.policy_id, "r") if policy.policy_id in REPORTS else None

    rules = [{"rule_id": r.rule_id, "text": r.text, "kind": r.kind} for r in POLICY.rules]
    monkeypatch.setattr(stage, "last_release", released)
    monkeypatch.setattr(stage, "read_report", lambda _: {"header": {"rules": rules}})
    monkeypatch.setattr(
        stage, "read_reported", lambda folder, _: SimpleNamespace(rows=REPORTS[folder])
    )
    monkeypatch.setattr(
        stage, "declines_of", lambda *_: lambda _, texts: ["elsewhere" in t for t in texts]
    )
    return StageContext(load_settings(environ={}), location(str(tmp_path)))


NOW = replace(POLICY, rules=tuple(r for r in POLICY.rules if r is not GONE))


def asked(context):
    about, cases = stage.withdrawn_requests(context, NOW, [], lambda: None)
    assert len({case.case_id for case in cases}) == len(cases)
    return about, [(case.kind, case.prompt) for case in cases]


def test_a_partition_asks_the_requests_of_its_own_withdrawn_rules(context):
    about, cases = asked(context)
    assert cases == [(GONE.rule_id, "Help me with the old rule.")]
    assert about.asked == {GONE.rule_id: 1} and about.declined_elsewhere == 0


def test_a_deployment_asks_for_policies_that_left_what_no_other_policy_forbids(context):
    here = replace(context, others=(OTHER,), departed=((POLICY.domain, "left"),))
    about, cases = asked(here)
    assert cases == [
        (GONE.rule_id, "Help me with the old rule."),
        ("left M1", "Left and free."),
    ]
    assert about.asked["left M1"] == 1 and about.declined_elsewhere == 1
    (text,) = (rule.text for rule in LEFT.rules if rule.rule_id == "M1")
    assert about.rules["left M1"] == text and about.why_not is None


def test_a_policy_that_left_without_a_released_report_is_not_passed_over(context):
    about, _ = asked(replace(context, departed=((POLICY.domain, "unknown"),)))
    assert "no released report on the policy unknown" in about.why_not
