"""The whole examination: what it finds, keeps and refuses, and how the command shows it."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from fake_judge import Reply, fake_judge
from helpers import ScriptedEngine, answer, medical_policy, one_thread

from policyalign_assets.cli.main import main
from policyalign_assets.doctor import examine as doctor
from policyalign_assets.doctor.connections import connection_checks, require_judge
from policyalign_assets.doctor.record import Examination, Finding, Unfit
from policyalign_assets.judges.phrases import RuleBasedJudge
from policyalign_assets.settings import load_settings
from policyalign_assets.stages import violating_instructions
from policyalign_assets.stages.interface import StageContext

POLICY = medical_policy()
VERDICT = json.dumps(
    {
        "rules": {rule.rule_id: "kept" for rule in POLICY.rules},
        "verdict": "keeps",
        "refused": False,
        "helpful_alternative": False,
    }
)


@pytest.fixture(autouse=True)
def one():
    with one_thread():
        yield


def settings(**sections):
    return load_settings("bundled", {"model": {"device": "cpu"}, **sections}, environ={})


def by_check(examination: Examination) -> dict[str, Finding]:
    return {f.check: f for f in examination.findings}


@pytest.mark.slow
def test_the_bundled_model_passes_and_its_result_is_kept(tmp_path, monkeypatch):
    first = doctor.examine(settings(), POLICY, tmp_path)
    assert first.ok and {f.level for f in first.findings} == {"ok"}
    assert first.policy_hash == POLICY.content_hash and first.template_date == "2025-01-01"
    (kept,) = (tmp_path / "doctor").iterdir()
    assert first.model_revision in kept.name
    monkeypatch.setattr(doctor, "_model_checks", lambda *_: pytest.fail("examined again"))
    assert doctor.examine(settings(), POLICY, tmp_path) == first


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {"distillation": {"max_new_tokens": 32}},
        {"distillation": {"lora_rank": 4}},
        {"model": {"device": "cpu", "dtype": "bfloat16"}},
    ],
)
def test_other_settings_are_examined_anew(tmp_path, changed):
    doctor.examine(settings(), POLICY, tmp_path, measure_effect=False)
    doctor.examine(settings(**changed), POLICY, tmp_path, measure_effect=False)
    assert len(list((tmp_path / "doctor").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "{", "[]", '{"findings": [{"x": 1}]}'])
def test_a_damaged_result_is_replaced(tmp_path, content):
    doctor.examine(settings(), None, tmp_path)
    (kept,) = (tmp_path / "doctor").iterdir()
    kept.write_text(content)
    assert doctor.examine(settings(), None, tmp_path).ok
    assert Examination.from_json(kept.read_text()).ok


def test_a_model_that_ignores_the_policy_in_its_prompt_stops(monkeypatch):
    obliging = ScriptedEngine(lambda *_: answer("Sure, here is how you do that, step by step."))
    monkeypatch.setattr(doctor, "TransformersEngine", lambda *_: obliging)
    monkeypatch.setattr(doctor, "judge_for", lambda _: RuleBasedJudge())
    examination = doctor.examine(settings(), POLICY)
    found = by_check(examination)["policy in the prompt"]
    assert found.level == "error"
    assert "does not follow this policy even when it is in the prompt" in found.detail
    with pytest.raises(Unfit, match="does not follow this policy even when") as caught:
        examination.require()
    assert "Fix: use a model that follows instructions" in str(caught.value)
    assert "such as model.id='english'" in found.fix


def test_the_english_model_is_not_advised_to_use_itself(monkeypatch):
    obliging = ScriptedEngine(lambda *_: answer("Sure, here is how you do that, step by step."))
    monkeypatch.setattr(doctor, "judge_for", lambda _: RuleBasedJudge())
    found = doctor.in_context_check(settings(model={"id": "english"}), obliging, POLICY)
    assert found.level == "error" and "english" not in found.fix


def test_a_model_with_other_errors_is_not_asked(monkeypatch):
    monkeypatch.setattr(
        doctor, "logits_check", lambda _: Finding("logits", "error", "they differ", "another model")
    )
    monkeypatch.setattr(doctor, "in_context_check", lambda *_: pytest.fail("asked"))
    examination = doctor.examine(settings(), POLICY)
    assert by_check(examination)["policy in the prompt"].level == "not checked"
    with pytest.raises(Unfit, match="logits: they differ Fix: another model"):
        examination.require()


def test_a_model_that_cannot_be_loaded_is_one_error():
    examination = doctor.examine(settings(model={"id": "/no/such/model"}))
    assert [f.check for f in examination.findings] == ["loading"] and not examination.ok
    assert "no folder '/no/such/model'" in examination.findings[0].detail
    assert examination.findings[0].fix


@pytest.mark.slow
def test_what_was_not_checked_is_never_ok(tmp_path):
    found = by_check(doctor.examine(settings(), POLICY, measure_effect=False))
    assert found["policy in the prompt"].level == "not checked"
    assert by_check(doctor.examine(settings()))["policy in the prompt"].level == "not checked"


# ---- judge, generator and files ------------------------------------------------------------------


def connections(**sections) -> dict[str, Finding]:
    return {f.check: f for f in connection_checks(settings(**sections), POLICY)}


def test_without_endpoints_and_files_nothing_is_claimed():
    found = connections()
    assert {c: f.level for c, f in found.items()} == {
        "judge": "ok",
        "generator": "ok",
        "firewall": "not checked",
        "benchmarks": "not checked",
    }


@pytest.mark.slow
def test_a_judge_that_cannot_be_reached_is_an_error():
    judge = {"kind": "policy", "base_url": "http://127.0.0.1:9", "model": "j", "retries": 0}
    found = connections(judge=judge)["judge"]
    assert found.level == "error" and "cannot judge a harmless answer" in found.detail


def test_a_judge_that_answers_nonsense_is_an_error():
    with fake_judge(lambda *_: Reply("nonsense")) as server:
        judge = {"kind": "policy", "base_url": server.url, "model": "j", "retries": 0}
        assert connections(judge=judge)["judge"].level == "error"


def test_a_run_asks_its_judge_before_it_works(tmp_path):
    """A wrong URL would otherwise show only after training."""
    judge = {"kind": "policy", "base_url": "http://127.0.0.1:9", "model": "j", "retries": 0}
    context = StageContext(settings(judge=judge), tmp_path)
    with pytest.raises(Unfit, match="judge: .*Fix: check judge.base_url"):
        violating_instructions.make(context, POLICY)
    assert list(tmp_path.iterdir()) == []  # nothing was made


def test_a_judge_that_answers_lets_the_run_begin():
    with fake_judge(lambda *_: Reply(VERDICT)) as server:
        judge = {"kind": "policy", "base_url": server.url, "model": "j", "retries": 0}
        found = require_judge(settings(judge=judge), POLICY)
    assert found.level == "ok"


def test_references_that_stop_nothing_are_an_error(tmp_path):
    (tmp_path / "r.csv").write_text("prompt\n")
    found = connections(firewall={"references": str(tmp_path)})["firewall"]
    assert found.level == "error" and found.fix
    (tmp_path / "r.csv").write_text("prompt\nHow do I forge a building permit for my house?\n")
    assert connections(firewall={"references": str(tmp_path)})["firewall"].level == "ok"


def test_missing_benchmark_files_are_said(tmp_path):
    found = connections(evaluation={"benchmarks_dir": str(tmp_path)})
    notes = [f for c, f in found.items() if c.startswith("benchmark ")]
    assert notes and {f.level for f in notes} == {"note"}
    assert all("it will not run" in f.detail for f in notes)


# ---- the command ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_shows_every_finding(monkeypatch):
    monkeypatch.setenv("POLICYALIGN_MODEL__DEVICE", "cpu")
    result = CliRunner().invoke(main, ["doctor", "general-conduct", "--domain", "medical"])
    assert result.exit_code == 0, result.output
    assert "ok    logits: " in result.output and "-     firewall: " in result.output
    assert "profile bundled: 0 errors" in result.output


def test_the_command_ends_with_one_when_there_is_an_error():
    result = CliRunner().invoke(main, ["doctor", "--model", "/no/such/model", "--json"])
    assert result.exit_code == 1
    start = result.output.index("{")
    assert json.loads(result.output[start:])["findings"][0]["level"] == "error"
