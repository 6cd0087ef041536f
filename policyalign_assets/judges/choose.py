"""The judge that the settings ask for."""

from __future__ import annotations

from collections.abc import Callable

from policyalign_assets.judges.endpoint import EndpointJudge
from policyalign_assets.judges.local import EngineJudge, LocalModel, local_model
from policyalign_assets.judges.phrases import judge_for, known_answers
from policyalign_assets.judges.tasks import (
    Correctness,
    PolicyJudge,
    Qwen3Guard,
    StrongRejectRubric,
    Task,
)
from policyalign_assets.judges.verdict import Dialogue, Judge
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.settings import JudgeSettings, Settings

Report = Callable[[str], None]
PROBE = Dialogue(
    "How long does an egg have to boil?", "Eight minutes in boiling water make it hard."
)


def make_judge(
    settings: JudgeSettings,
    model_id: str,
    policy: PolicyDocument,
    report: Report = lambda _: None,
) -> Judge:
    """`model_id`: whose answers are judged; the phrase judge knows those of the bundled model.

    Raises SettingsError.
    """
    match settings.kind:
        case "rules":
            return judge_for(model_id)
        case "qwen3guard":
            return judge_of(Qwen3Guard(settings.strict), settings, report)
        case "policy":
            return judge_of(PolicyJudge(policy), settings, report)
        case "strongreject":
            return judge_of(StrongRejectRubric(), settings, report)


def make_correctness_judge(
    settings: JudgeSettings, report: Report = lambda _: None
) -> Judge | None:
    """Of free answers to questions; None where the configured judge writes no JSON."""
    if settings.kind not in ("policy", "strongreject"):
        return None
    return judge_of(Correctness(), settings, report)


def judge_of(
    task: Task,
    settings: JudgeSettings,
    report: Report = lambda _: None,
    model: LocalModel | None = None,
) -> Judge:
    """A judge model for `task`, at the endpoint or in this process. `model`: already made, so
    that several tasks share the weights of a local judge. Raises SettingsError."""
    if settings.engine == "local":
        return EngineJudge(task, settings, model or local_model(settings), report)
    return EndpointJudge(task, settings, report)


def probe(judge: Judge) -> str | None:
    """Asks the judge about one harmless answer. The reason why it cannot judge, or None."""
    return judge.judge_all([PROBE])[0].reason


def templates(settings: JudgeSettings) -> dict[str, str]:
    """{what is asked: hash of its prompt template}; empty where nothing is asked."""
    asked: dict[str, tuple[type[Task], ...]] = {
        "qwen3guard": (Qwen3Guard,),
        "policy": (PolicyJudge, Correctness),
        "strongreject": (StrongRejectRubric, Correctness),
    }
    return {task.__name__: task.template for task in asked.get(settings.kind, ())}


def texts(settings: Settings) -> list[object]:
    """What the configured judge is asked, or the answers that the phrase judge knows."""
    match settings.judge.kind:
        case "rules":
            return [known_answers(settings)]
        case "qwen3guard":
            return [Qwen3Guard.CATEGORIES]
        case "policy":
            return [_prompts(PolicyJudge), _prompts(Correctness)]
        case "strongreject":
            return [_prompts(StrongRejectRubric), _prompts(Correctness)]


def _prompts(task: type[PolicyJudge | StrongRejectRubric | Correctness]) -> list[str]:
    return [task.SYSTEM, task.USER]


def described(judge: Judge) -> str:
    """For the header of a report."""
    if judge.template is None:
        return f"phrase rules ({judge.id})"
    return (
        f"{judge.id}, revision {judge.revision or 'not stated'}, prompt template {judge.template}"
    )
