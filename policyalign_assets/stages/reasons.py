"""Says in words why a stage is out of date, from what it was made with and what it should be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

LONGEST = 200  # characters: it becomes a tag of a run


def changes(stage: str, made: Mapping[str, Any] | None, wanted: Mapping[str, Any] | None) -> str:
    """What differs between two recipes of `stage` (see `fingerprints.recipe`).

    `made` is None where the stage was never made, or before recipes were recorded.
    """
    if made is None or wanted is None:
        return f"{stage} was never made" if made is None else f"{stage} is out of date"
    found = list(_differences(made, wanted))
    if not found:
        return "the policy's text changed" if stage == "policy_document" else "its inputs changed"
    text = f"{stage}: {'; '.join(found)}"
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _differences(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    for section, values in wanted.get("settings", {}).items():
        old = made.get("settings", {}).get(section, {})
        for name, value in values.items():
            if old.get(name) != value:
                yield f"{section}.{name} {old.get(name)} -> {value}"
    for label, version in wanted.get("code", {}).items():
        if made.get("code", {}).get(label) != version:
            yield f"code of {label} changed"
    for label, content in wanted.get("shaped by", {}).items():
        if made.get("shaped by", {}).get(label) != content:
            yield f"{label} changed"
