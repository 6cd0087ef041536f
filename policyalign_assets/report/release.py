"""`release.json` beside a report: it is there exactly while the checkpoint of that report has passed all blocking gates."""

from __future__ import annotations

import json
from dataclasses import asdict

from pydantic import TypeAdapter

from policyalign_assets.files import Location, write_whole
from policyalign_assets.report.gates import evaluate_gates, releasable
from policyalign_assets.report.model import GateResult, ReleaseFigures
from policyalign_assets.settings import GateSettings

NAMED = (
    "checkpoint_id",
    "policy_id",
    "domain",
    "policy_hash",
    "model_id",
    "model_revision",
    "judge",
    "created_at",
)


def decide(folder: Location, settings: GateSettings) -> list[GateResult]:
    """Holds the report in `folder` against the bars, and writes or removes its `release.json`.

    Raises FileNotFoundError where there is no report; a pointer without its report is removed all the same.
    """
    pointer = folder / "release.json"
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        pointer.unlink(missing_ok=True)
        raise
    results = evaluate_gates(
        TypeAdapter(ReleaseFigures).validate_python(report["release"]), settings
    )
    if not releasable(results):
        pointer.unlink(missing_ok=True)
        return results
    header = report["header"]
    said = {name: header[name] for name in NAMED}
    text = (
        json.dumps(said | {"gates": [asdict(r) for r in results]}, indent=1, allow_nan=False) + "\n"
    )
    write_whole(pointer, text.encode())
    return results
