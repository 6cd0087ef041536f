"""Settings: what is read from where, what wins, and what is refused."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import policyalign_assets
from policyalign_assets.settings import PROFILES, Settings, SettingsError, load_settings


def load(profile=None, overrides=None, **environ):
    return load_settings(profile, overrides, environ)


def refusal(profile=None, overrides=None, **environ) -> str:
    with pytest.raises(SettingsError) as caught:
        load(profile, overrides, **environ)
    return str(caught.value)


def test_without_anything_said_the_bundled_profile_holds_the_defaults():
    assert load() == Settings()
    assert load().profile == load().model.id == "bundled"


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_valid_and_named(profile):
    environ = {"POLICYALIGN_MODEL__ID": "/models/mine"} if profile == "local" else {}
    assert load_settings(profile, environ=environ).profile == profile


def test_the_local_profile_asks_for_a_model():
    with pytest.raises(
        SettingsError, match="model.id does not name one. Fix: set POLICYALIGN_MODEL__ID"
    ):
        load_settings("local", environ={})


def test_the_qwen_profile_has_the_values_of_the_paper():
    s = load("qwen2.5-7b")
    d = s.distillation
    assert (
        d.top_k,
        d.batch_size,
        d.mini_batch_size,
        d.steps,
        d.ema_decay,
        d.temperature,
        d.max_new_tokens,
        d.teacher,
    ) == (256, 128, 64, 100, 0.99, 1.0, 1024, "ema")
    assert s.model.id == "Qwen/Qwen2.5-7B-Instruct"
    assert (
        s.distillation.weight_decay == Settings().distillation.weight_decay
    )  # what a profile does not name stays at the default


def test_environment_variables_set_fields_of_every_type():
    s = load(
        POLICYALIGN_DISTILLATION__STEPS="60",
        POLICYALIGN_DISTILLATION__TAIL="true",
        POLICYALIGN_SYNTHESIS__TWIN_RATIO="0.25",
        POLICYALIGN_MODEL__DTYPE="bfloat16",
    )
    assert (s.distillation.steps, s.distillation.tail, s.synthesis.twin_ratio, s.model.dtype) == (
        60,
        True,
        0.25,
        "bfloat16",
    )


@pytest.mark.parametrize("given", [",", "Ann,", "Ann,,Bob", " , "])
def test_a_list_with_an_empty_item_is_refused(given):
    """Or a slip of the keyboard would let anybody approve, or waive no gate that was meant."""
    with pytest.raises(SettingsError, match="RELEASE__APPROVERS has an empty item"):
        load_settings(environ={"POLICYALIGN_RELEASE__APPROVERS": given})
    assert load_settings(environ={"POLICYALIGN_RELEASE__APPROVERS": ""}).release.approvers == ()


def test_the_process_environment_is_read_when_none_is_given(monkeypatch):
    monkeypatch.setenv("POLICYALIGN_DISTILLATION__STEPS", "61")
    assert load_settings().distillation.steps == 61


def test_overrides_beat_environment_beats_profile_beats_default():
    variable = {"POLICYALIGN_DISTILLATION__STEPS": "60"}
    assert load().distillation.steps == Settings().distillation.steps != 60
    assert load("qwen2.5-7b").distillation.steps == 100
    assert load("qwen2.5-7b", **variable).distillation.steps == 60
    beaten = load("qwen2.5-7b", {"distillation": {"steps": 7}}, **variable)
    assert (beaten.distillation.steps, beaten.distillation.batch_size) == (
        7,
        128,
    )  # its neighbours stay


def test_a_named_profile_beats_the_variable():
    assert load(POLICYALIGN_PROFILE="qwen2.5-7b").profile == "qwen2.5-7b"
    assert load("bundled", POLICYALIGN_PROFILE="qwen2.5-7b").profile == "bundled"


def test_loading_leaves_the_profiles_as_they_are():
    load("qwen2.5-7b", {"distillation": {"steps": 7}})
    assert load("qwen2.5-7b").distillation.steps == 100


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ({"distilation": {"steps": 3}}, ["distilation"]),
        ({"distillation": {"stepz": 3}}, ["distillation.stepz"]),
        ({"distillation": {"steps": "many"}}, ["distillation.steps", "'many'"]),
        ({"distillation": {"steps": 0}}, ["distillation.steps", "0"]),
        ({"distillation": {"steps": {"a": 1}}}, ["distillation.steps"]),
        ({"distillation": {"learning_rate": float("nan")}}, ["distillation.learning_rate", "nan"]),
        ({"synthesis": {"near_duplicate": 1.5}}, ["synthesis.near_duplicate", "1.5"]),
        ({"model": {"dtype": "float8"}}, ["model.dtype", "float8"]),
        ({"distillation": 3}, ["distillation", "3"]),
        (
            {"distillation": {"batch_size": 100, "mini_batch_size": 64}},
            ["distillation", "batch_size=100", "mini_batch_size=64"],
        ),
        ({"filtering": {"per_rule": 41}}, ["filtering.per_rule=41", "synthesis.per_rule=40"]),
        ({"model": {"revision": "abc123"}}, ["model.revision='abc123'", "'bundled'"]),
    ],
)
def test_a_wrong_value_is_refused_by_name_and_value(overrides, names):
    message = refusal(overrides=overrides)
    assert [n for n in names if n not in message] == []


def test_a_table_in_place_of_a_value_that_the_profile_sets_is_refused_too():
    assert "distillation.steps" in refusal("qwen2.5-7b", {"distillation": {"steps": {"a": 1}}})


def test_every_wrong_value_is_named_at_once():
    message = refusal(
        overrides={"distillation": {"steps": "many", "top_k": 0}, "synthesis": {"per_rule": -1}}
    )
    assert all(
        n in message for n in ("distillation.steps", "distillation.top_k", "synthesis.per_rule")
    )


@pytest.mark.parametrize(
    "name", ["STEPS", "DISTILLATION__STEPZ", "TRAINING__STEPS", "PROFILE__STEPS", "PROFILE__REAL"]
)
def test_an_unknown_variable_is_refused_by_name(name):
    message = refusal(**{f"POLICYALIGN_{name}": "5"})
    assert f"POLICYALIGN_{name}" in message and "'5'" not in message  # it may be a secret


def test_a_wrong_value_in_a_variable_is_refused_by_name_and_value():
    message = refusal(POLICYALIGN_DISTILLATION__STEPS="many")
    assert "distillation.steps" in message and "'many'" in message


def test_variables_that_are_not_settings_are_let_through():
    assert (
        load(
            POLICYALIGN_DATA_DIR="/x",
            POLICYALIGN_POLICIES_DIR="/y",
            HOME="/z",
            DISTILLATION__STEPS="9",
        )
        == Settings()
    )


def test_an_unknown_profile_is_refused_by_name():
    assert "'gpt-9'" in refusal("gpt-9")
    assert "'gpt-9'" in refusal(POLICYALIGN_PROFILE="gpt-9")


def test_a_revision_is_for_hub_models_only(tmp_path):
    assert (
        load(overrides={"model": {"id": "owner/name", "revision": "abc"}}).model.revision == "abc"
    )
    assert str(tmp_path) in refusal(overrides={"model": {"id": str(tmp_path), "revision": "abc"}})


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(ValueError, match="frozen"):
        load().distillation.steps = 3


def test_importing_settings_loads_no_torch():
    code = (
        "import sys, policyalign_assets.settings as s; s.load_settings(environ={}); "
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    assert subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split() == ["False", "False"]


def test_overrides_cannot_choose_the_profile():
    with pytest.raises(SettingsError, match=r"qwen2\.5-7b.*POLICYALIGN_PROFILE"):
        load_settings(overrides={"profile": "qwen2.5-7b"}, environ={})


def test_full_fine_tuning_takes_smaller_steps_unless_told_otherwise():
    rates = [
        load_settings(
            environ={f"POLICYALIGN_DISTILLATION__{k}": v for k, v in asked.items()}
        ).distillation.learning_rate
        for asked in (
            {},
            {"TUNING": "full"},
            {"TUNING": "full", "LEARNING_RATE": "3e-5"},
            {"TUNING": "lora"},
        )
    ]
    assert rates == [1.2e-3, 1.2e-4, 3e-5, 1.2e-3]


@pytest.mark.parametrize(
    "environ, overrides, profile",
    [
        ({}, None, "bundled"),
        ({"POLICYALIGN_MODEL__ID": "bundled"}, None, "bundled"),
        ({"POLICYALIGN_MODEL__ID": "english"}, None, "english"),
        ({"POLICYALIGN_MODEL__ID": "/models/my-model"}, None, "local"),
        ({"POLICYALIGN_MODEL__ID": "Qwen/Qwen2.5-0.5B-Instruct"}, None, "local"),
        ({}, {"model": {"id": "/models/my-model"}}, "local"),
        ({"POLICYALIGN_MODEL__ID": "/m", "POLICYALIGN_PROFILE": "bundled"}, None, "bundled"),
        ({"POLICYALIGN_MODEL__ID": "/m", "POLICYALIGN_PROFILE": "qwen2.5-7b"}, None, "qwen2.5-7b"),
    ],
)
def test_a_foreign_model_never_gets_the_bundled_profile_by_accident(environ, overrides, profile):
    settings = load_settings(overrides=overrides, environ=environ)
    assert settings.profile == profile
    if profile == "local":  # the bundled model's own settings would ruin it
        bundled = load_settings(environ={})
        assert settings.synthesis.grid == "full"
        assert settings.distillation.learning_rate < bundled.distillation.learning_rate
        assert settings.sensitivity.max_new_tokens > bundled.sensitivity.max_new_tokens


def test_the_automatic_profile_is_said(caplog):
    load_settings(environ={"POLICYALIGN_MODEL__ID": "/models/said-once"})
    assert "profile 'local' is used" in caplog.text and "/models/said-once" in caplog.text


def test_arguments_of_the_chat_template_are_a_setting():
    given = {"POLICYALIGN_MODEL__TEMPLATE_ARGUMENTS": '{"enable_thinking": false}'}
    settings = load_settings(environ=given)
    assert settings.model.template_arguments == {"enable_thinking": False}
    plain = load_settings(environ={})
    # they shape data, and without any, nothing that was made before is out of date
    assert settings.model.shaping() != plain.model.shaping()
    assert "template_arguments" not in plain.model.shaping()


@pytest.mark.parametrize("name", ["messages", "strftime_now", "a b", "x %}{{ 1 }}", ""])
def test_a_name_that_is_no_argument_of_a_template_is_refused(name):
    with pytest.raises(SettingsError, match="no argument of a template"):
        load_settings(overrides={"model": {"template_arguments": {name: True}}}, environ={})


def test_parameters_of_an_endpoint_come_from_the_environment():
    given = {"POLICYALIGN_JUDGE__EXTRA_PARAMETERS": '{"reasoning_effort": "low", "top_k": 1}'}
    judge = load_settings(environ=given).judge
    assert judge.extra_parameters == {"reasoning_effort": "low", "top_k": 1}


@pytest.mark.parametrize("text", ["", "sk-secret", "[1]", "{", "null", "[" * 100_000])
def test_a_mapping_that_is_no_json_object_is_refused_without_repeating_it(text):
    with pytest.raises(SettingsError) as caught:
        load_settings(environ={"POLICYALIGN_JUDGE__EXTRA_PARAMETERS": text})
    assert "is no JSON object. Fix: write" in str(caught.value) and "sk-" not in str(caught.value)


def test_a_variable_that_the_code_reads_itself_is_not_taken_for_a_wrong_setting():
    package = Path(policyalign_assets.__file__).parent
    read = {
        name
        for file in package.rglob("*.py")
        for name in re.findall(
            r"environ(?:\.get\(|\[)\s*\"(POLICYALIGN_[A-Z_]+)\"", file.read_text(encoding="utf-8")
        )
    }
    assert {"POLICYALIGN_DEPLOYMENTS_DIR", "POLICYALIGN_DATA_DIR"} <= read
    load_settings(environ=dict.fromkeys(read - {"POLICYALIGN_PROFILE"}, "there"))


@pytest.mark.parametrize(
    ("section", "field", "value", "fix"),
    [
        ("sensitivity", "top_logprobs", 0, "set it to 1 or more"),
        ("sensitivity", "temperature", 0, "set it to more than 0"),
        ("distillation", "temperature", 3, "set it to 2.0 or less"),
        ("distillation", "steps", "many", "write a whole number"),
        ("distillation", "steps", 1.5, "write a whole number"),
        ("distillation", "learning_rate", "fast", "write a number"),
        ("warm_start", "enabled", "perhaps", "write true or false"),
        ("model", "engine", "fast", "set it to 'transformers', 'vllm' or 'vllm-server'"),
        ("distillation", "stepz", 3, "remove it, or correct its name"),
    ],
)
def test_a_value_out_of_its_bounds_or_of_another_kind_is_refused_with_the_fix(
    section, field, value, fix
):
    with pytest.raises(SettingsError, match=rf"{section}\.{field}: .*Fix: {re.escape(fix)}\."):
        load_settings(overrides={section: {field: value}}, environ={})
