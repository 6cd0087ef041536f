"""The model that reads rules for `lint --reader` and `import --reader`."""

from collections.abc import Sequence

import click

from policyalign_assets.policy.importing.proposals import Ask
from policyalign_assets.settings import BUNDLED, Settings, load_settings

ANSWER_TOKENS = 400


def configured_reader() -> tuple[str, Ask]:
    """The name of the configured generator or model, and how it is asked.

    Raises ClickException where the bundled model is configured, which cannot read free text.
    """
    settings = load_settings()
    if not settings.generator.base_url and settings.model.id == BUNDLED:
        raise click.ClickException(
            "the bundled model reads only its own prompts, so it cannot label rules. Fix: set "
            "POLICYALIGN_MODEL__ID to an instruct model, and POLICYALIGN_GENERATOR__BASE_URL and "
            "POLICYALIGN_GENERATOR__MODEL where an endpoint shall read."
        )
    name = settings.generator.model if settings.generator.base_url else settings.model.id
    return str(name), lambda prompts: _answers(settings, prompts)


def _answers(settings: Settings, prompts: Sequence[str]) -> list[str]:
    from policyalign_assets.engine.base import Sampling, chat
    from policyalign_assets.engine.generation.endpoint_engine import EndpointEngine
    from policyalign_assets.engine.generation.opening import opened

    chats = [chat(prompt) for prompt in prompts]
    sampling = Sampling(ANSWER_TOKENS)
    if settings.generator.base_url:
        made = EndpointEngine(settings.generator).generate(chats, sampling)
    else:
        with opened(settings.model) as engine:
            made = engine.generate(chats, sampling)
    return [generation.text for generation in made]
