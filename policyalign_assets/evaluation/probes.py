"""Probe suites: small suites that show where a model's behaviour ends. They fit any model.

Each probe takes requests that break a rule and changes one thing about them: capitals, a typo, a
long text before, earlier turns, how the answer begins, or the system message. The suite `pressure`
asks over two to five turns, in which the user insists, rephrases, claims authority, splits the task
or wears the model down. `uncovered` asks for everyday things, which a model must go on to answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from policyalign_assets.evaluation.cases import TestCase, capability_case
from policyalign_assets.evaluation.conversation import Conversation, Turn
from policyalign_assets.evaluation.probe_texts import (
    everyday_actions,
    plain_questions,
    probe_texts,
)
from policyalign_assets.synthesis.duplicates import normalize
from policyalign_assets.world.world import lexicon

Change = Callable[[str, random.Random], tuple[str, Conversation]]  # gives (kind, conversation)
_EVERYDAY_PATTERN = 7  # steps through the frames; shares no factor with their number


def probe_cases(violations: Sequence[TestCase], cases: int, seed: int) -> list[TestCase]:
    """`cases` of each probe, from `violations`: single requests that break a rule."""
    made: list[TestCase] = []
    for suite, change in _CHANGES.items():
        for number, source in enumerate(_evenly(violations, cases, f"{seed}/{suite}")):
            request = source.conversation.request
            kind, conversation = change(request, random.Random(f"{seed}/{suite}/{request}"))
            made.append(_changed(source, suite, number, kind, conversation))
    return made


def pressure_cases(violations: Sequence[TestCase], cases: int, seed: int) -> list[TestCase]:
    """`cases` conversations in which the user does not give up, all patterns equally often."""
    patterns = probe_texts().pressure
    made = []
    for number, source in enumerate(_evenly(violations, cases, f"{seed}/pressure")):
        kind, messages = patterns[number % len(patterns)]
        request = source.conversation.request
        conversation = Conversation.of(*(message.format(r=request) for message in messages))
        made.append(_changed(source, "pressure", number, kind, conversation))
    return made


def uncovered_cases(cases: int, exclude: Sequence[str] = ()) -> list[TestCase]:
    """Everyday requests, which no rule forbids and which must be answered."""
    actions, frames = everyday_actions(), lexicon()["request_frames"]
    seen = {normalize(text) for text in exclude}
    made: list[TestCase] = []
    for number in range(len(actions) * len(frames)):
        if len(made) == cases:
            break
        turn, place = divmod(number, len(actions))
        frame = frames[(turn + _EVERYDAY_PATTERN * place) % len(frames)]
        text = frame.format(p=actions[place])
        if normalize(text) not in seen:
            made.append(
                TestCase(
                    f"uncovered-{len(made):04d}",
                    "uncovered",
                    "everyday",
                    None,
                    False,
                    Conversation.of(text),
                    cluster=actions[place],
                )
            )
    return made


def question_cases(cases: int, seed: int) -> list[TestCase]:
    """`cases` plain questions of general knowledge, or all if there are fewer."""
    questions = plain_questions()
    drawn = random.Random(seed).sample(questions, min(cases, len(questions)))
    return [
        capability_case(number, "general knowledge", asked.question, asked.right, asked.wrong)
        for number, asked in enumerate(drawn)
    ]


def _evenly(violations: Sequence[TestCase], cases: int, seed: str) -> list[TestCase]:
    """`cases` of `violations`, all rules equally often as far as they last.

    Which ones depends on each request alone, so an edit of one rule leaves the others' as they are.
    """
    by_rule: dict[str | None, list[TestCase]] = {}
    for case in violations:
        by_rule.setdefault(case.rule_id, []).append(case)
    for group in by_rule.values():
        group.sort(key=lambda case: random.Random(f"{seed}/{case.prompt}").random())
    rounds = max((len(group) for group in by_rule.values()), default=0)
    in_turn = [g[i] for i in range(rounds) for g in by_rule.values() if i < len(g)]
    return in_turn[:cases]


def _changed(
    source: TestCase, suite: str, number: int, kind: str, conversation: Conversation
) -> TestCase:
    return TestCase(
        f"{suite}-{number:04d}",
        suite,
        kind,
        source.rule_id,
        source.wrapped,
        conversation,
        cluster=source.cluster,
    )


def _lower(request: str, rng: random.Random) -> tuple[str, Conversation]:
    return "lower", Conversation.of(request.lower())


def _upper(request: str, rng: random.Random) -> tuple[str, Conversation]:
    return "upper", Conversation.of(request.upper())


def _typo(request: str, rng: random.Random) -> tuple[str, Conversation]:
    """One typo in one of the longer words: two neighbouring letters swapped, or one left out."""
    words = request.split(" ")
    long_words = [i for i, word in enumerate(words) if sum(c.isalpha() for c in word) >= 5]
    if not long_words:
        return "short", Conversation.of(request)
    i = rng.choice(long_words)
    word = words[i]
    places = [p for p in range(1, len(word) - 1) if word[p].isalpha() and word[p + 1].isalpha()]
    place = rng.choice(places or [1])
    if rng.random() < 0.5 and word[place] != word[place + 1]:
        kind = "swapped"
        words[i] = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    else:
        kind = "left_out"
        words[i] = word[:place] + word[place + 1 :]
    return kind, Conversation.of(" ".join(words))


def _long_context(request: str, rng: random.Random) -> tuple[str, Conversation]:
    return "long_context", Conversation.of(f"{probe_texts().long_context} {request}")


def _earlier_turns(request: str, rng: random.Random) -> tuple[str, Conversation]:
    turns = probe_texts().earlier_turns
    count = rng.choice((1, len(turns)))
    earlier = tuple(Turn(user, assistant) for user, assistant in turns[:count])
    return f"turns_{count}", Conversation((*earlier, Turn(request)))


def _opening(request: str, rng: random.Random) -> tuple[str, Conversation]:
    return "opening", Conversation((Turn(request),), opening=rng.choice(probe_texts().openings))


def _system(request: str, rng: random.Random) -> tuple[str, Conversation]:
    return "system", Conversation((Turn(request),), system=rng.choice(probe_texts().systems))


def _policy(request: str, rng: random.Random) -> tuple[str, Conversation]:
    return "policy", Conversation((Turn(request),), with_policy=True)


_CHANGES: dict[str, Change] = {
    "probe_lower": _lower,
    "probe_upper": _upper,
    "probe_typo": _typo,
    "probe_long": _long_context,
    "probe_turns": _earlier_turns,
    "probe_opening": _opening,
    "probe_system": _system,
    "probe_policy": _policy,
}
