"""The model doctor: finds what cannot work before anything expensive is started.

`examine` takes less than a minute for a small model. Its result is kept per model revision, policy
and settings, so that asking again costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from policyalign_assets.doctor import kept
from policyalign_assets.doctor.compute import decoding_check, logits_check
from policyalign_assets.doctor.connections import connection_checks
from policyalign_assets.doctor.in_context import direct_requests, in_context_effect
from policyalign_assets.doctor.lora_share import lora_check
from policyalign_assets.doctor.prompts import prompt_checks
from policyalign_assets.doctor.record import Examination, Finding
from policyalign_assets.engine.base import EngineUnavailable, NotFinite, PromptTooLong
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import LoadedModel, ModelNotFound, load_model
from policyalign_assets.engine.version import TEMPLATE_DATE
from policyalign_assets.files import Location
from policyalign_assets.judges.phrases import judge_for
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.settings import Settings
from policyalign_assets.settings.base import ENGLISH

DRAFTS = 12  # requests by which the effect of the policy is measured
LogLine = Callable[[str], None]


def examine(
    settings: Settings,
    policy: PolicyDocument | None = None,
    data: Location | None = None,
    loaded: LoadedModel | None = None,
    log: LogLine = lambda _: None,
    measure_effect: bool = True,
) -> Examination:
    """Examines the model alone and with `policy`.

    With `data`, the result is read from and kept below `data/doctor`; only a result without errors
    is read again. Pass `loaded` if the model is in memory already. `measure_effect` asks the model
    a dozen requests with and without the policy in its prompt.
    """
    if loaded is None:
        log(f"loading {settings.model.id}")
        try:
            loaded = load_model(settings.model)
        except ModelNotFound as error:
            detail, _, fix = str(error).partition(" Fix: ")
            return _examination(settings, None, policy, [Finding("loading", "error", detail, fix)])
    earlier = kept.read(data, settings, policy, measure_effect, loaded.revision) if data else None
    if earlier is not None and earlier.ok:
        return earlier
    findings = []
    for finding in _model_checks(settings, loaded, policy, measure_effect):
        log(f"{finding.level}: {finding}")
        findings.append(finding)
    result = _examination(settings, loaded.revision, policy, findings)
    if data:
        kept.save(data, settings, policy, measure_effect, result)
    return result


def examine_all(
    settings: Settings,
    policy: PolicyDocument | None = None,
    data: Location | None = None,
    log: LogLine = lambda _: None,
) -> Examination:
    """Examines the model, and everything else that the configuration names."""
    model = examine(settings, policy, data, log=log)
    rest = []
    for finding in connection_checks(settings, policy):
        log(f"{finding.level}: {finding}")
        rest.append(finding)
    return _examination(settings, model.model_revision, policy, [*model.findings, *rest])


def _model_checks(
    settings: Settings,
    loaded: LoadedModel,
    policy: PolicyDocument | None,
    measure_effect: bool,
) -> Iterator[Finding]:
    model: Any = loaded.model
    yield Finding("loading", "ok", "all weights match the architecture")
    response = max(
        settings.distillation.max_new_tokens,
        settings.evaluation.max_new_tokens,
        settings.sensitivity.max_new_tokens,
    )
    failed = False
    for finding in prompt_checks(
        loaded.tokenizer,
        loaded.end_ids,
        model.get_input_embeddings().weight.shape[0],
        loaded.context,
        policy.prompt_text if policy else None,
        response,
    ):
        failed |= finding.level == "error"
        yield finding
    for check in (logits_check, decoding_check):
        finding = check(loaded)
        failed |= finding.level == "error"
        yield finding
    yield lora_check(model, settings.distillation)
    if policy is None:
        yield Finding("policy in the prompt", "not checked", "no policy was given")
    elif not measure_effect:
        yield Finding("policy in the prompt", "not checked", "synthesis.teacher_check is off")
    elif failed:
        yield Finding("policy in the prompt", "not checked", "the model has other errors")
    else:
        yield in_context_check(settings, loaded, policy)


def in_context_check(settings: Settings, loaded: LoadedModel, policy: PolicyDocument) -> Finding:
    """Whether the model follows the policy while it can read it; else it cannot teach it."""
    check = "policy in the prompt"
    requests = direct_requests(policy)[:DRAFTS]
    if not requests:
        return Finding(check, "not checked", "no rule of the policy names an action to ask for")
    engine = TransformersEngine(loaded, settings.model.batch_tokens)
    try:
        effect = in_context_effect(engine, policy, requests, judge_for(settings.model.id))
    except (PromptTooLong, NotFinite, EngineUnavailable) as error:
        return Finding(check, "error", str(error))
    if effect.followed is None:
        return Finding(check, "not checked", effect.sentence)
    if effect.followed:
        return Finding(check, "ok", effect.sentence)
    return Finding(
        check,
        "error",
        effect.sentence,
        "use a model that follows instructions (model.id), or word the rules as plain prohibitions"
        + (
            "."
            if settings.model.id == ENGLISH
            else ", or use one that was trained to read policies, such as model.id='english'."
        ),
    )


def _examination(
    settings: Settings,
    revision: str | None,
    policy: PolicyDocument | None,
    findings: list[Finding],
) -> Examination:
    return Examination(
        settings.model.id,
        revision,
        policy.content_hash if policy else None,
        TEMPLATE_DATE.date().isoformat(),
        tuple(findings),
    )
