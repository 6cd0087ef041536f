"""The judge that the settings ask for."""

from __future__ import annotations

from collections.abc import Callable

from policyalign_assets.judges.endpoint import EndpointJudge
from policyalign_assets.judges.phrases import judge_for, known_answers
from policyalign_assets.judges.tasks import Correctness, PolicyJudge, Qwen3Guard, StrongRejectRubric
from policyalign_assets.judges.verdict import Judge
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.settings import JudgeSettings, Settings


def make_judge(
    settings: JudgeSettings,
    model_id: str,
    policy: PolicyDocument,
    report: Callable[[str], None] = lambda _: None,
) -> Judge:
    """`model_id`: whose answers are judged; the rule-based judge knows those of the bundled model. Raises SettingsError."""
    match settings.kind:
        case "rules":
            return judge_for(model_id)
        case "qwen3guard":
            return EndpointJudge(Qwen3Guard(settings.strict), settings, report)
        case "policy":
            return EndpointJudge(PolicyJudge(policy), settings, report)
        case "strongreject":
            return EndpointJudge(StrongRejectRubric(), settings, report)


def make_correctness_judge(
    settings: JudgeSettings, report: Callable[[str], None] = lambda _: None
) -> Judge | None:
    """Of free answers to questions; None where the configured judge is not a model that writes JSON."""
    return (
        EndpointJudge(Correctness(), settings, report)
        if settings.kind in ("policy", "strongreject")
        else None
    )


def templates(settings: JudgeSettings) -> dict[str, str]:
    """{what is asked: hash of its prompt template}; empty where nothing is asked."""
    asked = {
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
