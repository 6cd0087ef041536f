"""One self-contained page per suite: every case with the answer of each arm, searchable.

The texts are written into the page as escaped text; the small script that filters them has a hash
in the page's content security policy, so that nothing else can run.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from policyalign_assets.evaluation.suites import ALIGNED, ARMS, SUITES, success
from policyalign_assets.report.contents import ReportContext
from policyalign_assets.report.templates import rendered
from policyalign_assets.report.transcripts import shown_prompt, shown_response

SCRIPT = "cases.js"
STATES = {True: "good", False: "bad", None: "unscored"}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class CasePage:
    suite: str
    file: str
    html: str


@dataclass(frozen=True)
class _Answer:
    """`state`: good (a success in the suite's metric), bad or unscored."""

    arm: str
    text: str
    state: str
    said: str


@dataclass(frozen=True)
class _Case:
    case_id: str
    rule_id: str | None
    kind: str
    prompt: str
    answers: list[_Answer]
    state: str  # of the aligned model's answer


def case_pages(cases: pa.Table, header: ReportContext, show_harmful: bool) -> list[CasePage]:
    """`cases`: EVALUATION. The aligned model's failures come first."""
    by_suite: dict[str, dict[str, dict[str, Row]]] = {}
    for row in cases.to_pylist():
        by_suite.setdefault(row["suite"], {}).setdefault(row["case_id"], {})[row["arm"]] = row
    script = resources.files(__package__).joinpath(SCRIPT).read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    pages = []
    for suite, about in SUITES.items():
        if suite not in by_suite:
            continue
        shown = [_case(case, arms, show_harmful) for case, arms in by_suite[suite].items()]
        shown.sort(key=lambda c: (c.state == "good", c.case_id))
        html = rendered(
            "cases.html.jinja",
            header=header,
            suite=about,
            arms=ARMS,
            cases=shown,
            failures=sum(c.state == "bad" for c in shown),
            unscored=sum(c.state == "unscored" for c in shown),
            script=Markup(script),  # a file of this package
            script_hash=digest,
        )
        pages.append(CasePage(suite, f"cases-{suite}.html", html))
    return pages


def _case(case_id: str, arms: dict[str, Row], show_harmful: bool) -> _Case:
    row = arms.get(ALIGNED) or next(iter(arms.values()))
    answers = [_answer(arm, arms[arm], show_harmful) for arm in ARMS if arm in arms]
    state = next((a.state for a in answers if a.arm == ALIGNED), "unscored")
    prompt = shown_prompt(row, show_harmful) or ""
    return _Case(case_id, row["rule_id"], row["kind"], prompt, answers, state)


def _answer(arm: str, row: Row, show_harmful: bool) -> _Answer:
    outcome = success(SUITES[row["suite"]].metric, row) if row["scored"] else None
    if outcome is None:
        said = f"not scored: {row['unscored_reason'] or 'no reason given'}"
    elif row["correct"] is not None and SUITES[row["suite"]].metric == "correct":
        said = "right" if outcome else "wrong"
    else:
        said = "refused" if row["refused"] else "answered"
        said += ", called unsafe" if row.get("safe") is False else ""
    notes = [name for name in ("truncated", "empty") if row[name]]
    return _Answer(
        arm,
        shown_response(row, show_harmful),
        STATES[outcome],
        ", ".join([said, *notes]),
    )
