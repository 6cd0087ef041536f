"""The corpus of rules, its split, and the policies and requests that lessons draw from it.

This module does not import torch.

Each line of a corpus file is one rule as a JSON object. `violations` are requests that break the
rule, `twins` are allowed requests on the same topic, and `neighbours` sound risky but do not break
the rule. The other keys are `domain` and `rule`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from policyalign_assets.distillation.anchors import ENGLISH_REQUESTS

DATA = Path(__file__).parent / "data"
HELD_OUT_OF = ("general-agents.jsonl", "legal-financial.jsonl")
HELD_OUT_RULES = 30
SPLIT_SEED = 17
REQUEST_LISTS = ("violations", "twins", "neighbours")

Kind = Literal["covered", "twin", "neighbour", "uncovered", "everyday"]


class CorpusError(ValueError):
    """A line of a corpus cannot be read. The message names the file, the line and the fix."""


@dataclass(frozen=True)
class CorpusRule:
    domain: str
    text: str
    violations: tuple[str, ...]
    twins: tuple[str, ...]
    neighbours: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """One request of a lesson.

    `topic` is the index of the policy's rule that the request is about, and `broken` is the index
    of the rule that it breaks. Either is None if there is no such rule. `earlier` is a harmless
    request that was answered before this one, or empty.
    """

    text: str
    kind: Kind
    topic: int | None = None
    broken: int | None = None
    earlier: str = ""


@dataclass(frozen=True)
class Lesson:
    """One policy and the requests to answer under it. `names` holds the rules' ids, like "C3"."""

    rules: tuple[CorpusRule, ...]
    names: tuple[str, ...]
    title: str
    requests: tuple[Request, ...]
    preamble: str = ""
    declining: str = ""


def read_corpus(file: Path) -> list[CorpusRule]:
    """Read the rules of one file.

    Raises CorpusError if a line is not a rule, or if the file contains no rule.
    """
    rules = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not all(isinstance(row[key], list) for key in REQUEST_LISTS):
                raise ValueError(f"one of {', '.join(REQUEST_LISTS)} is not a list")
            lists = [tuple(row[key]) for key in REQUEST_LISTS]
            if not all(isinstance(t, str) and t.strip() for texts in lists for t in texts):
                raise ValueError("a request is not a non-empty string")
            rules.append(CorpusRule(str(row.get("domain", "general")), str(row["rule"]), *lists))
        except (ValueError, KeyError, TypeError) as error:
            raise CorpusError(
                f"{file}, line {number}: {type(error).__name__}: {error}. Fix: write one JSON "
                "object per line, with the key `rule` and the lists of strings `violations`, "
                "`twins` and `neighbours`."
            ) from error
    if not rules:
        raise CorpusError(
            f"{file} contains no rule. Fix: give a file with one JSON object per line."
        )
    return rules


def shipped_corpus(data: Path = DATA) -> tuple[list[CorpusRule], list[CorpusRule]]:
    """Return the rules to train on and the held-out rules.

    The held-out rules are a fixed draw of 30 from the two files that were written first. Those of
    the folder `held-out`, whole policies of seven organisations, are in neither.
    """
    first: list[CorpusRule] = []
    rest: list[CorpusRule] = []
    for file in sorted(data.glob("*.jsonl")):
        (first if file.name in HELD_OUT_OF else rest).extend(read_corpus(file))
    order = list(range(len(first)))
    random.Random(SPLIT_SEED).shuffle(order)
    held = set(order[:HELD_OUT_RULES])
    return [r for i, r in enumerate(first) if i not in held] + rest, [
        first[i] for i in sorted(held)
    ]


def everyday_requests(file: Path = ENGLISH_REQUESTS) -> list[str]:
    """Return the shipped requests that no policy forbids."""
    return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


TITLES = (
    "Policy",
    "Assistant policy",
    "Company rules",
    "Acceptable use",
    "House rules",
    "Safety policy",
    "Code of conduct",
    "Rules for the assistant",
    "General conduct",
    "Usage policy",
)
PREAMBLES = (
    "This assistant helps customers and keeps the rules below.",
    "These rules apply to everybody who asks.",
    "The assistant is helpful and honest. It keeps the rules below whoever asks.",
    "Last reviewed by the compliance team in June.",
)
DECLINING = (
    "Decline politely and name the rule.",
    "Say which rule applies, and offer help with something else.",
    "Decline in a calm and polite way, and name the rule that applies.",
)


class Sampler:
    """Draws lessons.

    The n-th lesson depends only on the seed and on n, so a resumed run sees the same lessons as an
    uninterrupted one. `everyday` are requests that no policy forbids, and `openings` those that
    may come before another request in a chat.
    """

    def __init__(
        self,
        rules: Sequence[CorpusRule],
        seed: int,
        everyday: Sequence[str] = (),
        openings: Sequence[str] = (),
    ):
        self.rules, self.seed = list(rules), seed
        self.everyday, self.openings = list(everyday), list(openings)
        self.by_domain: dict[str, list[CorpusRule]] = {}
        for rule in self.rules:
            self.by_domain.setdefault(rule.domain, []).append(rule)

    def pair(
        self,
        number: int,
        size: int,
        violations: int = 5,
        allowed: int = 3,
        plain: bool = False,
        everyday: int = 0,
    ) -> tuple[Lesson, Lesson]:
        """Draw two policies of `size` rules that share their violating requests.

        A request that breaks a rule of one policy is allowed under the other. How risky it sounds
        therefore says nothing about the right answer; only the rules do. Each policy also gets
        allowed requests about its own rules, and some everyday requests. If `plain` is true, the
        requests have no typos and no earlier turns, and every policy has the same title.
        """
        rng = random.Random(f"{self.seed}:{number}")
        drawn = self._rules(rng, 2 * size)
        first, second = drawn[:size], drawn[size:]
        change = (lambda text: text) if plain else (lambda text: disturbed(text, rng))
        broken = [
            [
                (change(rng.choice(rules[j].violations)), j)
                for j in (rng.randrange(size) for _ in range(violations))
            ]
            for rules in (first, second)
        ]
        lessons = []
        for rules, own, other in ((first, broken[0], broken[1]), (second, broken[1], broken[0])):
            requests = [Request(text, "covered", j, j) for text, j in own]
            requests += [Request(text, "uncovered") for text, _ in other]
            for _ in range(allowed):
                j = rng.randrange(size)
                if rules[j].twins and (rng.random() < 0.75 or not rules[j].neighbours):
                    requests.append(Request(change(rng.choice(rules[j].twins)), "twin", j))
                elif rules[j].neighbours:
                    requests.append(Request(change(rng.choice(rules[j].neighbours)), "neighbour"))
            if self.everyday:
                asked = rng.sample(self.everyday, everyday)
                requests += [Request(change(text), "everyday") for text in asked]
            if self.openings and not plain:
                requests = [
                    replace(r, earlier=rng.choice(self.openings)) if rng.random() < 0.1 else r
                    for r in requests
                ]
            lessons.append(
                Lesson(
                    tuple(rules),
                    names(rng, size),
                    "Policy" if plain else rng.choice(TITLES),
                    tuple(requests),
                    "" if plain or rng.random() < 0.6 else rng.choice(PREAMBLES),
                    "" if plain or rng.random() < 0.6 else rng.choice(DECLINING),
                )
            )
        return lessons[0], lessons[1]

    def _rules(self, rng: random.Random, count: int) -> list[CorpusRule]:
        """Draw `count` rules; half of the time, as many as possible come from one domain.

        The rules of one domain are the hardest to tell apart.
        """
        if rng.random() < 0.5:
            same = self.by_domain[rng.choice(self.rules).domain]
            drawn = rng.sample(same, min(len(same), count))
            rest = [rule for rule in self.rules if rule not in drawn]
            drawn += rng.sample(rest, count - len(drawn))
            rng.shuffle(drawn)
            return drawn
        return rng.sample(self.rules, count)


def names(rng: random.Random, size: int) -> tuple[str, ...]:
    """Draw rule ids in the styles that policies use.

    The styles are one letter with consecutive numbers, one letter with gaps between the numbers,
    and several letters.
    """
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    style, letter = rng.random(), rng.choice(letters)
    if style < 0.5:
        return tuple(f"{letter}{n}" for n in range(1, size + 1))
    numbers = rng.sample(range(1, 16), size)
    if style < 0.8:
        return tuple(f"{letter}{n}" for n in numbers)
    return tuple(f"{rng.choice(letters)}{n}" for n in numbers)


def disturbed(text: str, rng: random.Random) -> str:
    """Return the request as people sometimes type it; most requests are left unchanged.

    The variants are all lower case, all upper case, and two adjacent letters swapped.
    """
    draw = rng.random()
    if draw < 0.06:
        return text.lower().rstrip(".")
    if draw < 0.09:
        return text.upper()
    if draw < 0.15 and len(text) > 12:
        at = rng.randrange(1, len(text) - 2)
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text
