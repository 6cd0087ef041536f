"""Drafts the requests of one rule: asks for them, checks them and counts them.

Everything here follows from the rule alone, never from its neighbours in the policy. Rows carry no
policy yet, so that several domains that share a rule share one set of rows (see `store`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Literal

from policyalign_assets.engine.base import Engine, Sampling, chat
from policyalign_assets.judges.phrases import RuleBasedJudge
from policyalign_assets.policy import Rule
from policyalign_assets.settings import SynthesisSettings
from policyalign_assets.synthesis import entailment, grid
from policyalign_assets.synthesis.attribution import UNRELIABLE
from policyalign_assets.synthesis.checks import DraftChecks
from policyalign_assets.synthesis.duplicates import DuplicateFilter
from policyalign_assets.synthesis.grid import Cell
from policyalign_assets.synthesis.ladder import Draft, draft_with_ladder
from policyalign_assets.synthesis.yields import SURPLUS, RuleYield
from policyalign_assets.world import prompts

CODE_VERSION = 5  # raise it when new code changes how drafts are asked for, checked or kept

Row = dict[str, Any]  # a row of INSTRUCTIONS without the columns of the policy

AUTHOR = "author"  # in place of a model's id, in rows that the policy's author wrote

_REDUCED_PROMPTS = {
    "violating": prompts.VIOLATION,
    "neighbour": prompts.NEIGHBOUR,
    "twin": prompts.TWIN,
}


def seed_for(base: int, *parts: str) -> int:
    """A seed that depends on content, not on position."""
    digest = hashlib.sha256("\0".join((str(base), *parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def main_kind(rule: Rule) -> Literal["violating", "duty"]:
    """The kind of a rule's main requests.

    `violating` where a request can ask for what the rule forbids; `duty` where an answer can leave
    out what the rule requires.
    """
    return "violating" if rule.forbids or rule.kind == "prohibit" else "duty"


def instruction_id(rule: Rule, kind: str, text: str) -> str:
    content = "\0".join((rule.content_hash, kind, text))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def reduced_prompt(kind: str, rule: str, request: str = "") -> str:
    """The prompt of the reduced grid; `request` is the violation that a twin comes from."""
    return _REDUCED_PROMPTS[kind].format(rule=rule, request=request)


@dataclass(frozen=True)
class Examples:
    """Requests that the policy's author wrote, without those that are held out to test with.

    They become rows, and on the full grid they also show the generator what is wanted.
    """

    violates: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()

    def of_kind(self, kind: str) -> tuple[str, ...]:
        """kind: of a row. A duty's requests are those that call for it."""
        known = {"violating": self.violates, "duty": self.violates, "neighbour": self.allowed}
        return known.get(kind, ())


NO_EXAMPLES = Examples()


@dataclass(frozen=True)
class Origin:
    """How a row came about. `step`: of the ladder. `parent`: the row that it was made from."""

    seed: int
    round: int = 0
    parent: Row | None = None
    cell: Cell | None = None
    step: str | None = None


class Drafting:
    """Drafts for one rule. Use each object for one `run`."""

    def __init__(
        self,
        rule: Rule,
        engine: Engine,
        settings: SynthesisSettings,
        checks: DraftChecks,
        examples: Examples = NO_EXAMPLES,
    ):
        self.rule, self.engine, self.settings, self.checks = rule, engine, settings, checks
        self.examples = examples
        self.full = settings.grid == "full"
        self.seen = DuplicateFilter(settings.near_duplicate, settings.rouge_l)
        self.refusals = RuleBasedJudge()
        self.entailed: set[tuple[str, str]] = set()  # (kind, text) that the judge confirmed
        self.counts = RuleYield(settings.per_rule)
        self.tied = self.tried = 0  # main drafts that belong to the rule, of those attributed

    def run(self) -> tuple[list[Row], RuleYield]:
        kind, settings, counts = main_kind(self.rule), self.settings, self.counts
        written = self._written(kind)
        allowed = self._written("neighbour") if kind == "violating" else []
        left = max(0, settings.per_rule - len(written))
        main = written + self._reliable(self._fill(kind, left))
        twins, neighbours, styled = [], [], []
        if kind == "violating":
            counts.wanted_twins = round(len(main) * settings.twin_ratio)
            counts.wanted_neighbours = round(len(main) * settings.neighbour_ratio)
            counts.wanted_styled = round(len(main) * settings.style_share) if self.full else 0
            twins = self._twins(main)
            left = max(0, counts.wanted_neighbours - len(allowed))
            neighbours = allowed + self._fill("neighbour", left)
            styled = self._styled(main)
        counts.violating, counts.twins = len(main), len(twins)
        counts.neighbours, counts.styled = len(neighbours), len(styled)
        drafted = main + twins + neighbours
        if self.checks.judge:
            counts.unjudged = sum(row["entailed"] is None for row in drafted)
        return drafted + styled, counts

    def _written(self, kind: str) -> list[Row]:
        """The author's own requests of this kind.

        The author's word ties them to the rule, so that only validation and the firewalls check
        them. All are kept, also where there are more than wanted.
        """
        rows: list[Row] = []
        for text in self.examples.of_kind(kind):
            self.counts.written += 1
            if reason := self.checks.reject_reason(text) or self.seen.add_exact(text):
                self.counts.dropped[reason] += 1
                continue
            by_author = {"model_id": AUTHOR, "model_revision": None, "seed": None, "round": None}
            rows.append(self._row(kind, text, Origin(0)) | by_author)
        return rows

    def _reliable(self, rows: list[Row]) -> list[Row]:
        """`rows`, or none where most drafts of the generator do not belong to the rule."""
        attribution = self.checks.attribution
        if attribution is None or not attribution.unreliable(self.tied, self.tried):
            return rows
        self.counts.dropped[UNRELIABLE] += len(rows)
        return []

    def _fill(self, kind: str, wanted: int) -> list[Row]:
        """Rows for `wanted` places.

        On the full grid a place is a cell, and only a draft for that cell can fill it.
        """
        places = self._cells(kind, wanted)
        grounds = ("", *grid.grounds(self.rule)) if self.full and kind == "neighbour" else ("",)
        ground_of = {cell: grounds[n % len(grounds)] for n, cell in enumerate(places)}
        rows: list[Row] = []
        for round_ in range(self.settings.rounds):
            if not places:
                break
            seed = self._seed(kind, round_)
            cells = list(islice(cycle(places), math.ceil(len(places) * self.settings.oversample)))
            asked = [self._prompt(kind, cell, ground=ground_of[cell]) for cell in cells]
            for cell, draft in zip(cells, self._usable(kind, asked, seed), strict=True):
                if draft is None:
                    continue
                if cell not in places:
                    self.counts.dropped[SURPLUS] += 1
                    continue
                places.remove(cell)
                origin = Origin(seed, round_, None, cell, draft.step)
                rows.append(self._row(kind, draft.text, origin))
        return rows

    def _twins(self, parents: list[Row]) -> list[Row]:
        wanted = self.counts.wanted_twins
        rows: list[Row] = []
        for round_ in range(self.settings.rounds):
            todo = [parents[(round_ + n) % len(parents)] for n in range(wanted - len(rows))]
            if not todo:
                break
            seed = self._seed("twin", round_)
            asked = [self._prompt("twin", None, parent["text"]) for parent in todo]
            sources = [parent["text"] for parent in todo]
            usable = self._usable("twin", asked, seed, sources)
            for parent, draft in zip(todo, usable, strict=True):
                if draft is not None:
                    origin = Origin(seed, round_, parent, _cell(parent), draft.step)
                    rows.append(self._row("twin", draft.text, origin))
        return rows

    def _styled(self, parents: list[Row]) -> list[Row]:
        """Attack styles around a share of the requests, by templates.

        The parent has passed every check, so only the firewalls check the styled text.
        """
        order = sorted(
            parents * math.ceil(self.settings.style_share),
            key=lambda p: seed_for(self.settings.seed, "style", p["instruction_id"]),
        )
        names, shift = grid.styles(), self._seed("style", 0)
        rows: list[Row] = []
        for n, parent in enumerate(order[: self.counts.wanted_styled]):
            style = names[(n + shift) % len(names)]
            text = grid.styled(style, parent["text"])
            self.counts.templated += 1
            if reason := self.checks.firewall_reason(text) or self.seen.add_exact(text):
                self.counts.dropped[reason] += 1
                continue
            origin = Origin(shift, 0, parent, _cell(parent), parent["ladder"])
            rows.append(self._row("violating", text, origin) | {"style": style})
        return rows

    def _cells(self, kind: str, wanted: int) -> list[Cell | None]:
        if not self.full:
            return [None] * wanted
        return list(grid.spread(grid.cells(kind), wanted, self._seed(f"grid/{kind}", 0)))

    def _prompt(self, kind: str, cell: Cell | None, request: str = "", ground: str = "") -> str:
        if self.full:
            examples = self.examples.of_kind(kind)
            return grid.prompt(kind, self.rule, cell, request, ground, examples)
        return reduced_prompt(kind, self.rule.text, request)

    def _usable(
        self, kind: str, asked: list[str], seed: int, parents: list[str] | None = None
    ) -> Iterator[Draft | None]:
        """For each prompt its draft, or None where the draft was dropped. Every draft is counted.

        Duplicates are found one by one, so a caller must take the drafts in order. parents: the
        requests that twins come from.
        """
        drafts = self._drafts(asked, seed)
        for draft, fault in zip(drafts, self._faults(kind, drafts, parents), strict=True):
            self.counts.drafted += 1
            self.counts.refused.update(draft.refused)
            reason = fault or self.seen.add(draft.text)
            if reason:
                self.counts.dropped[reason] += 1
            yield None if reason else draft

    def _drafts(self, asked: list[str], seed: int) -> list[Draft]:
        sampling = Sampling(self.settings.max_new_tokens, self.settings.temperature, seed)
        if self.full:
            return draft_with_ladder(self.engine, asked, sampling)
        generations = self.engine.generate([chat(prompt) for prompt in asked], sampling)
        return [
            Draft(g.text, g.finish, None, ("plain",) if self._refuses(g.text, g.finish) else ())
            for g in generations
        ]

    def _faults(
        self, kind: str, drafts: list[Draft], parents: list[str] | None
    ) -> list[str | None]:
        """Why each draft cannot be used, regardless of the other drafts; None where it can."""
        faults = [self._fault(draft) for draft in drafts]
        for check in (self._attributed, self._judged):
            left = [i for i, fault in enumerate(faults) if fault is None]
            texts = [drafts[i].text for i in left]
            sources = [parents[i] for i in left] if parents else None
            for i, fault in zip(left, check(kind, texts, sources), strict=True):
                faults[i] = fault
        return faults

    def _attributed(
        self, kind: str, texts: list[str], parents: list[str] | None
    ) -> list[str | None]:
        attribution = self.checks.attribution
        if attribution is None:
            return [None] * len(texts)
        faults = attribution.faults(kind, texts, parents)
        if kind == main_kind(self.rule):
            self.tried += len(faults)
            self.tied += faults.count(None)
        return faults

    def _judged(self, kind: str, texts: list[str], _: list[str] | None) -> list[str | None]:
        if self.checks.judge is None:
            return [None] * len(texts)
        judged = entailment.faults(self.checks.judge, self.rule, kind, texts)
        self.entailed |= {(kind, text) for text, fault in judged.items() if fault is None}
        if self.settings.unjudged == "keep":
            judged = {t: None if f == entailment.UNJUDGED else f for t, f in judged.items()}
        return [judged[text] for text in texts]

    def _fault(self, draft: Draft) -> str | None:
        if not draft.text:
            return "empty"
        if draft.finish == "length":
            return "truncated"
        if self._refuses(draft.text, draft.finish):
            return "refused"
        return self.checks.reject_reason(draft.text)

    def _refuses(self, text: str, finish: str) -> bool:
        return finish == "declined" or bool(self.refusals.judge(text).refused)

    def _seed(self, kind: str, round_: int) -> int:
        return seed_for(self.settings.seed, self.rule.content_hash, kind, str(round_))

    def _row(self, kind: str, text: str, origin: Origin) -> Row:
        return make_row(self.rule, self.engine, kind, text, origin) | {
            "ladder": origin.step,
            "entailed": (kind, text) in self.entailed or None,
            **(origin.cell._asdict() if origin.cell else {}),
        }


def make_row(rule: Rule, engine: Engine, kind: str, text: str, origin: Origin) -> Row:
    """The columns that every row has, whatever it was made from."""
    return {
        "instruction_id": instruction_id(rule, kind, text),
        "rule_id": rule.rule_id,
        "rule_hash": rule.content_hash,
        "kind": kind,
        "parent_id": origin.parent["instruction_id"] if origin.parent else None,
        "text": text,
        "seed": origin.seed,
        "round": origin.round,
        "model_id": engine.model_id,
        "model_revision": engine.revision,
    }


def _cell(row: Row) -> Cell | None:
    return Cell(*(row[axis] for axis in Cell._fields)) if "intent" in row else None
