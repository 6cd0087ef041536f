"""Renders chats to token ids so that text can never become a control token.

Policies, instructions and model outputs are untrusted: `<|im_end|>` or `<|system|>` inside them
must stay text. The chat template is rendered with placeholders and split at them. The template's
own pieces are tokenized with control tokens enabled, and every content with control tokens
disabled. Benign chats get exactly the ids that `apply_chat_template` gives (tested).
"""

from __future__ import annotations

import re
import secrets
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

from policyalign_assets.engine.base import Chat


class NoChatTemplate(ValueError):
    """The tokenizer has no chat template, so roles cannot be rendered."""


def render(
    tokenizer: PreTrainedTokenizerBase, chat: Chat, add_generation_prompt: bool = True
) -> list[int]:
    """Returns the token ids of `chat`.

    Raises NoChatTemplate. Errors that the template itself raises, such as an unsupported role,
    are passed on unchanged.
    """
    if not tokenizer.chat_template:
        raise NoChatTemplate(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template. Fix: use "
            "an instruct model, or put a `chat_template.jinja` beside its tokenizer."
        )
    # The content cannot guess a fresh nonce. It has letters only, so that no template or normalizer
    # changes it.
    nonce = "".join(chr(ord("a") + b % 26) for b in secrets.token_bytes(24))
    marks = [f"{nonce}{chr(ord('a') + i)}" for i in range(len(chat))]
    rendered = str(
        tokenizer.apply_chat_template(
            [{"role": m.role, "content": mark} for m, mark in zip(chat, marks, strict=True)],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    )
    ids: list[int] = []
    rest = rendered
    for message, mark in zip(chat, marks, strict=True):
        before, found, rest = rest.partition(mark)
        if not found:
            raise NoChatTemplate(
                f"the chat template of {tokenizer.name_or_path!r} drops the {message.role} message"
            )
        ids += tokenizer(before, add_special_tokens=False).input_ids
        ids += content_ids(tokenizer, message.content)
    return ids + tokenizer(rest, add_special_tokens=False).input_ids


def content_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Returns the ids of untrusted text, with surrounding white space removed.

    Some templates trim white space, and it could merge with the template's own. The tokenizer's
    `split_special_tokens` covers special tokens only. Added tokens that are not "special", such as
    `<tool_call>` or `<think>`, are broken up by cutting the text after their first character.
    """
    text = text.strip()
    added = sorted((t for t in tokenizer.get_added_vocab() if len(t) > 1), key=len, reverse=True)
    cuts = (
        [0, *(m.start() + 1 for m in re.finditer("|".join(map(re.escape, added)), text)), len(text)]
        if added
        else [0, len(text)]
    )
    return [
        i
        for a, b in pairwise(cuts)
        for i in tokenizer(text[a:b], add_special_tokens=False, split_special_tokens=True).input_ids
    ]
