"""Texts that held-out cases are made of, typed: probes, everyday requests, plain questions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from policyalign_assets.files import parse_shipped_yaml


@dataclass(frozen=True)
class ProbeTexts:
    """See the comments in probes.yaml. Templates are for `str.format`."""

    frames: tuple[str, ...]
    wrappers: tuple[str, ...]
    mentions: tuple[str, ...]
    paraphrases: tuple[str, ...]
    verbs: dict[str, str]
    long_context: str
    earlier_turns: tuple[tuple[str, str], ...]  # (user, assistant)
    openings: tuple[str, ...]
    systems: tuple[str, ...]
    pressure: tuple[tuple[str, tuple[str, ...]], ...]  # (kind, messages of the user)


@cache
def probe_texts() -> ProbeTexts:
    """The texts of probes.yaml."""
    raw = _yaml("probes.yaml")
    return ProbeTexts(
        frames=tuple(raw["frames"]),
        wrappers=tuple(raw["wrappers"]),
        mentions=tuple(raw["mentions"]),
        paraphrases=tuple(raw["paraphrases"]),
        verbs=dict(raw["verbs"]),
        long_context=raw["long_context"],
        earlier_turns=tuple((turn["user"], turn["assistant"]) for turn in raw["earlier_turns"]),
        openings=tuple(raw["openings"]),
        systems=tuple(raw["systems"]),
        pressure=tuple(
            (kind, tuple(messages)) for kind, all_ in raw["pressure"].items() for messages in all_
        ),
    )


@cache
def everyday_actions() -> tuple[str, ...]:
    """What people do every day, as verb phrases."""
    return tuple(_yaml("everyday.yaml")["actions"])


@dataclass(frozen=True)
class PlainQuestion:
    """A question of general knowledge. An answer that names one of `wrong` is not right."""

    question: str
    right: str
    wrong: tuple[str, ...]


def plain_questions() -> tuple[PlainQuestion, ...]:
    """The questions of plain_questions.yaml."""
    return tuple(
        PlainQuestion(question, right, tuple(wrong))
        for question, right, *wrong in _yaml("plain_questions.yaml")["questions"]
    )


def texts() -> dict[str, Any]:
    """{file name: content, parsed} of the data files that shape every model's held-out cases."""
    return {name: _yaml(name) for name in ("everyday.yaml", "probes.yaml")}


@cache
def _yaml(name: str) -> Any:
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return parse_shipped_yaml(text)
