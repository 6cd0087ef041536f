"""The drafts of one rule: asked for, checked, counted. Everything here follows from the rule alone, never from its neighbours.

Rows carry no policy yet, so that a rule which several domains share has one set of rows (see `store`).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Literal

from policyalign_assets.engine.base import Engine, Sampling, chat
from policyalign_assets.judges.phrases import RuleBasedJudge
from policyalign_assets.judges.verdict import Judge
from policyalign_assets.policy import Rule
from policyalign_assets.settings import SynthesisSettings
from policyalign_assets.synthesis import entailment, grid
from policyalign_assets.synthesis.duplicates import DuplicateFilter
from policyalign_assets.synthesis.firewall import Firewall
from policyalign_assets.synthesis.grid import Cell
from policyalign_assets.synthesis.ladder import Draft, climb
from policyalign_assets.synthesis.validation import reject_reason
from policyalign_assets.world import prompts

CODE_VERSION = 2  # raise it when new code changes how drafts are asked for, checked or kept


@dataclass
class RuleYield:
    """What became of the drafts for one rule. `starved`: fewer instructions than wanted after all rounds."""

    wanted: int
    violating: int = 0  # or, for a duty, requests that elicit it
    twins: int = 0
    neighbours: int = 0
    styled: int = 0
    heldout: int = 0
    drafted: int = 0
    dropped: Counter = field(
        default_factory=Counter
    )  # by reason: refused, empty, truncated, duplicate, near_duplicate, pii …
    refused: Counter = field(
        default_factory=Counter
    )  # drafts that the generator refused, by step of the ladder
    unjudged: int = 0  # rows kept though the judge of their entailment failed

    @property
    def starved(self) -> bool:
        return self.violating < self.wanted


@dataclass(frozen=True)
class DraftChecks:
    """What no text passes: validation, the firewalls, and, where there is one, the judge of whether a draft fits its rule."""

    language: str | None
    walls: Sequence[Firewall]
    judge: Judge | None = None

    def reason(self, text: str) -> str | None:
        return reject_reason(text, self.language) or self.hit(text)

    def hit(self, text: str) -> str | None:
        return next((found.reason for wall in self.walls if (found := wall.check(text))), None)


def seed_for(base: int, *parts: str) -> int:
    """A seed that depends on content, not on position."""
    return int.from_bytes(
        hashlib.sha256("\0".join((str(base), *parts)).encode()).digest()[:4], "big"
    )


def main_kind(rule: Rule) -> Literal["violating", "duty"]:
    """`violating` where a request can ask for what the rule forbids, `duty` where an answer can leave out what it requires."""
    return "violating" if rule.forbids or rule.kind == "prohibit" else "duty"


class Drafting:
    def __init__(
        self, rule: Rule, engine: Engine, settings: SynthesisSettings, checks: DraftChecks
    ):
        self.rule, self.engine, self.settings, self.checks = rule, engine, settings, checks
        self.full = settings.grid == "full"
        self.seen = DuplicateFilter(settings.near_duplicate, settings.rouge_l)
        self.judge = RuleBasedJudge()
        self.entailed: set[tuple[str, str]] = (
            set()
        )  # kind and text of the drafts that the judge of these checks found to fit
        self.out = RuleYield(settings.per_rule)

    def run(self) -> tuple[list[dict], RuleYield]:
        kind, s, out = main_kind(self.rule), self.settings, self.out
        main = self._fill(kind, s.per_rule)
        twins, neighbours, styled = [], [], []
        if kind == "violating":
            twins = self._twins(main)
            neighbours = self._fill("neighbour", round(len(main) * s.neighbour_ratio))
            styled = self._styled(main) if self.full else []
        out.violating, out.twins, out.neighbours, out.styled = (
            len(main),
            len(twins),
            len(neighbours),
            len(styled),
        )
        out.unjudged = (
            sum(r["entailed"] is None for r in main + twins + neighbours)
            if self.checks.judge
            else 0
        )
        return main + twins + neighbours + styled, out

    def _fill(self, kind: str, wanted: int) -> list[dict]:
        """Rows for `wanted` places. On the full grid a place is a cell, which only a draft for that cell can fill."""
        places = self._cells(kind, wanted)
        rows: list[dict] = []
        for round_ in range(self.settings.rounds):
            if not places:
                break
            seed = self._seed(kind, round_)
            asked = list(islice(cycle(places), math.ceil(len(places) * self.settings.oversample)))
            drafts = self._drafts([self._prompt(kind, cell) for cell in asked], seed)
            for cell, draft, fault in zip(asked, drafts, self._faults(kind, drafts), strict=True):
                if self._usable(draft, fault) and cell in places:
                    places.remove(cell)
                    rows.append(self._row(kind, draft.text, None, seed, round_, cell, draft.step))
        return rows

    def _twins(self, parents: list[dict]) -> list[dict]:
        wanted = round(len(parents) * self.settings.twin_ratio)
        rows: list[dict] = []
        for round_ in range(self.settings.rounds):
            todo = [parents[(round_ + n) % len(parents)] for n in range(wanted - len(rows))]
            if not todo:
                break
            seed = self._seed("twin", round_)
            drafts = self._drafts([self._prompt("twin", None, p["text"]) for p in todo], seed)
            for parent, draft, fault in zip(
                todo, drafts, self._faults("twin", drafts), strict=True
            ):
                if self._usable(draft, fault):
                    rows.append(
                        self._row(
                            "twin", draft.text, parent, seed, round_, _cell(parent), draft.step
                        )
                    )
        return rows

    def _styled(self, parents: list[dict]) -> list[dict]:
        """Attack styles around a share of the requests, by templates: the parent has passed every check, so only the firewall looks."""
        wanted = round(len(parents) * self.settings.style_share)
        order = sorted(
            parents * math.ceil(self.settings.style_share),
            key=lambda p: seed_for(self.settings.seed, "style", p["instruction_id"]),
        )
        names = grid.styles()
        shift = self._seed("style", 0)
        rows: list[dict] = []
        for n, parent in enumerate(order[:wanted]):
            style = names[(n + shift) % len(names)]
            text = grid.styled(style, parent["text"])
            if reason := self.checks.hit(text) or self.seen.add_exact(text):
                self.out.dropped[reason] += 1
            else:
                rows.append(
                    self._row("violating", text, parent, shift, 0, _cell(parent), parent["ladder"])
                    | {"style": style}
                )
        return rows

    def _cells(self, kind: str, wanted: int) -> list[Cell | None]:
        return (
            list(grid.spread(grid.cells(kind), wanted, self._seed(f"grid/{kind}", 0)))
            if self.full
            else [None] * wanted
        )

    def _prompt(self, kind: str, cell: Cell | None, request: str = "") -> str:
        if self.full:
            return grid.prompt(kind, self.rule, cell, request)
        words = {
            "violating": prompts.VIOLATION,
            "neighbour": prompts.NEIGHBOUR,
            "twin": prompts.TWIN,
        }[kind]
        return words.format(rule=self.rule.text, request=request)

    def _drafts(self, asked: list[str], seed: int) -> list[Draft]:
        sampling = Sampling(self.settings.max_new_tokens, self.settings.temperature, seed)
        if self.full:
            return climb(self.engine, asked, sampling)
        return [
            Draft(g.text, g.finish, None, ("plain",) if self.judge.judge(g.text).refused else ())
            for g in self.engine.generate([chat(a) for a in asked], sampling)
        ]

    def _faults(self, kind: str, drafts: list[Draft]) -> list[str | None]:
        """Why each draft cannot be used, whatever else was drafted; None where it can."""
        faults = [self._fault(draft) for draft in drafts]
        if self.checks.judge is None:
            return faults
        said = entailment.faults(
            self.checks.judge,
            self.rule,
            kind,
            [d.text for d, fault in zip(drafts, faults) if fault is None],
        )
        self.entailed |= {(kind, text) for text, fault in said.items() if fault is None}
        if self.settings.unjudged == "keep":
            said = {
                text: None if fault == entailment.UNJUDGED else fault
                for text, fault in said.items()
            }
        return [fault or said[draft.text] for draft, fault in zip(drafts, faults)]

    def _fault(self, draft: Draft) -> str | None:
        if not draft.text:
            return "empty"
        if draft.finish == "length":
            return "truncated"
        return "refused" if self.judge.judge(draft.text).refused else self.checks.reason(draft.text)

    def _usable(self, draft: Draft, fault: str | None) -> bool:
        self.out.drafted += 1
        self.out.refused.update(draft.refused)
        reason = fault or self.seen.add(draft.text)
        if reason:
            self.out.dropped[reason] += 1
        return reason is None

    def _seed(self, kind: str, round_: int) -> int:
        return seed_for(self.settings.seed, self.rule.content_hash, kind, str(round_))

    def _row(
        self,
        kind: str,
        text: str,
        parent: dict | None,
        seed: int,
        round_: int,
        cell: Cell | None,
        step: str | None,
    ) -> dict:
        return {
            "instruction_id": instruction_id(self.rule, kind, text),
            "rule_id": self.rule.rule_id,
            "rule_hash": self.rule.content_hash,
            "kind": kind,
            "parent_id": parent["instruction_id"] if parent else None,
            "text": text,
            "seed": seed,
            "round": round_,
            "model_id": self.engine.model_id,
            "model_revision": self.engine.revision,
            "ladder": step,
            "entailed": (kind, text) in self.entailed or None,
            **(cell._asdict() if cell else {}),
        }


def instruction_id(rule: Rule, kind: str, text: str) -> str:
    return hashlib.sha256("\0".join((rule.content_hash, kind, text)).encode()).hexdigest()[:16]


def _cell(row: dict) -> Cell | None:
    return Cell(*(row[axis] for axis in Cell._fields)) if "intent" in row else None
