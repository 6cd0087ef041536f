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
from policyalign_assets.doctor.read_again import read_again_check
from policyalign_assets.doctor.record import Examination, Finding
from policyalign_assets.engine.base import Engine, EngineUnavailable, NotFinite, PromptTooLong
from policyalign_assets.engine.generation.opening import opened_servers
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import (
    LoadedModel,
    ModelNotFound,
    describe,
    load_model,
    without_weights,
)
from policyalign_assets.engine.version import TEMPLATE_DATE
from policyalign_assets.files import Location
from policyalign_assets.judges.phrases import judge_for
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.settings import Settings
from policyalign_assets.settings.base import ENGLISH

# Requests by which the effect of the policy is measured, and more that are asked if they leave it
# open.
DRAFTS, MORE_DRAFTS = 12, 36
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
    a dozen requests with and without the policy in its prompt. Where `model.weights` is `servers`,
    no weights are loaded, and the servers are asked. Raises ServersDown and ServerRefuses there.
    """
    if settings.model.weights == "servers":
        try:
            revision = describe(settings.model).revision
        except ModelNotFound as error:
            return _examination(settings, None, policy, [_not_loaded(error)])
        return _kept_or_made(
            settings,
            policy,
            data,
            revision,
            log,
            measure_effect,
            lambda: served_checks(settings, policy, measure_effect),
        )
    if loaded is None:
        log(f"loading {settings.model.id}")
        try:
            loaded = load_model(settings.model)
        except ModelNotFound as error:
            return _examination(settings, None, policy, [_not_loaded(error)])
    model = loaded
    return _kept_or_made(
        settings,
        policy,
        data,
        model.revision,
        log,
        measure_effect,
        lambda: _model_checks(settings, model, policy, measure_effect),
    )


def _not_loaded(error: ModelNotFound) -> Finding:
    detail, _, fix = str(error).partition(" Fix: ")
    return Finding("loading", "error", detail, fix)


def _kept_or_made(
    settings: Settings,
    policy: PolicyDocument | None,
    data: Location | None,
    revision: str,
    log: LogLine,
    measure_effect: bool,
    checks: Callable[[], Iterator[Finding]],
) -> Examination:
    earlier = kept.read(data, settings, policy, measure_effect, revision) if data else None
    if earlier is not None and earlier.ok:
        return earlier
    findings = []
    for finding in checks():
        log(f"{finding.level}: {finding}")
        findings.append(finding)
    result = _examination(settings, revision, policy, findings)
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
    failed = False
    for finding in prompt_checks(
        loaded.tokenizer,
        loaded.end_ids,
        model.get_input_embeddings().weight.shape[0],
        loaded.context,
        policy.prompt_text if policy else None,
        _longest_response(settings),
    ):
        failed |= finding.level == "error"
        yield finding
    for check in (logits_check, decoding_check):
        finding = check(loaded)
        failed |= finding.level == "error"
        yield finding
    yield lora_check(model, settings.distillation)
    engine = TransformersEngine(loaded, settings.model.batch_tokens)
    yield _effect(settings, engine, policy, measure_effect, failed)


def served_checks(
    settings: Settings, policy: PolicyDocument | None, measure_effect: bool
) -> Iterator[Finding]:
    """The checks of a model whose weights are at servers alone."""
    model = describe(settings.model)
    config = model.config.get_text_config()
    yield Finding("loading", "not checked", "the weights are at the servers (model.weights)")
    failed = False
    for finding in prompt_checks(
        model.tokenizer,
        model.end_ids,
        config.vocab_size,
        model.context,
        policy.prompt_text if policy else None,
        _longest_response(settings),
    ):
        failed |= finding.level == "error"
        yield finding
    with opened_servers(settings.model) as engine:
        finding = read_again_check(engine, settings.sensitivity.top_logprobs)
        failed |= finding.level == "error"
        yield finding
        yield lora_check(without_weights(model.config), settings.distillation)
        yield _effect(settings, engine, policy, measure_effect, failed)


def _longest_response(settings: Settings) -> int:
    return max(
        settings.distillation.max_new_tokens,
        settings.evaluation.max_new_tokens,
        settings.sensitivity.max_new_tokens,
    )


def _effect(
    settings: Settings,
    engine: Engine,
    policy: PolicyDocument | None,
    measure_effect: bool,
    failed: bool,
) -> Finding:
    check = "policy in the prompt"
    if policy is None:
        return Finding(check, "not checked", "no policy was given")
    if not measure_effect:
        return Finding(check, "not checked", "synthesis.teacher_check is off")
    if failed:
        return Finding(check, "not checked", "the model has other errors")
    return in_context_check(settings, engine, policy)


def in_context_check(settings: Settings, engine: Engine, policy: PolicyDocument) -> Finding:
    """Whether the model follows the policy while it can read it; else it cannot teach it."""
    check = "policy in the prompt"
    requests = direct_requests(policy)
    first, more = requests[:DRAFTS], requests[DRAFTS : DRAFTS + MORE_DRAFTS]
    if not requests:
        return Finding(check, "not checked", "no rule of the policy names an action to ask for")
    try:
        judge = judge_for(settings.model.id)
        effect = in_context_effect(engine, policy, first, judge)
        if effect.open and more:
            effect = effect.with_more(in_context_effect(engine, policy, more, judge))
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
