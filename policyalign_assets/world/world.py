"""The small world of the bundled model: actions, policies about them, requests and answers.

An *action* is a verb and an object ("alter a prescription"). A prohibition forbids one action, and
a request asks for one. A request is *covered* when a rule of the policy names its action word for
word. A right answer repeats the action. It then declines a covered request, and gives harmless
filler to any other request. Nothing dangerous is ever written.

The model has only a few million parameters, so the world is this literal. Such a model can learn
to look a phrase up in its context, even for words that it never saw. Half of the training words are
invented, so that it cannot answer from memory. See `bundled_model/train.py` for the curriculum.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

from policyalign_assets.files import parse_shipped_yaml
from policyalign_assets.world import prompts

# The syllables that invented words are made of
ONSETS = (
    "b",
    "c",
    "d",
    "f",
    "g",
    "h",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "t",
    "v",
    "w",
    "z",
    "br",
    "cl",
    "dr",
    "gr",
    "pl",
    "sk",
    "st",
    "tr",
    "th",
    "ch",
    "sh",
)
CODAS = ("", "", "n", "r", "s", "l", "m", "t", "nd", "ck")

# Kinds of uncovered requests, from easy to hard, by what they share with the rules of the policy
UNCOVERED_KINDS = ("unrelated", "same_object", "same_verb", "crossed", "near")


@dataclass(frozen=True)
class Action:
    """`verb` (one word, base form) and `obj` (everything after it)."""

    verb: str
    obj: str

    @property
    def text(self) -> str:
        return f"{self.verb} {self.obj}"

    @classmethod
    def parse(cls, text: str) -> Action:
        verb, _, obj = text.partition(" ")
        return cls(verb, obj)


@dataclass(frozen=True)
class Case:
    """One request with a right answer.

    kind: covered, twin, no_policy, capability, synthesis, twin_synthesis, neighbour_synthesis, or
        one of UNCOVERED_KINDS.
    expected: of capability questions, the sentence that the bundled model was taught to answer.
    value: what matters in that sentence, a number or a word.
    others: wrong answers that the question offers.
    """

    kind: str
    request: str
    answer: str
    action: Action | None = None
    wrapped: bool = False
    expected: str = ""
    value: str = ""
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class WorldPolicy:
    text: str
    actions: tuple[Action, ...]


@cache
def lexicon() -> dict:
    raw = parse_shipped_yaml(
        resources.files(__package__).joinpath("lexicon.yaml").read_text(encoding="utf-8")
    )
    # In the file, a string holds words separated by spaces. A list holds sentences.
    return {
        key: tuple(dict.fromkeys(value.split()))
        if isinstance(value, str) and key != "echo"
        else value
        for key, value in raw.items()
    }


def _bucket(text: str, buckets: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % buckets


@dataclass
class World:
    """Samples actions, policies, requests and answers.

    split: "train" never uses held-out words or held-out verb-object pairs. "heldout" uses only
        pairs that training excluded. "unseen" uses held-out words, which the tokenizer's training
        excluded too.
    reserved: action texts that training must not use, such as the rules of the shipped policies.
    """

    rng: random.Random
    split: str = "train"
    reserved: frozenset[str] = frozenset()
    invented: float = 0.35  # share of words made of random syllables
    lex: dict = field(default_factory=lexicon)

    # ---- words ----
    @staticmethod
    def is_heldout_word(word: str, reserved_words: frozenset[str] = frozenset()) -> bool:
        return word not in reserved_words and _bucket("word:" + word, 9) == 0

    def _reserved_words(self) -> frozenset[str]:
        cached = getattr(self, "_rw", None)
        if cached is None:
            cached = frozenset(w for text in self.reserved for w in text.split())
            self._rw = cached
        return cached

    def _word(self, *pools: str) -> str:
        if self.split != "unseen" and self.rng.random() < self.invented:
            return self.invent()
        want_heldout = self.split == "unseen"
        while True:
            word = self.rng.choice(self.lex[self.rng.choice(pools)])
            if self.is_heldout_word(word, self._reserved_words()) == want_heldout:
                return word

    def invent(self) -> str:
        """A word without a meaning: random syllables, or parts of two real words joined."""
        r = self.rng
        if r.random() < 0.5:
            first, second = (
                r.choice(self.lex[r.choice(("nouns", "verbs_neutral", "adjectives"))])
                for _ in range(2)
            )
            if not {first, second} & set(self._reserved_words()):
                return first[: r.randint(2, 5)] + second[-r.randint(2, 5) :]
        return "".join(
            r.choice(ONSETS) + r.choice("aeiou") + r.choice(CODAS)
            for _ in range(r.choice((1, 2, 2, 3)))
        )

    def verb(self, permitted: bool = False) -> str:
        if permitted:
            return self.rng.choice(self.lex["verbs_permitted"])
        pools = ("verbs_risky", "verbs_risky", "verbs_neutral")
        return self._word(*pools)

    def _article(self, noun_phrase: str) -> str:
        r = self.rng.random()
        if r < 0.6:
            return ("an " if noun_phrase[0] in "aeiou" else "a ") + noun_phrase
        if r < 0.8:
            return "the " + noun_phrase
        return self.rng.choice(("another ", "their ", "my ", "his ")) + noun_phrase

    def noun_phrase(self) -> str:
        """A noun phrase: "a record", "the red audit log", "a stranger's messages"."""
        r = self.rng
        adjective = ""
        if r.random() < 0.3:
            adjective = (
                self._word("adjectives")
                + ("-" + self._word("adjectives", "nouns") if r.random() < 0.06 else "")
                + " "
            )
        owner = self._article(self._word("nouns")) + "'s " if r.random() < 0.07 else ""
        compound = self._word("nouns") + " " if r.random() < 0.22 else ""
        kind = r.random()
        head = (
            adjective
            + compound
            + self._word(
                "nouns" if kind < 0.62 else "nouns_plural" if kind < 0.85 else "nouns_mass"
            )
        )
        return owner + head if owner or kind >= 0.62 else self._article(head)

    def obj(self) -> str:
        r = self.rng
        x = r.random()
        np = self.noun_phrase()
        if x < 0.05:
            return f"{r.choice(self.lex['prepositions'])} {np}"
        if x < 0.17:
            return f"{np} without {r.choice(('', 'a '))}{self._word('tail_nouns')}"
        if x < 0.38:
            return f"{np} {r.choice(self.lex['prepositions'])} {self.noun_phrase()}"
        return np

    def action(self, verb: str | None = None, obj: str | None = None) -> Action:
        """An action of this world's split. `verb` or `obj` fixes that part of it."""
        for _ in range(200):
            a = Action(verb or self.verb(), obj or self.obj())
            if a.text in self.reserved:
                continue
            heldout_pair = _bucket("pair:" + a.text, 10) == 0
            if self.split == "train" and heldout_pair:
                continue
            if self.split == "heldout" and not heldout_pair and verb is None and obj is None:
                continue
            return a
        raise RuntimeError(f"no action of split {self.split!r} for verb={verb!r}, obj={obj!r}")

    # ---- policies ----
    def policy(
        self, n_rules: int, actions: tuple[Action, ...] | None = None, framed: bool = True
    ) -> WorldPolicy:
        """A policy of `n_rules` prohibitions and up to two duties.

        Its text has the form of `PolicyDocument.prompt_text`.
        """
        r = self.rng
        actions = actions or tuple(self.action() for _ in range(n_rules))
        sentences = [r.choice(self.lex["rule_stems"]).format(p=a.text) for a in actions]
        if framed:
            sentences += r.sample(self.lex["duties"], r.choice((0, 0, 1, 1, 2)))
            r.shuffle(sentences) if r.random() < 0.3 else None
        letters = r.sample("ABCDEFGHIKLMNPRSTUVW", 2)
        cut = r.randint(0, len(sentences))
        rules = [
            f"- {letters[i >= cut]}{(i if i < cut else i - cut) + 1}: {s}"
            for i, s in enumerate(sentences)
        ]
        parts = [f"# {r.choice(self.lex['titles'])}"]
        if framed and r.random() < 0.85:
            parts.append(self._sentences("preambles"))
        parts.append("## Rules\n" + "\n".join(rules))
        if framed and r.random() < 0.85:
            parts.append("## Declining\n" + self._sentences("closings"))
        return WorldPolicy("\n\n".join(parts), actions)

    def _sentences(self, pool: str) -> str:
        """One to three sentences of `pool`. Some name an action, but only rules forbid one."""
        templates = self.rng.sample(self.lex[pool], self.rng.randint(1, 3))
        fill = re.compile(r"\{(np|a|day)\}")
        made = {
            "np": self.noun_phrase,
            "a": lambda: self.action().text,
            "day": lambda: self.rng.choice(self.lex["days"]),
        }
        return " ".join(fill.sub(lambda m: made[m[1]](), t) for t in templates)

    # ---- requests and answers ----
    def people(self, template: str) -> str:
        r = self.rng
        return template.format(
            job=r.choice(self.lex["jobs"]),
            person=r.choice(self.lex["people"]),
            day=r.choice(self.lex["days"]),
        )

    def request(self, action: Action, wrapped: bool = False) -> str:
        r = self.rng
        text = r.choice(self.lex["request_frames"]).format(p=action.text)
        if r.random() < 0.3:
            text = self.people(r.choice(self.lex["request_before"])) + " " + text
        if r.random() < 0.3:
            text = text + " " + self.people(r.choice(self.lex["request_after"]))
        return r.choice(self.lex["wrappers"]).format(r=text) if wrapped else text

    def answer(self, action: Action, refuse: bool) -> str:
        tail = self.rng.choice(self.lex["refuse" if refuse else "comply"])
        return f"{self.lex['echo'].format(p=action.text)} {tail}"

    def ask(self, kind: str, action: Action, wrapped: bool | None = None) -> Case:
        wrapped = self.rng.random() < 0.25 if wrapped is None else wrapped
        return Case(
            kind,
            self.request(action, wrapped),
            self.answer(action, kind == "covered"),
            action,
            wrapped,
        )

    def uncovered(self, policy: WorldPolicy, kind: str) -> Action:
        """An action that no rule of `policy` covers. `kind` says what it shares with the rules."""
        r = self.rng
        covered = {a.text for a in policy.actions}
        for _ in range(100):
            rule = r.choice(policy.actions)
            if kind == "twin":
                a = Action(self.verb(permitted=True), rule.obj)
            elif kind == "same_object":
                a = self.action(obj=rule.obj)
            elif kind == "same_verb":
                a = self.action(verb=rule.verb)
            elif kind == "crossed":
                a = Action(rule.verb, r.choice(policy.actions).obj)
            elif kind == "near":  # one word of the object is another
                words = rule.obj.split()
                i = r.randrange(len(words))
                if words[i] in (
                    "a",
                    "an",
                    "the",
                    "another",
                    "their",
                    "my",
                    "his",
                    *self.lex["prepositions"],
                ):
                    continue
                words[i] = self._word("nouns")
                a = Action(rule.verb, " ".join(words))
            else:
                a = self.action()
            if a.text not in covered and a.text not in self.reserved:
                return a
        return self.action()

    def case(self, policy: WorldPolicy, kind: str, wrapped: bool | None = None) -> Case:
        action = (
            self.rng.choice(policy.actions) if kind == "covered" else self.uncovered(policy, kind)
        )
        return self.ask(kind, action, wrapped)

    def capability(self, arithmetic: float = 0.6) -> Case:
        """A question with one right answer: a sum with probability `arithmetic`, else a lookup."""
        r = self.rng
        if r.random() < arithmetic:
            while True:
                a, b = r.randint(10, 99), r.randint(1, 9)
                if (_bucket(f"sum:{a}+{b}", 10) == 0) == (self.split != "train"):
                    break
            q = r.choice(
                (
                    "What is {a} plus {b}?",
                    "Add {b} to {a}.",
                    "How much is {a} plus {b}?",
                    "Compute {a} plus {b}.",
                )
            ).format(a=a, b=b)
            expected, value, others = f"{a} plus {b} is {a + b}.", str(a + b), ()
        else:
            thing = r.choice(self.lex["things"])
            names, colours = r.sample(self.lex["names"], 3), r.sample(self.lex["colours"], 3)
            facts = ", ".join(f"{n} {c}" for n, c in zip(names, colours))
            i = r.randrange(3)
            # "Answer:" comes first so that the name follows a space, as it does in the list. A BPE
            # tokenizer then gives it the same token in both places.
            q, expected = (
                f"Each person has a {thing}: {facts}. Which {thing} does {names[i]} have?",
                f"Answer: {names[i]} {colours[i]}.",
            )
            value, others = colours[i], tuple(c for c in colours if c != colours[i])
        return Case("capability", q, expected, expected=expected, value=value, others=others)

    def synthesis(self, action: Action | None = None) -> Case:
        action = action or self.action()
        rule = self.rng.choice(self.lex["rule_stems"]).format(p=action.text)
        return Case("synthesis", prompts.VIOLATION.format(rule=rule), self.request(action), action)

    def neighbour_synthesis(self, action: Action | None = None) -> Case:
        """A request that sounds risky and that the rule does not cover.

        It names another action, often on the same object or with the same verb. The kind "near" is
        left out: the model often copies so small a change wrong, and then the rule covers it.
        """
        action = action or self.action()
        rule = WorldPolicy("", (action,))
        kind = self.rng.choice(("same_object", "same_object", "same_verb", "unrelated"))
        fresh = World(self.rng, self.split, self.reserved, invented=0.0)
        neighbour = fresh.uncovered(rule, kind)
        sentence = self.rng.choice(self.lex["rule_stems"]).format(p=action.text)
        return Case(
            "neighbour_synthesis",
            prompts.NEIGHBOUR.format(rule=sentence),
            self.request(neighbour),
            neighbour,
        )

    def twin_synthesis(self, action: Action | None = None) -> Case:
        """A request and its twin: half of the twins permit the verb, half change the object."""
        action = action or self.action()
        source = self.request(action)
        if self.rng.random() < 0.5:
            twin = Action(self.verb(permitted=True), action.obj)
        else:
            twin = World(self.rng, "train", self.reserved, invented=0.0).action(verb=action.verb)
        return Case(
            "twin_synthesis",
            prompts.TWIN.format(request=source),
            source.replace(action.text, twin.text),
            twin,
        )
