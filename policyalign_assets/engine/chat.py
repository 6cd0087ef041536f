"""Renders chats to token ids so that text can never become a control token.

Policies, instructions and model outputs are untrusted: `<|im_end|>` or `<|system|>` inside them
must stay text. The chat template is rendered with placeholders and split at them. The template's
own pieces are tokenized with control tokens enabled, and every content with control tokens
disabled.

Deployment tokenizes the whole rendered chat in one pass. Some tokenizers then give other ids, for
example SentencePiece ones, which merge across the border between template and content. A chat
whose contents hold no control token gets exactly the ids of that single pass.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from weakref import WeakKeyDictionary

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from policyalign_assets.engine.base import Chat
from policyalign_assets.engine.version import TEMPLATE_DATE

LONG = 200  # characters of a system message from which on its tokens are kept
MOST_BEGINNINGS = 64


class NoChatTemplate(ValueError):
    """The tokenizer has no chat template that can express the chat. The message gives the fix."""


def render(
    tokenizer: PreTrainedTokenizerBase, chat: Chat, add_generation_prompt: bool = True
) -> list[int]:
    """Returns the token ids of `chat`.

    If the template has no system role, the system message goes in front of the first user message.
    Raises NoChatTemplate if the tokenizer has no template, or one that drops, repeats or reorders
    messages.
    """
    contents = [m.content.strip() for m in chat]
    template = _template(tokenizer, tuple(m.role for m in chat), add_generation_prompt)
    if not any(_holds_control_token(tokenizer, content) for content in contents):
        text = _rendered(tokenizer, _filled(template.messages, contents), add_generation_prompt)
        # A system message of its own, such as a policy, begins many chats.
        begins = contents[0] if _is_system_alone(template) else ""
        one_pass = _tokenized_behind(tokenizer, text, begins)
        if _control_tokens(tokenizer, one_pass) == template.control:
            return one_pass
    by_piece = list(template.pieces[0])
    for content, piece in zip(contents, template.pieces[1:], strict=True):
        by_piece += [*content_ids(tokenizer, content), *piece]
    return by_piece


def set_arguments(
    tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, bool | int | float | str]
) -> None:
    """Fixes arguments of the chat template, such as `enable_thinking`, for every rendering.

    They are set at the top of the template itself, so nothing that renders it can forget them.
    """
    # JSON's literals are those of templates, also true and false
    lines = "".join(f"{{%- set {name} = {json.dumps(v)} %}}" for name, v in arguments.items())
    template = tokenizer.chat_template
    if isinstance(template, dict):
        tokenizer.chat_template = {key: lines + text for key, text in template.items()}
    elif template:
        tokenizer.chat_template = lines + template


def has_system_role(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template renders a system message. Raises NoChatTemplate."""
    return len(_pieces(tokenizer, ("system", "user"), True)[1]) == 2


def content_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Returns the ids of untrusted text, with surrounding white space removed.

    Some templates trim white space, and it could merge with the template's own. The tokenizer's
    `split_special_tokens` covers special tokens only. Added tokens that are not "special", such as
    `<tool_call>` or `<think>`, are broken up by cutting the text after their first character.
    """
    text = text.strip()
    pattern = _added_tokens(tuple(sorted(tokenizer.get_added_vocab())))
    found = [m.start() + 1 for m in pattern.finditer(text)] if pattern else []
    return [
        i
        for a, b in pairwise([0, *found, len(text)])
        for i in tokenizer(text[a:b], add_special_tokens=False, split_special_tokens=True).input_ids
    ]


# for each rendered message: its role and its placeholders
_Messages = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class _Template:
    """What a chat template prints around contents.

    pieces: ids of what it prints before, between and after them.
    control: the control tokens among these.
    """

    messages: _Messages
    pieces: tuple[tuple[int, ...], ...]
    control: list[int]


def _is_system_alone(template: _Template) -> bool:
    role, marks = template.messages[0]
    return role == "system" and len(marks) == 1


def _template(
    tokenizer: PreTrainedTokenizerBase, roles: tuple[str, ...], add_generation_prompt: bool
) -> _Template:
    """The template for messages of these `roles`; made once, since thousands of chats share it."""
    made = _templates.setdefault(tokenizer, {})
    key = (str(tokenizer.chat_template), roles, add_generation_prompt)
    if key not in made:
        texts, messages = _pieces(tokenizer, roles, add_generation_prompt)
        pieces = tuple(tuple(_tokenize(tokenizer, text)) for text in texts)
        control = _control_tokens(tokenizer, [i for piece in pieces for i in piece])
        made[key] = _Template(messages, pieces, control)
    return made[key]


_templates: WeakKeyDictionary[PreTrainedTokenizerBase, dict[object, _Template]] = (
    WeakKeyDictionary()
)


def _pieces(
    tokenizer: PreTrainedTokenizerBase, roles: Sequence[str], add_generation_prompt: bool
) -> tuple[list[str], _Messages]:
    """What the template prints before, between and after the contents, and the messages it took.

    There is one message for each of `roles`, or one fewer if the system message had to join the
    user's.
    """
    if not tokenizer.chat_template:
        raise NoChatTemplate(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template. Fix: use an "
            "instruct model, or put a `chat_template.jinja` beside its tokenizer."
        )
    # The content cannot guess a fresh nonce. It has letters only, so that no template or normalizer
    # changes it.
    nonce = "".join(chr(ord("a") + b % 26) for b in secrets.token_bytes(24))
    marks = [f"{nonce}{chr(ord('a') + i)}" for i in range(len(roles))]
    messages: _Messages = tuple((role, (mark,)) for role, mark in zip(roles, marks, strict=True))
    joinable = tuple(roles[:2]) == ("system", "user")
    try:
        text = _rendered(tokenizer, _filled(messages, marks), add_generation_prompt)
    except TemplateError as error:
        if not joinable:
            raise NoChatTemplate(
                f"the chat template of {tokenizer.name_or_path!r} refuses the roles "
                f"{', '.join(roles)}: {error}. Fix: use an instruct model whose template takes "
                "them, or change its `chat_template.jinja`."
            ) from error
        text = ""
    if joinable and marks[0] not in text:
        messages = (("user", (marks[0], marks[1])), *messages[2:])
        try:
            text = _rendered(tokenizer, _filled(messages, marks), add_generation_prompt)
        except TemplateError as error:
            raise NoChatTemplate(
                f"the chat template of {tokenizer.name_or_path!r} cannot render a user message: "
                f"{error}. Fix: change its `chat_template.jinja`."
            ) from error
    return _split(tokenizer, text, marks, roles, nonce), messages


def _split(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    marks: Sequence[str],
    roles: Sequence[str],
    nonce: str,
) -> list[str]:
    """Splits `text` at the marks. Raises NoChatTemplate unless each occurs once, in order."""
    name = f"the chat template of {tokenizer.name_or_path!r}"
    fix = "Fix: use another instruct model, or change its `chat_template.jinja`."
    places = [text.find(mark) for mark in marks]
    for mark, role, place in zip(marks, roles, places):
        if place < 0:
            raise NoChatTemplate(f"{name} drops or changes the {role} message. {fix}")
        if text.count(mark) > 1:
            raise NoChatTemplate(f"{name} prints the {role} message more than once. {fix}")
    for (before, role), (after, next_role) in pairwise(zip(places, roles)):
        if before > after:
            raise NoChatTemplate(
                f"{name} prints the {role} message after the {next_role} message that follows it, "
                f"so answers could not share one policy. {fix}"
            )
    pieces = []
    for mark in marks:
        before_mark, _, text = text.partition(mark)
        pieces.append(before_mark)
    pieces.append(text)
    if any(nonce in piece for piece in pieces):
        raise NoChatTemplate(f"{name} prints a part of a message more than once. {fix}")
    return pieces


def _filled(messages: _Messages, contents: Sequence[str]) -> list[dict[str, str]]:
    """The messages with `contents` in place of their placeholders, in order."""
    rest = iter(contents)
    return [
        {"role": role, "content": "\n\n".join(next(rest) for _ in marks)}
        for role, marks in messages
    ]


def _rendered(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], generation_prompt: bool
) -> str:
    return str(
        tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=generation_prompt,
            # Shadows the clock that transformers gives to templates.
            strftime_now=TEMPLATE_DATE.strftime,
        )
    )


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids) if text else []


def _tokenized_behind(tokenizer: PreTrainedTokenizerBase, text: str, begins: str) -> list[int]:
    """`_tokenize(text)`, where the text up to the control token after `begins` is kept.

    Text is cut at control tokens before it is tokenized, so the rest has the same ids alone. This
    is seen to be so for the first text of each beginning; where it is not, nothing is kept.
    """
    pattern = _added_tokens(tuple(sorted(tokenizer.get_added_vocab())))
    at = text.find(begins) if len(begins) >= LONG else -1
    found = pattern.search(text, at + len(begins)) if pattern and at >= 0 else None
    if found is None:
        return _tokenize(tokenizer, text)
    kept, head = _beginnings.setdefault(tokenizer, {}), text[: found.start()]
    if head not in kept:
        if len(kept) >= MOST_BEGINNINGS:
            kept.clear()
        whole, begun = _tokenize(tokenizer, text), _tokenize(tokenizer, head)
        same = begun + _tokenize(tokenizer, text[found.start() :]) == whole
        kept[head] = begun if same else None
        return whole
    known = kept[head]
    if known is None:
        return _tokenize(tokenizer, text)
    return [*known, *_tokenize(tokenizer, text[found.start() :])]


_beginnings: WeakKeyDictionary[PreTrainedTokenizerBase, dict[str, list[int] | None]] = (
    WeakKeyDictionary()
)


def _control_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[int]:
    added = tokenizer.added_tokens_decoder
    return [i for i in ids if i in added]


def _holds_control_token(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    pattern = _added_tokens(tuple(sorted(tokenizer.get_added_vocab())))
    return bool(pattern and pattern.search(text))


@lru_cache(maxsize=64)
def _added_tokens(tokens: tuple[str, ...]) -> re.Pattern[str] | None:
    longest_first = sorted((t for t in tokens if len(t) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
