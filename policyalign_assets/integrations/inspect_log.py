"""A report's judged answers as inspect-ai logs.

    python -m policyalign_assets.integrations.inspect_log 'medical|general-conduct' logs/

`inspect view --log-dir logs/` then shows every request, answer and verdict, in one log per suite
or benchmark and arm. The shares are those of the report. Logs hold harmful text in full: protect
them like the cases.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from policyalign_assets.evaluation.suites import ARMS, BENCHMARK_METRICS, SUITES, success
from policyalign_assets.report.folders import current_report
from policyalign_assets.statistics import wilson

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog

Row = dict[str, Any]
NO_TEXT = "(the benchmark's authors ask that no plain text of it be passed on)"
_FINDINGS = (
    "refused",
    "safe",
    "violated_rules",
    "harm",
    "helpful_alternative",
    "judge_label",
    "judge_id",
    "judge_revision",
    "judge_template",
    "rule_id",
    "category",
    "truncated",
    "empty",
)


def write_logs(folder: Path, out: Path) -> list[Path]:
    """Writes one .eval file per suite or benchmark part and arm, from the report in `folder`.

    Raises FileNotFoundError where there is no report.
    """
    from inspect_ai.log import write_eval_log

    header = json.loads((folder / "report.json").read_text(encoding="utf-8"))["header"]
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for task, arm, metric, rows in _parts(folder):
        path = out / f"{header['policy_id']}-{header['domain']}-{task}-{arm}.eval"
        write_eval_log(_log(task, arm, metric, rows, header), path)
        written.append(path)
    return written


def _parts(folder: Path) -> Iterator[tuple[str, str, str, list[Row]]]:
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in pq.read_table(folder / "cases.parquet").to_pylist():
        groups.setdefault((row["suite"], row["arm"], SUITES[row["suite"]].metric), []).append(row)
    benchmarks = folder / "benchmark_cases.parquet"
    for row in pq.read_table(benchmarks).to_pylist() if benchmarks.exists() else ():
        groups.setdefault(
            (f"{row['benchmark']}-{row['kind']}", row["arm"], BENCHMARK_METRICS[row["kind"]]), []
        ).append(row)
    # Further training runs (`distillation.seeds`) have other weights than the report's checkpoint.
    return ((*key, rows) for key, rows in groups.items() if key[1] in ARMS)


def _log(task: str, arm: str, metric: str, rows: list[Row], header: dict[str, Any]) -> EvalLog:
    from inspect_ai.log import (
        EvalConfig,
        EvalDataset,
        EvalLog,
        EvalMetric,
        EvalResults,
        EvalSample,
        EvalScore,
        EvalSpec,
    )
    from inspect_ai.model import ChatMessageSystem, ChatMessageUser, ModelOutput
    from inspect_ai.scorer import Score

    model = f"{header['model_id']}" + (
        f"+{header['checkpoint_id']}" if arm.startswith("aligned") else ""
    )
    system = [ChatMessageSystem(content=header["prompt_text"])] if arm.endswith("_policy") else []

    def score(row: Row) -> Score:
        said = {name: row[name] for name in _FINDINGS if row.get(name) is not None}
        if not row["scored"]:
            return Score.unscored(
                reason=row["unscored_reason"], explanation=row["unscored_reason"], metadata=said
            )
        return Score(value=int(success(metric, row)), answer=row["response"], metadata=said)

    samples = [
        EvalSample(
            id=row["case_id"],
            epoch=1,
            input=[*system, ChatMessageUser(content=row["prompt"] or NO_TEXT)],
            target=row.get("reference") or ("" if metric == "correct" else metric),
            output=ModelOutput.from_content(
                model, row["response"] or "", "max_tokens" if row["truncated"] else "stop"
            ),
            scores={metric: score(row)},
        )
        for row in rows
    ]
    scored = [success(metric, row) for row in rows if row["scored"]]
    share = wilson(sum(scored), len(scored))
    metrics = {
        name: EvalMetric(name=name, value=value)
        for name, value in (("share", share.estimate), ("low", share.low), ("high", share.high))
        if value is not None
    }
    return EvalLog(
        status="success",
        eval=EvalSpec(
            created=header["created_at"],
            task=task,
            dataset=EvalDataset(name=task, samples=len(rows)),
            model=model,
            config=EvalConfig(),
            metadata={
                "arm": arm,
                "policy": header["policy_id"],
                "domain": header["domain"],
                "policy_hash": header["policy_hash"],
                "judge": header["judge"],
            },
        ),
        results=EvalResults(
            total_samples=len(rows),
            completed_samples=len(rows),
            scores=[
                EvalScore(
                    name=metric,
                    scorer=metric,
                    scored_samples=len(scored),
                    unscored_samples=len(rows) - len(scored),
                    metrics=metrics,
                )
            ],
        ),
        samples=samples,
    )


def main() -> None:
    if len(sys.argv) != 3 or "|" not in sys.argv[1]:
        sys.exit(
            "usage: python -m policyalign_assets.integrations.inspect_log "
            "'<domain>|<policy>' <folder for the logs>"
        )
    domain, _, policy = sys.argv[1].partition("|")
    try:
        data = Path(os.environ.get("POLICYALIGN_DATA_DIR", "data"))
        written = write_logs(Path(str(current_report(data, domain, policy))), Path(sys.argv[2]))
    except ModuleNotFoundError:
        sys.exit("inspect-ai is not installed. Fix: pip install 'policyalign-assets[eval]'")
    except FileNotFoundError as error:
        sys.exit(
            f"No report for {sys.argv[1]!r}: {error.filename} does not exist. "
            "Fix: materialize benchmark_report for this partition."
        )
    print(f"{len(written)} logs. Look at them with: inspect view --log-dir {sys.argv[2]}")


if __name__ == "__main__":
    main()
