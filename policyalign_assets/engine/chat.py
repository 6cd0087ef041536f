"""Renders chats to token ids so that text can never become a control token.

Policies, instructions and model outputs are untrusted: `<|im_end|>` or `<|system|>` inside them must stay text. The chat
template is rendered with placeholders, then split; the template's own pieces are tokenized with control tokens on, every
content with control tokens off. Benign chats get the very ids that `apply_chat_template` gives (tested).
"""

from __future__ import annotations

import re
import secrets
from itertools import pairwise

from transformers import PreTrainedTokenizerBase

from policyalign_assets.engine.base import Chat

CODE_VERSION = 1  # raise it when new code changes how chats become token ids


class NoChatTemplate(ValueError):
    """The tokenizer has no chat template, so roles cannot be rendered."""


def render(
    tokenizer: PreTrainedTokenizerBase, chat: Chat, add_generation_prompt: bool = True
) -> list[int]:
    """Token ids of `chat`. Raises NoChatTemplate; template errors (an unsupported role) come through as they are."""
    if not tokenizer.chat_template:
        raise NoChatTemplate(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template. Mend: use an instruct model, or put "
            "a `chat_template.jinja` beside its tokenizer."
        )
    # a fresh nonce cannot be guessed by the content; letters only, so that no template or normalizer changes it
    nonce = "".join(chr(ord("a") + b % 26) for b in secrets.token_bytes(24))
    marks = [f"{nonce}{chr(ord('a') + i)}" for i in range(len(chat))]
    rendered = tokenizer.apply_chat_template(
        [{"role": m.role, "content": mark} for m, mark in zip(chat, marks, strict=True)],
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
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
    """Ids of untrusted text, without outer white space (some templates trim it, and it could merge with the template's own).

    `split_special_tokens` covers special tokens only; added tokens that are not "special" (`<tool_call>`, `<think>`) are
    kept apart by cutting them after their first character.
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
