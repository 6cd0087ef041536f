"""What shapes a stage's data beside its settings, its code and the data it reads.

Each function takes the settings and returns JSON-able content, for `Stage.shaped_by`. Only what is
in use under these settings is returned: a changed benchmark file matters only where benchmarks are
run. Nothing here loads a model.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from policyalign_assets.distillation.anchors import anchors_file
from policyalign_assets.engine.derived_models import sources_of
from policyalign_assets.engine.revision import local_revision
from policyalign_assets.engine.shipped_models import BUNDLED_WEIGHTS
from policyalign_assets.evaluation import case_texts, lm_eval_harness
from policyalign_assets.evaluation.benchmarks import files_of, manifest, version_of
from policyalign_assets.evaluation.case_plan import has_templates, judge_reads_rules
from policyalign_assets.judges.phrase_lists import phrases_hash
from policyalign_assets.judges.phrases import known_answers
from policyalign_assets.settings import BUNDLED, EvaluationSettings, ModelSettings, Settings
from policyalign_assets.stages.sources import code_version, digest
from policyalign_assets.world.world import lexicon


def model_weights(settings: Settings) -> str:
    return model_revision(settings.model)


def model_revision(model: ModelSettings) -> str:
    """The pinned revision of a hub model, or the hash of a local folder.

    The same as `engine.loading` finds, without importing torch.
    """
    if sources := sources_of(model.id):
        return sources.revision
    folder = BUNDLED_WEIGHTS if model.id == BUNDLED else Path(model.id)
    if not folder.is_dir():
        return model.revision or "unpinned"
    files = (f for f in folder.iterdir() if f.is_file())
    state = tuple(sorted((f.name, f.stat().st_mtime_ns, f.stat().st_size) for f in files))
    return _folder_revision(folder, state)


@cache
def _folder_revision(folder: Path, state: tuple[tuple[str, int, int], ...]) -> str:
    """`state` holds names, times and sizes: gigabytes are not read again on each look."""
    return local_revision(folder)


def judge_weights(settings: Settings) -> str | None:
    """The weights of a judge in this process; those of an endpoint are `judge.revision`."""
    judge = settings.judge
    if judge.engine != "local":
        return None
    return model_revision(
        settings.model.model_copy(update={"id": judge.model, "revision": judge.revision})
    )


def entailment_weights(settings: Settings) -> str | None:
    return judge_weights(settings) if settings.synthesis.entailment else None


def sensitivity_judge(settings: Settings) -> object:
    """Who says whether the model declined with and without the policy, and by what words."""
    from policyalign_assets.judges.choose import texts

    judge = settings.judge
    if settings.sensitivity.judge == "rules" or judge.kind == "rules":
        return [known_answers(settings)]
    return [judge.shaping(), texts(settings)[:1], judge_weights(settings)]


def tokenizer_packages(settings: Settings) -> dict[str, str | None]:
    """The libraries that turn text into token ids and sample from the model."""
    names = ["tokenizers", "transformers"]
    return _versions(names + ["vllm"] if settings.model.engine == "vllm" else names)


def validation_packages(_: Settings) -> dict[str, str | None]:
    """The libraries whose own data decides which drafts are dropped."""
    return _versions(["phonenumbers", "py3langid", "python-stdnum"])


def comparison_packages(settings: Settings) -> dict[str, str | None]:
    """The library that compares a written answer with the reference, where benchmarks are run."""
    return _versions(["math-verify"]) if _benchmarks_are_run(settings.evaluation) else {}


def _versions(packages: Iterable[str]) -> dict[str, str | None]:
    """The installed version of each package; None where it is not installed."""
    return {name: _version(name) for name in packages}


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def firewall_references(settings: Settings) -> dict[str, object]:
    """The evaluation prompts that synthesis keeps clear of, wherever they lie."""
    firewall, content = settings.firewall, dict[str, object]()
    if firewall.references:
        files = sorted(f for f in Path(firewall.references).rglob("*") if f.is_file())
        content["references"] = files_version(files)
    if firewall.own_cases and has_templates(settings):
        counted = settings.evaluation.model_dump(include={"cases_per_suite"})
        content["held-out cases"] = [counted, case_texts.texts(settings)]
    # The seed decides which of the author's requests are held out of synthesis.
    return content | {"held-out requests of authors": settings.evaluation.seed}


def heldout_templates(settings: Settings) -> list[object]:
    """The texts of held-out cases, and whether a judge reads the rules, so that duties have any."""
    return [case_texts.texts(settings), judge_reads_rules(settings)]


def everyday_requests(settings: Settings) -> object:
    """The requests that training mixes in: of a file, or of the bundled world."""
    distillation = settings.distillation
    if distillation.anchors == 0:
        return None
    if file := anchors_file(distillation, settings.model.id):
        return files_version([file])
    return lexicon() if settings.model.id == BUNDLED else None


def warm_start(settings: Settings) -> object:
    """The code and the phrases by which a warm start goes on and stops, where it is on."""
    if not settings.warm_start.enabled:
        return None
    modules = ("distillation.warm_start", "judges.phrases")
    return [
        *(code_version(f"policyalign_assets.{module}") for module in modules),
        phrases_hash(),
        known_answers(settings),
    ]


def public_benchmarks(settings: Settings) -> str:
    return benchmarks_version(settings.evaluation)


def benchmarks_version(evaluation: EvaluationSettings) -> str:
    """Changes with the manifest and with any file of a benchmark, wherever the folder is."""
    folder = Path(evaluation.benchmarks_dir) if evaluation.benchmarks_dir else None
    benchmarks = manifest(folder)
    files = [(b.id, f) for b in benchmarks for f in (files_of(b, folder) if folder else ())]
    return digest(
        [
            [b.model_dump(mode="json") for b in benchmarks],
            [benchmark for benchmark, _ in files],
            files_version(f for _, f in files),
        ]
    )


def lm_eval(settings: Settings) -> object:
    """The harness for multiple-choice questions and its task file, where benchmarks are run."""
    if not _benchmarks_are_run(settings.evaluation):
        return None
    return [lm_eval_harness.installed_version(), lm_eval_harness.texts()]


def _benchmarks_are_run(evaluation: EvaluationSettings) -> bool:
    return bool(evaluation.benchmarks_dir) or evaluation.benchmarks_from_hub


def files_version(files: Iterable[Path]) -> str:
    """Hash of what the files hold, wherever they lie. An unchanged file is read only once."""
    return digest(
        [_file_version(f, f.stat().st_mtime_ns, f.stat().st_size) for f in files if f.is_file()]
    )


@cache
def _file_version(file: Path, changed: int, size: int) -> str:
    return version_of([file])
