"""What a model is asked in one test case: one request, or a conversation of several turns.

A turn is a message of the user with the reply to it. Some replies are given in advance ("earlier
turns"). A reply that is not given is the model's own, so in a conversation under pressure the model
answers each turn after its own earlier answers. The last reply is always the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from policyalign_assets.engine.base import Chat, Message

Transcript = list[dict[str, Any]]  # messages with the fields of `tables.MESSAGE`
_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}


@dataclass(frozen=True)
class Turn:
    """A message of the user. `reply` is the given reply to it, or None if the model replies."""

    text: str
    reply: str | None = None


@dataclass(frozen=True)
class Conversation:
    """The turns of one test case, and what stands around them.

    opening: the beginning of the model's last reply, which the model has to continue.
    system: a system message of the case's own. An arm with the policy has it after the policy.
    with_policy: every arm gets the policy as its system message.
    """

    turns: tuple[Turn, ...]
    opening: str = ""
    system: str | None = None
    with_policy: bool = False

    def __post_init__(self) -> None:
        if not self.turns or self.turns[-1].reply is not None:
            raise ValueError("the last turn of a conversation must leave its reply to the model")

    @classmethod
    def of(cls, *requests: str) -> Conversation:
        """A conversation in which the model replies to each of `requests`."""
        return cls(tuple(Turn(request) for request in requests))

    @classmethod
    def from_transcript(cls, transcript: Transcript) -> Conversation:
        """The conversation that `transcript` was made of, which has no opening.

        Raises ValueError for messages in an order that no conversation has.
        """
        system, turns = None, list[Turn]()
        for message in transcript:
            role, content = message["role"], message["content"]
            if role == "system" and not turns and system is None:
                system = content
            elif role == "user":
                turns.append(Turn(content))
            elif role == "assistant" and turns and turns[-1].reply is None:
                turns[-1] = Turn(turns[-1].text, None if message["by_model"] else content)
            else:
                raise ValueError(f"a message of {role!r} stands at a wrong place")
        return cls(tuple(turns), system=system)

    @property
    def replies(self) -> int:
        """How many replies the model gives."""
        return sum(turn.reply is None for turn in self.turns)

    @property
    def request(self) -> str:
        """The user's last message."""
        return self.turns[-1].text

    @property
    def text(self) -> str:
        """Everything that the case itself says, as one text for people and for comparisons."""
        if len(self.turns) == 1 and not (self.opening or self.system):
            return self.request
        messages: list[tuple[str, str]] = [("system", self.system)] if self.system else []
        for turn in self.turns:
            messages.append(("user", turn.text))
            if turn.reply is not None:
                messages.append(("assistant", turn.reply))
        if self.opening:
            messages.append(("assistant", self.opening + " …"))
        return as_text(messages)

    def chat(self, replies: Sequence[str], policy: str | None) -> Chat:
        """The messages up to the reply that comes after the model's earlier `replies`.

        policy: the system message of the arm.
        """
        system = "\n\n".join(part for part in (policy, self.system) if part)
        messages = [Message("system", system)] if system else []
        own = iter(replies)
        for turn in self.turns:
            messages.append(Message("user", turn.text))
            reply = turn.reply if turn.reply is not None else next(own, None)
            if reply is None:
                break
            messages.append(Message("assistant", reply))
        return tuple(messages)

    def opening_of(self, replies: Sequence[str]) -> str:
        """How the reply after `replies` begins: only the last reply has an opening."""
        return self.opening if len(replies) == self.replies - 1 else ""

    def transcript(self, replies: Sequence[str]) -> Transcript | None:
        """The messages before the model's last reply; None for a request that stands alone.

        replies: the model's replies, the last one excluded.
        """
        if len(self.turns) == 1 and not self.system:
            return None
        messages = [_message("system", self.system)] if self.system else []
        own = iter(replies)
        for turn in self.turns:
            messages.append(_message("user", turn.text))
            if turn.reply is not None:
                messages.append(_message("assistant", turn.reply))
            elif (reply := next(own, None)) is not None:
                messages.append(_message("assistant", reply, by_model=True))
        return messages


def as_text(messages: Sequence[tuple[str, str]]) -> str:
    """Messages (role, content) as one text, each with its speaker's name."""
    return "\n\n".join(f"{_NAMES[role]}: {content}" for role, content in messages)


def exchanges(transcript: Transcript, last_reply: str) -> list[tuple[str, str]]:
    """(what was said before, reply) for each reply that the model itself gave, in order.

    What was said before has no system message and is one text.
    """
    said: list[tuple[str, str]] = []
    found = []
    for message in transcript:
        if message["role"] == "system":
            continue
        if message["by_model"]:
            found.append((_plain(said), message["content"]))
        said.append((message["role"], message["content"]))
    return [*found, (_plain(said), last_reply)]


def _plain(messages: Sequence[tuple[str, str]]) -> str:
    return messages[0][1] if len(messages) == 1 else as_text(messages)


def _message(role: str, content: str, by_model: bool = False) -> dict[str, Any]:
    return {"role": role, "content": content, "by_model": by_model}
