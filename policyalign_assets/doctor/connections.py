"""Checks of what the configuration names besides the model: servers, judge, generator and files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from policyalign_assets.doctor.record import Finding, Unfit
from policyalign_assets.engine.base import Sampling, chat
from policyalign_assets.engine.loading import ModelNotFound
from policyalign_assets.judges.choose import make_judge, probe
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.settings import Settings, SettingsError


def connection_checks(settings: Settings, policy: PolicyDocument | None) -> Iterator[Finding]:
    """One finding for each of servers, judge, generator, firewall references, benchmark files."""
    if settings.model.engine == "vllm-server":
        yield servers_check(settings)
    yield judge_check(settings, policy)
    yield generator_check(settings)
    yield firewall_check(settings)
    yield from benchmark_checks(settings)


def require_judge(settings: Settings, policy: PolicyDocument) -> Finding | None:
    """Asks the judge's endpoint, if there is one, before a run does any work.

    A wrong URL, model or key would otherwise show only after training. (A generator's shows at
    once.) Raises Unfit.
    """
    if settings.judge.kind == "rules" or settings.judge.engine != "endpoint":
        return None
    finding = judge_check(settings, policy)
    if finding.level == "error":
        raise Unfit(f"this run needs its judge after training, and cannot use it: {finding}")
    return finding


def servers_check(settings: Settings) -> Finding:
    """Looks at health, model and context of each of `model.servers`. Loads no adapter."""
    from policyalign_assets.engine.base import EngineUnavailable
    from policyalign_assets.engine.generation.replicas import ServersDown
    from policyalign_assets.engine.generation.vllm_server_engine import VllmServerEngine

    try:
        engine = VllmServerEngine(settings.model)
    except (EngineUnavailable, ServersDown, SettingsError, ModelNotFound) as error:
        return _from_message("servers", error)
    said = "; ".join(engine.describe_servers())
    if engine.away:
        return Finding(
            "servers", "note", said, "start the servers that are away; the others do their rows."
        )
    return Finding("servers", "ok", said)


def judge_check(settings: Settings, policy: PolicyDocument | None) -> Finding:
    """Asks the judge about one harmless answer."""
    if settings.judge.kind == "rules":
        return Finding("judge", "ok", "the phrase judge needs no endpoint")
    if policy is None:
        return Finding("judge", "not checked", "the judge reads a policy, and none was given")
    try:
        reason = probe(make_judge(settings.judge, settings.model.id, policy))
    except (SettingsError, ModelNotFound) as error:
        return _from_message("judge", error)
    if reason is not None:
        return Finding(
            "judge",
            "error",
            f"it cannot judge a harmless answer: {reason}",
            "check judge.base_url, judge.model and judge.api_key_variable.",
        )
    return Finding("judge", "ok", "it answered a probe")


def generator_check(settings: Settings) -> Finding:
    """Asks the generator's endpoint, if one is configured, for one short answer."""
    from policyalign_assets.engine.generation.endpoint_engine import (
        EndpointDown,
        EndpointEngine,
        EndpointRefuses,
    )

    if not settings.generator.base_url:
        return Finding("generator", "ok", "the model itself drafts the instructions")
    try:
        EndpointEngine(settings.generator).generate([chat("Say hello.")], Sampling(8))
    except (EndpointDown, EndpointRefuses, SettingsError) as error:
        return _from_message("generator", error)
    return Finding("generator", "ok", "it answered a probe")


def firewall_check(settings: Settings) -> Finding:
    """Reads the reference prompts that drafts must not resemble."""
    from policyalign_assets.synthesis.firewall import probe
    from policyalign_assets.synthesis.references import FirewallError

    try:
        found = probe(settings.firewall)
    except FirewallError as error:
        return _from_message("firewall", error)
    if found is None:
        return Finding("firewall", "not checked", "firewall.references is not set")
    return Finding(
        "firewall",
        "ok",
        f"{found.stopped} of {found.checked} copies of the references are stopped; "
        f"{len(found.files)} files read, {len(found.ignored)} others ignored",
    )


def benchmark_checks(settings: Settings) -> Iterator[Finding]:
    """Reads the files of every benchmark. A missing one is a note: the report says "not run"."""
    from policyalign_assets.evaluation.benchmarks import NotRun, load, manifest

    folder = settings.evaluation.benchmarks_dir
    if folder is None:
        yield Finding("benchmarks", "not checked", "evaluation.benchmarks_dir is not set")
        return
    for benchmark in manifest():
        name = f"benchmark {benchmark.id}"
        try:
            cases = len(load(benchmark, Path(folder)).cases)
        except NotRun as error:
            yield Finding(name, "note", f"it will not run: {error}")
        else:
            yield Finding(name, "ok", f"{cases} cases")


def _from_message(check: str, error: Exception) -> Finding:
    detail, _, fix = str(error).partition(" Fix: ")
    return Finding(check, "error", detail, fix)
