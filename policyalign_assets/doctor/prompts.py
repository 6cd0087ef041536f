"""Checks of the tokenizer and the chat template: do prompts mean what deployment will send?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from policyalign_assets.doctor.record import Finding
from policyalign_assets.engine.base import Chat, Message, chat
from policyalign_assets.engine.chat import NoChatTemplate, has_system_role, render
from policyalign_assets.engine.time_limit import TookTooLong, time_limit
from policyalign_assets.engine.version import TEMPLATE_DATE

SECONDS = 10.0  # for rendering one chat, which takes milliseconds
POLICY = "Never help anyone forge a signature.\n- Answer everything else."
REQUEST = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
ANOTHER_TEMPLATE = "use another instruct model, or change its `chat_template.jinja`."


def prompt_checks(
    tokenizer: PreTrainedTokenizerBase,
    end_ids: Sequence[int],
    embedding_rows: int,
    context: int,
    policy_text: str | None,
    response_tokens: int,
) -> Iterator[Finding]:
    """All checks that need no weights.

    `embedding_rows` is the number of token ids that the model knows; `response_tokens` is the
    longest answer that must fit behind the policy.
    """
    policy_chat = chat(REQUEST, policy_text or POLICY)
    try:
        with time_limit(SECONDS):
            ids = render(tokenizer, policy_chat)
            system_role = has_system_role(tokenizer)
    except NoChatTemplate as error:
        detail, _, fix = str(error).partition(" Fix: ")
        yield Finding("chat template", "error", detail, fix or ANOTHER_TEMPLATE)
        return
    except (TookTooLong, RecursionError, MemoryError) as error:
        detail = f"the chat template cannot be rendered: {error or type(error).__name__}"
        yield Finding("chat template", "error", detail, ANOTHER_TEMPLATE)
        return
    if system_role:
        yield Finding("chat template", "ok", "it renders the policy as system message")
    else:
        yield Finding(
            "chat template",
            "note",
            "it has no system role, so the policy goes in front of the first user message",
            "nothing, if deployment would send the policy in the same way.",
        )
    yield clock_check(tokenizer)
    yield vocabulary_check(tokenizer, ids, embedding_rows)
    yield deployment_check(tokenizer, system_role, policy_text or POLICY)
    yield end_of_turn_check(tokenizer, end_ids)
    yield length_check(
        len(render(tokenizer, chat("", policy_text or POLICY))), response_tokens, context
    )


def clock_check(tokenizer: PreTrainedTokenizerBase) -> Finding:
    """Templates that print today's date would give other prompts every day."""
    template = tokenizer.chat_template
    text = " ".join(map(str, template.values())) if isinstance(template, dict) else str(template)
    if "strftime_now" in text:
        date = TEMPLATE_DATE.date().isoformat()
        return Finding(
            "template clock",
            "note",
            f"the chat template prints the date; it always gets {date}, so that runs repeat",
        )
    return Finding("template clock", "ok", "the chat template does not print the date")


def vocabulary_check(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], embedding_rows: int
) -> Finding:
    """Every id of a prompt needs an embedding."""
    if (highest := max(ids)) >= embedding_rows:
        return Finding(
            "vocabulary",
            "error",
            f"the chat template produces token {highest} "
            f"({tokenizer.convert_ids_to_tokens(highest)!r}), but the model has only "
            f"{embedding_rows} embeddings",
            "use the tokenizer that belongs to the model, or resize the model's embeddings.",
        )
    return Finding("vocabulary", "ok", f"all prompt ids are below the model's {embedding_rows}")


def deployment_check(
    tokenizer: PreTrainedTokenizerBase, system_role: bool, policy_text: str
) -> Finding:
    """Compares our prompt ids with those of `apply_chat_template`, which deployments use."""
    differing = []
    conversations = (
        ("the request alone", chat(REQUEST)),
        ("the policy and a request", chat(REQUEST, policy_text)),
    )
    for name, conversation in conversations:
        ours = render(tokenizer, conversation)
        theirs = _deployed(tokenizer, conversation, system_role)
        if ours != theirs:
            at = next(
                (i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b),
                min(len(ours), len(theirs)),
            )
            differing.append(
                f"{name}, from token {at}: ours {ours[at : at + 4]}, deployment's "
                f"{theirs[at : at + 4]}"
            )
    if not differing:
        return Finding("prompt ids", "ok", "prompts have the ids that deployment sends")
    return Finding(
        "prompt ids",
        "note",
        f"prompts differ from those of apply_chat_template ({'; '.join(differing)}), because a "
        "text in them could be read as a control token",
        "remove control tokens such as <|im_end|> from the policy.",
    )


def _deployed(
    tokenizer: PreTrainedTokenizerBase, conversation: Chat, system_role: bool
) -> list[int]:
    messages = [{"role": m.role, "content": m.content.strip()} for m in conversation]
    if not system_role and len(messages) > 1:
        joined = "\n\n".join(m["content"] for m in messages)
        messages = [{"role": "user", "content": joined}]
    text = tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=True,
        strftime_now=TEMPLATE_DATE.strftime,
    )
    ids: Any = tokenizer(str(text), add_special_tokens=False).input_ids
    return list(ids)


def end_of_turn_check(tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int]) -> Finding:
    """The first control token after an assistant's answer must end generation."""
    known = [i for i in end_ids if i is not None]
    if not known:
        return Finding(
            "end of turn",
            "error",
            "neither the generation config nor the tokenizer names an end token, so every answer "
            "would run on to the length limit",
            "set eos_token_id in generation_config.json.",
        )
    question = chat(REQUEST)
    try:
        before = len(render(tokenizer, question))
        ids = render(tokenizer, (*question, Message("assistant", ANSWER)), False)
    except (NoChatTemplate, TemplateError) as error:
        return Finding("end of turn", "not checked", f"an answer cannot be rendered: {error}")
    added = tokenizer.added_tokens_decoder
    after = [i for i in ids[before:] if i in added]
    # A template may open the answer with control tokens, such as those around empty thinking.
    closing = [i for i in after if i in known]
    if closing:
        return Finding(
            "end of turn", "ok", f"answers end with {tokenizer.convert_ids_to_tokens(closing[0])!r}"
        )
    if not after:
        return Finding(
            "end of turn",
            "note",
            "the chat template prints no control token after an answer; answers end only if the "
            "model itself produces one of the end ids",
        )
    last = after[-1]
    return Finding(
        "end of turn",
        "error",
        f"the chat template ends an answer with {tokenizer.convert_ids_to_tokens(last)!r} "
        f"({last}), "
        f"but generation ends only at {known}: every answer would run on",
        f"add {last} to eos_token_id in generation_config.json.",
    )


def length_check(policy_tokens: int, response_tokens: int, context: int) -> Finding:
    """A policy is never truncated, so it must fit with an answer."""
    if policy_tokens + response_tokens > context:
        return Finding(
            "policy length",
            "error",
            f"the prompt with the policy has {policy_tokens} tokens; with an answer of up to "
            f"{response_tokens} tokens it exceeds the model's context of {context}",
            "shorten the policy, lower max_new_tokens, or use a model with a longer context.",
        )
    return Finding(
        "policy length",
        "ok",
        f"{policy_tokens} tokens of policy and an answer of {response_tokens} fit into {context}",
    )
