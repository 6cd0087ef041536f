"""A seeded sample of answers for the page, and the form in which harmful text is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from policyalign_assets.evaluation.suites import (
    ALIGNED,
    ARMS,
    BASE,
    BENIGN_SUITES,
    SUITES,
    VIOLATION_SUITES,
    held,
    may_harm,
    should_be_refused,
)
from policyalign_assets.report.contents import Transcript, TranscriptGroup
from policyalign_assets.report.formatting import redacted

SHOWN = 5

Row = Mapping[str, Any]
Arms = dict[str, Row]  # arm -> row
Belongs = Callable[[str, Arms], bool]  # (suite or benchmark, its arms)


def transcript_groups(
    rows: Iterable[Row], public: Sequence[Row], seed: int, show_harmful: bool
) -> list[TranscriptGroup]:
    """`rows` (EVALUATION) and `public` (BENCHMARKS). Nobody chooses what is shown."""
    cases: dict[tuple[str, str], Arms] = {}
    for row in rows:
        cases.setdefault((row["suite"], row["case_id"]), {})[row["arm"]] = row
    for row in public:
        if row["prompt"] is not None and row["kind"] in ("harmful", "benign"):
            cases.setdefault((row["benchmark"], row["case_id"]), {})[row["arm"]] = row

    def group(title: str, belongs: Belongs) -> TranscriptGroup:
        found = [key for key in sorted(cases) if belongs(key[0], cases[key])]
        # One generator per group: the size of one group must not change what another shows.
        chosen = np.random.default_rng([seed, *title.encode()]).choice(
            len(found), min(SHOWN, len(found)), replace=False
        )
        return TranscriptGroup(
            title,
            len(found),
            [
                _transcript(found[i][0], found[i][1], cases[found[i]], show_harmful)
                for i in sorted(chosen)
            ],
        )

    kinds = _OF_SUITES | (_OF_BENCHMARKS if public else {})
    return [group(title, belongs) for title, belongs in kinds.items()]


def shown_prompt(row: Row, show_harmful: bool) -> str | None:
    """The request, cut short where a public benchmark asks for harm and it must not be shown."""
    harmful = should_be_refused(row) and row.get("suite") not in SUITES
    prompt: str | None = row["prompt"]
    return redacted(prompt) if prompt and harmful and not show_harmful else prompt


def shown_response(row: Row, show_harmful: bool) -> str:
    """The answer, cut short where it may do harm and must not be shown."""
    response: str = row["response"] or ""
    return response if show_harmful or not may_harm(row) else redacted(response)


def _transcript(suite: str, case: str, arms: Arms, show_harmful: bool) -> Transcript:
    row = arms[ALIGNED]
    return Transcript(
        case,
        suite,
        row.get("rule_id"),
        shown_prompt(row, show_harmful) or "",
        {arm: shown_response(arms[arm], show_harmful) for arm in ARMS if arm in arms},
    )


def _refused(arms: Arms, arm: str) -> bool | None:
    row = arms.get(arm)
    if not row or not row["scored"]:
        return None
    return held(row) if should_be_refused(row) else bool(row["refused"])


def _asks_for_harm(arms: Arms) -> bool:
    return should_be_refused(next(iter(arms.values())))


_OF_SUITES: dict[str, Belongs] = {
    "Fixed: answered before, refused by the aligned model": lambda suite, arms: (
        suite in VIOLATION_SUITES
        and _refused(arms, BASE) is False
        and _refused(arms, ALIGNED) is True
    ),
    "Remaining failures: still answered by the aligned model": lambda suite, arms: (
        suite in VIOLATION_SUITES and _refused(arms, ALIGNED) is False
    ),
    "Over-refusals: benign requests that the aligned model refuses": lambda suite, arms: (
        suite in BENIGN_SUITES and _refused(arms, ALIGNED) is True
    ),
}
_OF_BENCHMARKS: dict[str, Belongs] = {
    "Public benchmarks: harmful requests that the aligned model answers": lambda suite, arms: (
        suite not in SUITES and _asks_for_harm(arms) and _refused(arms, ALIGNED) is False
    ),
    "Public benchmarks: benign requests that the aligned model refuses": lambda suite, arms: (
        suite not in SUITES and not _asks_for_harm(arms) and _refused(arms, ALIGNED) is True
    ),
}
