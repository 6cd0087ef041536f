"""What an edited policy is trained on when training goes on from an earlier adapter.

Rows that the edit touches are those of added or changed rules, and the earlier rows of rules that
are not as they were: the present teacher says whether these are answered again. The other rows are
replayed, evenly over rules and kinds, so that nothing is forgotten. A few rows of each group are
held back: from the answers to them one tells whether the student does what the teacher does.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from policyalign_assets.distillation.batches import Instruction, batch_indices
from policyalign_assets.judges.verdict import Dialogue, Judge
from policyalign_assets.policy import PolicyDocument, Rule
from policyalign_assets.settings import WarmStartSettings

CODE_VERSION = 2  # raise it when the same edit is trained on other rows, or stops elsewhere
FORMER = "former"  # the kind of an earlier rule's requests, which the present teacher decides on
# `rule`: hash of all that decides what the rule means, or "" of rows whose rule is long gone
REQUESTS = pa.schema(
    [(name, pa.string()) for name in ("policy_id", "rule_id", "rule", "kind", "text")]
)


def rule_key(rule: Rule) -> str:
    """Changes with what the rule says and how it is read, and not with its id or its place."""
    said = [rule.text, rule.kind, rule.condition, rule.exceptions, rule.permitted, rule.action]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def requests_of(policy: PolicyDocument, chosen: pa.Table) -> pa.Table:
    """The selected rows of a FILTERED table as REQUESTS, in their order."""
    keys = {rule.rule_id: rule_key(rule) for rule in policy.rules}
    return pa.Table.from_pylist(
        [
            {
                "policy_id": policy.policy_id,
                "rule_id": row["rule_id"],
                "rule": keys.get(row["rule_id"], ""),
                "kind": row["kind"],
                "text": row["text"],
            }
            for row in chosen.select(["rule_id", "kind", "text"]).to_pylist()
        ],
        REQUESTS,
    )


@dataclass(frozen=True)
class Edit:
    """`touched`: for each present request, whether its rule is new or not as it was.

    `former`: earlier requests that are none of the present ones; the first `freed` of them belong
    to rules that this edit has withdrawn or changed, the others to earlier edits.
    """

    touched: tuple[bool, ...]
    former: pa.Table
    freed: int


def edit_between(before: pa.Table, now: pa.Table) -> Edit:
    """What an edit touches, from the REQUESTS of the earlier training and the present ones."""

    def key(row: dict) -> tuple[str, str]:
        return row["policy_id"], row["rule"]

    rows, earlier = now.to_pylist(), before.to_pylist()
    old = {key(row) for row in earlier if row["kind"] != FORMER}
    new, texts = {key(row) for row in rows}, {row["text"] for row in rows}
    gone = [row for row in earlier if row["text"] not in texts]
    freed = [row for row in gone if row["kind"] in ("violating", "duty") and key(row) not in new]
    older = [row for row in gone if row["kind"] == FORMER]
    return Edit(
        tuple(key(row) not in old for row in rows),
        pa.Table.from_pylist([{**row, "kind": FORMER} for row in (*freed, *older)], REQUESTS),
        len(freed),
    )


@dataclass(frozen=True)
class WarmMix:
    """`rows` are trained on. `held` are held back, and `held_touched` says which the edit touches.

    `touched`, `replayed`: how many of `rows` the edit touches, and how many it does not.
    """

    rows: tuple[Instruction, ...]
    held: tuple[Instruction, ...]
    held_touched: tuple[bool, ...]
    touched: int
    replayed: int


def warm_mix(
    rows: Sequence[Instruction],
    touched: Sequence[bool],
    everyday: Sequence[Instruction],
    settings: WarmStartSettings,
    seed: int,
) -> WarmMix:
    """The rows of a warm start. Everyday requests are replayed too, and none is held back."""
    held = _held_back(rows, settings.probe_rows)
    focus = [row for i, row in enumerate(rows) if touched[i] and i not in held]
    pool = [row for i, row in enumerate(rows) if not touched[i] and i not in held]
    pool += everyday
    wanted = len(pool)
    if focus:
        wanted = min(wanted, round(len(focus) * settings.replay / (1 - settings.replay)))
    chosen = batch_indices([row.group for row in pool], wanted, 0, seed) if pool else []
    return WarmMix(
        (*focus, *(pool[i] for i in sorted(chosen))),
        tuple(rows[i] for i in sorted(held)),
        tuple(touched[i] for i in sorted(held)),
        len(focus),
        len(chosen),
    )


def _held_back(rows: Sequence[Instruction], most: int) -> set[int]:
    """Up to `most` rows of each group, and never more than a fifth of it, by a hash of the text."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        groups[row.group].append(i)
    found: set[int] = set()
    for members in groups.values():
        members.sort(key=lambda i: hashlib.sha256(rows[i].text.encode()).digest())
        found.update(members[: min(most, len(members) // 5)])
    return found


@dataclass(frozen=True)
class Reading:
    """Held-back requests on which the student does as the teacher: (how many, of how many)."""

    declined: tuple[int, int]
    answered: tuple[int, int]
    touched: tuple[int, int]
    done: bool

    @property
    def sentence(self) -> str:
        parts = {
            "declined as by the teacher": self.declined,
            "answered as by it": self.answered,
            "as it among those that the edit touches": self.touched,
        }
        return ", ".join(f"{k} of {n} {what}" for what, (k, n) in parts.items())


class Probe:
    """Tells from the student's answers to held-back requests whether it does as the teacher does.

    `teacher`: for each request whether the teacher declines it, or None where that cannot be read;
    such a request is left out and counted in `unread`.
    """

    def __init__(
        self, mix: WarmMix, teacher: Sequence[bool | None], judge: Judge, agreement: float
    ):
        read = [i for i, said in enumerate(teacher) if said is not None]
        self.asked = [mix.held[i].text for i in read]
        self._teacher = [bool(teacher[i]) for i in read]
        self._touched = [mix.held_touched[i] for i in read]
        self.unread = len(teacher) - len(read)
        self._judge, self._agreement = judge, agreement
        self.readings: list[Reading] = []

    def done(self, answers: Sequence[str]) -> bool:
        """An answer that cannot be read agrees with nothing. Nothing held back is never done.

        One request may differ even in a set that is too small to show the share: 27 of 28 are less
        than 97 %.
        """
        verdicts = self._judge.judge_all(
            [Dialogue(text, answer) for text, answer in zip(self.asked, answers, strict=True)]
        )
        same = [v.refused is said for v, said in zip(verdicts, self._teacher, strict=True)]
        parts = {
            "declined": self._teacher,
            "answered": [not said for said in self._teacher],
            "touched": self._touched,
        }
        shares = {name: _count(same, among) for name, among in parts.items()}
        enough = all(n - k <= self._may_differ(n) for k, n in shares.values())
        self.readings.append(Reading(**shares, done=enough and bool(same)))
        return self.readings[-1].done

    def _may_differ(self, n: int) -> int:
        share = 1 - self._agreement
        return max(1, math.floor(round(share * n, 6))) if share else 0


def _count(same: Iterable[bool], among: Iterable[bool]) -> tuple[int, int]:
    counted = Counter(s for s, a in zip(same, among, strict=True) if a)
    return counted[True], counted.total()
