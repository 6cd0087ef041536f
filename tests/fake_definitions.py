"""The real definitions with one resource swapped: a launcher that makes small results at once and
needs no model. The sensor of the leaderboard is left out: each report would start one more run.

Files in the folder $FAKE_CONTROL steer it: `hold-<stage>` makes the stage wait until the file is
gone, `break-<stage>` makes it fail, `plots` makes reports with a plot, `stubborn-<stage>` makes it
start processes that ignore every polite signal and note their ids in `pids`.
"""

import json
import os
import sys
import textwrap
import time
from pathlib import Path

import dagster as dg
import pyarrow as pa
from quick_dagster import fork_runs, keep_what_stays_the_same

from policyalign_assets import definitions
from policyalign_assets.orchestration.launchers import Launcher, run_guarded
from policyalign_assets.records import Checkpoint, ReportRecord
from policyalign_assets.stages.facts import image, link
from policyalign_assets.stages.interface import StageResult
from policyalign_assets.synthesis.yields import RuleYield
from policyalign_assets.tables import (
    FILTERED,
    GENERATIONS,
    INSTRUCTIONS,
    JUDGEMENTS,
    SENSITIVITY,
    YIELDS,
)

keep_what_stays_the_same()
if "grpc" in sys.argv:  # a code server of Dagster, and no test that only reads a name from here
    fork_runs("fake_definitions")

# a training launcher: it starts a worker in a session of its own, and both ignore every polite
# signal
STUBBORN = textwrap.dedent("""
    import os, signal, subprocess, sys, time
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if len(sys.argv) == 2:
        subprocess.Popen([sys.executable, __file__, sys.argv[1], "worker"], start_new_session=True)
    with open(sys.argv[1], "a") as pids:
        pids.write(f"{os.getpid()}\\n")
    time.sleep(300)
""")

REPORT = "http://localhost:3001/alpha/medical/c-0123/report.html"


class Fake(Launcher):
    def make(self, context, pipeline, stage, inputs) -> StageResult:
        control = Path(os.environ["FAKE_CONTROL"])
        while (control / f"hold-{stage}").exists():
            time.sleep(0.1)
        if (control / f"break-{stage}").exists():
            raise dg.Failure("broken on purpose", allow_retries=False)
        if (control / f"stubborn-{stage}").exists():
            (control / "stubborn.py").write_text(STUBBORN)
            run_guarded(
                [sys.executable, str(control / "stubborn.py"), str(control / "pids")],
                1.0,
                dict(os.environ),
            )
        return StageResult(
            globals()[f"_{stage}"](**inputs),
            stage,
            _facts(control) if stage == "benchmark_report" else {},
        )

    def make_here(self, context, pipeline, stage, inputs) -> StageResult:
        fake = f"_{stage}" in globals()
        return (self.make if fake else super().make_here)(context, pipeline, stage, inputs)


def _violating_instructions(policy_document) -> pa.Table:
    rows = [
        {
            "instruction_id": r.rule_id,
            "rule_id": r.rule_id,
            "kind": "violating",
            "text": r.text,
            "policy_hash": policy_document.content_hash,
        }
        for r in policy_document.rules
    ]
    yields = {row["rule_id"]: vars(RuleYield(wanted=1, violating=1, drafted=1)) for row in rows}
    return _table(rows, INSTRUCTIONS).replace_schema_metadata(
        {YIELDS: json.dumps({"rules": yields})}
    )


def _sensitivity_scores(policy_document, violating_instructions) -> pa.Table:
    return _table(
        [row | {"reverse_kl": 1.0, "flip": True} for row in violating_instructions.to_pylist()],
        SENSITIVITY,
    )


def _filtered_instructions(violating_instructions, sensitivity_scores) -> pa.Table:
    return _table(
        [row | {"selected": True} for row in violating_instructions.to_pylist()], FILTERED
    )


def _distilled_checkpoint(policy_document, filtered_instructions) -> Checkpoint:
    return Checkpoint(
        "c",
        "checkpoints/c",
        "fake",
        "r1",
        {"policy_hash": filtered_instructions["policy_hash"][0].as_py()},
    )


def _generations(policy_document, violating_instructions, distilled_checkpoint) -> pa.Table:
    return _table([{"case_id": "c", "policy_hash": policy_document.content_hash}], GENERATIONS)


def _judgements(policy_document, generations) -> pa.Table:
    return _table(generations.to_pylist(), JUDGEMENTS)


def _benchmark_report(policy_document, distilled_checkpoint, **tables) -> ReportRecord:
    return ReportRecord("reports/fake", distilled_checkpoint.checkpoint_id, {})


def _deployed_checkpoint(policy_document, filtered_instructions) -> Checkpoint:
    return Checkpoint("d", "checkpoints/d", "fake", "r1", {})


def _deployment_report(deployed_checkpoint, **tables) -> ReportRecord:
    return ReportRecord("deployments/fake", deployed_checkpoint.checkpoint_id, {})


def _facts(control: Path) -> dict:
    """A link, and a plot where somebody looks: matplotlib takes seconds to import."""
    plots = {"main plot": image(_plot(), "the main plot")} if (control / "plots").exists() else {}
    return plots | {"report": link(REPORT)}


def _plot() -> bytes:
    from policyalign_assets.report.plots import training_plot

    return training_plot(
        {"step": [1, 2], "loss": [1.0, 0.5], "top_k_mass": [0.9, 1.0], "mean_length": [10.0, 12.0]}
    )


def _table(rows: list[dict], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(
        [{f.name: row.get(f.name) for f in schema} for row in rows], schema=schema
    )


defs = dg.Definitions(
    **{
        **{
            name: getattr(definitions.defs, name)
            for name in ("assets", "jobs", "schedules", "executor")
        },
        "sensors": [s for s in definitions.defs.sensors or () if s.name != "leaderboard_refresh"],
        "resources": {**definitions.defs.resources, "launcher": Fake()},
    }
)
