"""The definitions: they load fast, say wrong settings in plain words, and keep their layers."""

import dagster as dg
import pytest
from test_pipeline import ROOT, run

from policyalign_assets import definitions

pytestmark = pytest.mark.slow


def test_definitions_load_without_the_heavy_libraries():
    loaded = run(
        "-c",
        "import policyalign_assets.definitions, sys; "
        "print(sorted({'torch', 'transformers', 'peft', 'vllm', 'matplotlib', 'duckdb', 'scipy', "
        "'pandas',"
        " 'lm_eval', 'inspect_ai', 'openai', 'statsmodels', 'datasketch', 'datasets'} & "
        "set(sys.modules)))",
    )
    assert loaded.stdout.strip() == "[]", loaded.stdout + loaded.stderr


def test_definitions_validate():
    done = run("-m", "dagster", "definitions", "validate", "-m", "policyalign_assets.definitions")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "POLICYALIGN_DISTILLATION__STEPS",
            "abc",
            "distillation.steps: Input should be a valid integer",
        ),
        (
            "POLICYALIGN_DISTILATION__STEPS",
            "60",
            "POLICYALIGN_DISTILATION__STEPS names no setting",
        ),
        ("POLICYALIGN_PROFILE", "gpt", "profile 'gpt' does not exist"),
        ("POLICYALIGN_LAUNCHER", "slurm", "POLICYALIGN_LAUNCHER='slurm' names no launcher"),
    ],
)
def test_a_wrong_setting_of_the_environment_is_answered_in_plain_words(
    tmp_path, name, value, words
):
    done = run(
        "-m",
        "dagster",
        "asset",
        "list",
        "-m",
        "policyalign_assets.definitions",
        DAGSTER_HOME=str(tmp_path),
        **{name: value},
    )
    assert (
        done.returncode == 1
        and words in done.stderr
        and name in done.stderr
        and "Traceback" not in done.stdout + done.stderr
    )


def test_the_ui_is_told_the_plain_words_too():
    done = run(
        "-m",
        "dagster",
        "definitions",
        "validate",
        "-m",
        "policyalign_assets.definitions",
        POLICYALIGN_DISTILLATION__STEPS="abc",
    )
    assert (
        done.returncode == 1
        and "distillation.steps: Input should be a valid integer" in done.stdout + done.stderr
    )


def test_what_is_read_from_outside_stands_in_the_graph():
    graph = definitions.defs.resolve_asset_graph()
    outside = {
        "generations": {"base_model", "public_benchmarks"},
        "judgements": {"judge"},
        "distilled_checkpoint": {"base_model"},
    }
    for stage, names in outside.items():
        parents = {k.to_user_string() for k in graph.get(dg.AssetKey(stage)).parent_keys}
        assert names <= parents and not any(
            graph.get(dg.AssetKey(name)).is_materializable for name in names
        )


def test_the_methods_modules_import_no_dagster():
    """They can be used from a notebook."""
    modules = [
        ".".join(p.relative_to(ROOT).with_suffix("").parts)
        for p in (ROOT / "policyalign_assets").rglob("*.py")
        if "orchestration" not in p.parts
        and p.name not in ("definitions.py", "__init__.py", "inspect_tasks.py")
    ]  # the last needs an extra
    done = run(
        "-c",
        f"import importlib, sys; [importlib.import_module(m) for m in {modules!r}]; "
        f"print('dagster' in sys.modules)",
    )
    assert done.stdout.strip() == "False", done.stdout + done.stderr
