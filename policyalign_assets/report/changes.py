"""What differs from the partition's last report, in sentences."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from policyalign_assets.evaluation.suites import ALIGNED, SUITES
from policyalign_assets.files import Location
from policyalign_assets.report.contents import AlignmentReport
from policyalign_assets.report.formatting import moment, percent

FIRST = "This is the first report of this policy in this domain."
SUITES_SHOWN = ("violations", "violations_wrapped", "twins", "uncovered", "capability")
NAMES = {
    "policy_hash": "version of the policy",
    "model_id": "model",
    "model_revision": "revision of the model",
    "checkpoint_id": "checkpoint",
    "judge": "judge",
    "code_version": "version of the code",
}


def read_report(folder: Location | None) -> dict[str, Any] | None:
    """The JSON of a report, for display alone; None where it is missing or cannot be read."""
    try:
        report = (
            json.loads((folder / "report.json").read_text(encoding="utf-8")) if folder else None
        )
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) and isinstance(report.get("header"), dict) else None


def changes_since(
    last: Mapping[str, Any] | None, report: AlignmentReport, what: str = "report"
) -> list[str]:
    """`last`: the JSON of an earlier report, as `read_report` gives it. `what`: its name."""
    if last is None:
        return [FIRST]
    header, found = report.header, []
    before = last["header"]
    found.append(
        f"Compared with the {what} of {moment(str(before.get('created_at')))}, "
        f"whose verdict was: {_line(last)}."
    )
    found += _rules(before.get("rules") or [], header.rules)
    for name, label in NAMES.items():
        old, new = before.get(name), getattr(header, name)
        if old != new:
            found.append(f"Another {label}: {_short(old)} before, {_short(new)} now.")
    settings = _changed_settings(before.get("settings") or {}, header.settings)
    if settings:
        found.append(f"Settings changed: {', '.join(settings)}.")
    found += _figures(last, report)
    if len(found) == 1:
        found.append("Nothing else changed.")
    return found


def _line(report: Mapping[str, Any]) -> str:
    verdict = report.get("verdict")
    line = verdict.get("line") if isinstance(verdict, dict) else None
    return str(line or "not known").rstrip(".")


def _rules(before: list[Mapping[str, Any]], now: list[dict[str, Any]]) -> list[str]:
    old = {str(r.get("rule_id")): str(r.get("text")) for r in before}
    new = {str(r["rule_id"]): str(r["text"]) for r in now}
    kinds = {
        "Rules added": [rule for rule in new if rule not in old],
        "Rules removed": [rule for rule in old if rule not in new],
        "Rules reworded": [rule for rule in new if rule in old and old[rule] != new[rule]],
    }
    return [f"{kind}: {', '.join(rules)}." for kind, rules in kinds.items() if rules]


def _changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
        return {
            f"{section}.{name}": value
            for section, values in settings.items()
            if isinstance(values, Mapping)
            for name, value in values.items()
        }

    old, new = flat(before), flat(now)
    return [
        f"{name} {old.get(name)!s} → {new.get(name)!s}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _figures(last: Mapping[str, Any], report: AlignmentReport) -> list[str]:
    old = {
        f.get("suite"): f.get("rate", {}).get("estimate")
        for f in last.get("figures", ())
        if isinstance(f, dict) and f.get("arm") == ALIGNED
    }
    found = []
    for suite in SUITES_SHOWN:
        figure = report.figure(suite, ALIGNED)
        before, now = old.get(suite), figure.rate.estimate if figure else None
        if before != now:
            label = f"{SUITES[suite].label}, {SUITES[suite].metric}"
            found.append(f"{label}: {percent(before)} before, {percent(now)} now.")
    return found


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) > 40 and " " not in text else text
