"""Whether a policy fits into a model's context, known before any weight is loaded."""

from __future__ import annotations

from collections.abc import Callable

from policyalign_assets.engine.base import chat
from policyalign_assets.engine.chat import render
from policyalign_assets.engine.loading import ModelDescription, describe
from policyalign_assets.engine.responses import PromptTooLong
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.settings import ModelSettings


def prompt_tokens(policy: PolicyDocument, model: ModelDescription) -> int:
    """Tokens of the policy as the model gets it, with an empty request behind it."""
    return len(render(model.tokenizer, chat("", policy.prompt_text)))


def token_counter(settings: ModelSettings) -> Callable[[str], int]:
    """Counts the tokens of a text as the model gets it in a system message."""
    model = describe(settings)
    return lambda text: len(render(model.tokenizer, chat("", text)))


def require_fit(policy: PolicyDocument, settings: ModelSettings, response: int) -> int:
    """The policy's prompt in tokens, counted with the model's own tokenizer.

    response: the longest answer in tokens that must fit behind the prompt. Raises PromptTooLong
    where both together exceed the model's context, and ModelNotFound where there is no such model.
    """
    model = describe(settings)
    tokens = prompt_tokens(policy, model)
    if tokens + response > model.context:
        raise PromptTooLong(
            f"the policy {policy.policy_id!r} ({policy.domain}) has {len(policy.rules)} rules and"
            f" {tokens} tokens; with an answer of up to {response} tokens this exceeds the context"
            f" of {model.context} tokens of the model {settings.id!r}. Fix: shorten the policy,"
            " lower max_new_tokens, or use a model with a longer context; a policy is never cut."
        )
    return tokens
