"""What makes a stage out of date, by kind: each text, each file, each code version, each setting.

Files are changed as an editor would change them: whoever reads the file sees the new text.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml

from policyalign_assets.evaluation import benchmarks, probe_texts
from policyalign_assets.files import parse_shipped_yaml
from policyalign_assets.judges import tasks
from policyalign_assets.settings import NO_EFFECT, Settings, load_settings
from policyalign_assets.stages import fingerprints, registry, shaping, sources
from policyalign_assets.stages.registry import EVERY_STAGE, STAGES
from policyalign_assets.synthesis import texts
from policyalign_assets.world import prompts, world

DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
FOREIGN = {"model": {"id": "org/instruct"}}
POLICY_JUDGE = {"judge": {"kind": "policy", "base_url": "http://localhost/v1", "model": "m"}}
SETTINGS = {
    "bundled": {},
    "full grid": {**FOREIGN, "synthesis": {"grid": "full"}},
    "policy judge": POLICY_JUDGE,
    "phrases for flips": {**POLICY_JUDGE, "sensitivity": {"judge": "rules"}},
    "guard, phrases for flips": {
        "judge": {**POLICY_JUDGE["judge"], "kind": "qwen3guard"},
        "sensitivity": {"judge": "rules"},
    },
    "phrases for flips, bundled": {"sensitivity": {"judge": "rules"}},
    "entailment": {**FOREIGN, **POLICY_JUDGE, "synthesis": {"grid": "full", "entailment": True}},
    "qwen3guard": {"judge": {**POLICY_JUDGE["judge"], "kind": "qwen3guard"}},
    "strongreject": {"judge": {**POLICY_JUDGE["judge"], "kind": "strongreject"}},
    "own cases": {"firewall": {"own_cases": True}},
    "foreign": FOREIGN,
    "vllm": {"model": {"engine": "vllm"}},
    "warm starts": {"warm_start": {"enabled": True}},
    "benchmarks": {"evaluation": {"benchmarks_from_hub": True}},
}


def settings(name: str) -> Settings:
    return load_settings("bundled", SETTINGS[name], environ={})


def forget() -> None:
    """Drops what was read before, as a process that starts again does."""
    for cached in (
        world.lexicon,
        texts.load_yaml,
        benchmarks.shipped_benchmarks,
        probe_texts.probe_texts,
        probe_texts.everyday_actions,
        probe_texts._yaml,
        sources.code_version,
        sources._files,
        shaping._version,
    ):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def _fresh():
    yield
    forget()


class Edits:
    """Files whose text differs for every reader, and by that the stages that differ."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch

    def file(self, name: str, change: Callable[[str], str]) -> None:
        read = Path.read_text

        def edited(path, *args, **kwargs):
            text = read(path, *args, **kwargs)
            return change(text) if path.name == name else text

        self.monkeypatch.setattr(Path, "read_text", edited)
        forget()

    def stale(self, before: dict[str, str], name: str) -> set[str]:
        now = fingerprints.own_versions(settings(name))
        return {stage for stage in STAGES if now[stage] != before[stage]}


@pytest.fixture()
def edits(monkeypatch):
    return Edits(monkeypatch)


@cache
def rewritten(text: str) -> str:
    """The same YAML, as another tool would lay it out."""
    content = parse_shipped_yaml(text)
    return "# laid out anew\n" + yaml.dump(content, Dumper=DUMPER, sort_keys=False, width=50)


READ_REFUSALS = {"violating_instructions", "sensitivity_scores", "judgements"}
FILES = [
    # file, settings in use, what is out of date when a word changes
    ("grid.yaml", "full grid", {"violating_instructions"}),
    ("grid.yaml", "bundled", set()),
    ("entailment.yaml", "entailment", {"violating_instructions"}),
    ("entailment.yaml", "full grid", set()),
    ("attribution.yaml", "full grid", {"violating_instructions"}),
    ("attribution.yaml", "entailment", set()),
    ("attribution.yaml", "bundled", set()),
    ("lexicon.yaml", "bundled", {"distilled_checkpoint", "generations"}),
    ("lexicon.yaml", "foreign", set()),
    (
        "lexicon.yaml",
        "own cases",
        {"violating_instructions", "distilled_checkpoint", "generations"},
    ),
    ("probes.yaml", "bundled", {"generations"}),
    ("probes.yaml", "own cases", {"violating_instructions", "generations"}),
    ("everyday.yaml", "foreign", {"generations"}),
    ("plain_questions.yaml", "foreign", {"generations"}),
    ("plain_questions.yaml", "bundled", set()),
    *(("refusals.yaml", name, READ_REFUSALS) for name in SETTINGS),
    ("function_words.yaml", "bundled", READ_REFUSALS),
    ("benchmarks.yaml", "bundled", {"generations"}),
    ("capability.yaml", "benchmarks", {"generations"}),
    ("capability.yaml", "bundled", set()),
    ("select.sql", "bundled", {"filtered_instructions"}),
    ("report.html.jinja", "bundled", {"benchmark_report"}),
]
CHANGES = {
    "grid.yaml": lambda t: t.replace("asks for it openly", "asks for it plainly"),
    "entailment.yaml": lambda t: t.replace("gets a no", "gets a no, too", 1),
    "attribution.yaml": lambda t: t.replace("breaks this rule", "violates this rule", 1),
    "lexicon.yaml": lambda t: (
        t.replace("nouns:", "nouns: newword", 1)
        if "nouns: >" not in t
        else t.replace("nouns: >", "nouns: >\n  newword", 1)
    ),
    "probes.yaml": lambda t: t.replace("Any tips", "Any hints"),
    "everyday.yaml": lambda t: t.replace("fold a paper boat", "fold a paper hat"),
    "plain_questions.yaml": lambda t: t.replace("capital of France", "largest city of France"),
    "refusals.yaml": lambda t: t.replace("      - '", "      - 'no way'\n      - '", 1),
    "function_words.yaml": lambda t: t.replace("en: the ", "en: the thee ", 1),
    "benchmarks.yaml": lambda t: t.replace("metric: ", "metric: other ", 1),
    "capability.yaml": lambda t: t.replace("metric: acc", "metric: acc_norm"),
    "select.sql": lambda t: t.replace("score DESC", "score ASC", 1),
    "report.html.jinja": lambda t: t.replace("</body>", "<p>More</p></body>"),
}
LAYOUTS = {
    "select.sql": lambda t: (
        "-- a note\n" + t.replace("\n", "\n\n").replace("SELECT ", "SELECT\n  ")
    ),
    "report.html.jinja": lambda t: "{# a note #}" + t.replace("\n", "\n  \n"),
}


@pytest.mark.parametrize(("file", "in_use", "expected"), FILES)
def test_a_changed_word_in_a_data_file(edits, file, in_use, expected):
    before = fingerprints.own_versions(settings(in_use))
    edits.file(file, CHANGES[file])
    assert edits.stale(before, in_use) == expected


@pytest.mark.parametrize(("file", "in_use"), [(f, s) for f, s, expected in FILES if expected])
def test_a_data_file_laid_out_anew_changes_nothing(edits, file, in_use):
    before = fingerprints.own_versions(settings(in_use))
    edits.file(file, LAYOUTS.get(file, rewritten))
    assert edits.stale(before, in_use) == set()


@pytest.mark.parametrize(
    ("where", "name", "in_use", "expected"),
    [
        (prompts, "VIOLATION", "bundled", {"violating_instructions"}),
        (prompts, "TWIN", "bundled", {"violating_instructions"}),
        (prompts, "NEIGHBOUR", "full grid", set()),
        (tasks.PolicyJudge, "SYSTEM", "policy judge", {"judgements", "sensitivity_scores"}),
        (tasks.PolicyJudge, "SYSTEM", "phrases for flips", {"judgements"}),
        (tasks.PolicyJudge, "SYSTEM", "bundled", set()),
        (tasks.PolicyJudge, "USER", "policy judge", {"judgements", "sensitivity_scores"}),
        (tasks.Correctness, "SYSTEM", "policy judge", {"judgements"}),
        (tasks.StrongRejectRubric, "SYSTEM", "strongreject", {"judgements", "sensitivity_scores"}),
        (tasks.Qwen3Guard, "CATEGORIES", "qwen3guard", {"judgements", "sensitivity_scores"}),
    ],
)
def test_a_changed_text_in_python(monkeypatch, edits, where, name, in_use, expected):
    before = fingerprints.own_versions(settings(in_use))
    old = getattr(where, name)
    monkeypatch.setattr(where, name, old + (" more" if isinstance(old, str) else ("more",)))
    assert edits.stale(before, in_use) == expected


def test_a_changed_answer_of_the_bundled_model_redoes_what_the_phrase_judge_reads(edits):
    before = fingerprints.own_versions(settings("bundled"))
    answer = world.lexicon()["comply"][0]
    edits.file("lexicon.yaml", lambda text: text.replace(answer, answer + " Gladly."))
    assert edits.stale(before, "bundled") == {
        "sensitivity_scores",
        "distilled_checkpoint",
        "generations",
        "judgements",
    }


MODULES = sorted({module for stage in EVERY_STAGE.values() for module in stage.code.values()})


@pytest.mark.parametrize("module", MODULES)
def test_a_raised_code_version_redoes_the_stages_that_name_the_module(edits, module):
    before = fingerprints.own_versions(settings("bundled"))
    path = Path(sources.PACKAGE.parent, *module.split(".")).with_suffix(".py")
    line = f"CODE_VERSION = {sources.code_version(module)}"
    same = path.read_text()
    read = Path.read_text
    changed = {path: same.replace(line, "CODE_VERSION = 99")}
    edits.monkeypatch.setattr(
        Path, "read_text", lambda p, *a, **k: changed.get(p) or read(p, *a, **k)
    )
    forget()
    now = fingerprints.own_versions(settings("bundled"))
    assert {name for name in EVERY_STAGE if now[name] != before[name]} == {
        name for name, stage in EVERY_STAGE.items() if module in stage.code.values()
    }


@pytest.mark.slow
def test_code_versions_are_read_without_importing_the_trainer():
    code = (
        "import sys; from policyalign_assets.stages import fingerprints as f;"
        "from policyalign_assets.settings import load_settings as s;"
        "f.own_versions(s(environ={}));"
        "print([m for m in ('torch', 'transformers', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_moved_module_or_a_renamed_file_changes_nothing(monkeypatch, edits, tmp_path):
    before = fingerprints.own_versions(settings("bundled"))
    (tmp_path / "moved").mkdir()
    shutil.copy(sources.PACKAGE / "filtering/select.sql", tmp_path / "moved/other_name.sql")
    (tmp_path / "moved_module.py").write_text(
        f"CODE_VERSION = {sources.code_version('policyalign_assets.filtering.select')}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sources, "PACKAGE", tmp_path)
    moved = replace(
        STAGES["filtered_instructions"],
        code={"selection": "moved_module"},
        shaped_by={"selection query": "moved/*.sql"},
    )
    monkeypatch.setitem(registry.EVERY_STAGE, "filtered_instructions", moved)
    forget()
    own = fingerprints.own_version("filtered_instructions", settings("bundled"))
    assert own == before["filtered_instructions"]


@pytest.mark.parametrize(
    ("package", "in_use", "expected"),
    [
        (
            "transformers",
            "bundled",
            {"violating_instructions", "sensitivity_scores", "distilled_checkpoint", "generations"},
        ),
        ("vllm", "bundled", set()),
        (
            "vllm",
            "vllm",
            {"violating_instructions", "sensitivity_scores", "distilled_checkpoint", "generations"},
        ),
        ("phonenumbers", "bundled", {"violating_instructions"}),
        ("math-verify", "benchmarks", {"judgements"}),
        ("math-verify", "bundled", set()),
    ],
)
def test_another_version_of_a_library(monkeypatch, edits, package, in_use, expected):
    before = fingerprints.own_versions(settings(in_use))
    real = shaping._version
    monkeypatch.setattr(shaping, "_version", lambda p: "0.0.1" if p == package else real(p))
    assert edits.stale(before, in_use) == expected
    monkeypatch.undo()


def test_lm_eval_installed_later_redoes_the_answers(monkeypatch, edits):
    before = fingerprints.own_versions(settings("benchmarks"))
    monkeypatch.setattr(shaping.lm_eval_harness, "installed_version", lambda: "9.9")
    assert edits.stale(before, "benchmarks") == {"generations"}


def sections() -> list[tuple[str, str]]:
    return [
        (section, field)
        for section, spec in Settings.model_fields.items()
        if section != "profile"
        for field in spec.annotation.model_fields
    ]


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize(("section", "field"), sections())
def test_each_setting_redoes_the_stages_that_read_it_unless_it_shapes_nothing(section, field):
    base = settings("warm starts")  # switched off, their other settings shape nothing
    kind = type(getattr(base, section))
    value = {"cases_per_suite": 7, "seed": 7, "anchors": 7, "kind": "policy"}.get(field, "changed")
    changed = base.model_copy(
        update={section: getattr(base, section).model_copy(update={field: value})}
    )
    marked = kind.model_fields[field].json_schema_extra == NO_EFFECT
    readers = {name for name, stage in EVERY_STAGE.items() if section in stage.settings}
    now, before = (
        {stage: fingerprints.settings_read(stage, s) for stage in EVERY_STAGE}
        for s in (changed, base)
    )
    assert {s for s in EVERY_STAGE if now[s] != before[s]} == (set() if marked else readers)


def test_settings_of_warm_starts_shape_nothing_while_these_are_switched_off():
    base = settings("bundled")
    shorter = base.warm_start.model_copy(update={"rounds": 1})
    changed = base.model_copy(update={"warm_start": shorter})
    assert fingerprints.own_versions(changed) == fingerprints.own_versions(base)


def test_what_follows_an_out_of_date_stage_is_out_of_date_too():
    chain = list(STAGES)
    before = fingerprints.desired("hash", settings("bundled"))
    after = fingerprints.desired("hash", settings("policy judge"))
    # the judge says which twins the teacher answers, so it shapes what is trained
    at = chain.index("sensitivity_scores")
    assert [s for s in chain if before[s] != after[s]] == chain[at:]
    before = fingerprints.desired("hash", settings("phrases for flips, bundled"))
    after = fingerprints.desired("hash", settings("guard, phrases for flips"))
    assert [s for s in chain if before[s] != after[s]] == ["judgements", "benchmark_report"]
    edited = fingerprints.desired("another hash", settings("bundled"))
    assert all(before[s] != edited[s] for s in chain)


def test_a_recipe_names_its_parts_in_words():
    parts = fingerprints.recipe("judgements", settings("policy judge"))
    assert set(parts) == {"code", "settings", "shaped by"}
    assert parts["settings"]["judge"]["kind"] == "policy"
    assert "judge prompts" in parts["shaped by"] and "judging" in parts["code"]
    assert "api_key" not in str(parts) and "base_url" not in str(parts)


def test_every_stage_has_a_module_and_reads_stages_before_it():
    for place, (name, stage) in enumerate(STAGES.items()):
        assert set(stage.upstream) <= set(list(STAGES)[:place])
        assert (sources.PACKAGE / "stages" / f"{name}.py").is_file()
        assert set(stage.settings) <= set(Settings.model_fields)


@pytest.mark.parametrize("missing", ["filtering/*.nothing", "policyalign_assets.policy.model"])
def test_a_registry_entry_that_points_nowhere_is_an_error_that_names_it(missing):
    with pytest.raises(sources.SourceError, match=missing.replace("*", r"\*")):
        sources.code_version(missing) if "*" not in missing else sources._files(missing)
