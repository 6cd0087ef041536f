"""The configured judge's verdict on every answer."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
from pydantic import TypeAdapter

from policyalign_assets.evaluation.judging import JudgementsInfo, judge_answers
from policyalign_assets.files import sha256_table
from policyalign_assets.judges.choose import described, make_correctness_judge, make_judge
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.stages.facts import markdown_table
from policyalign_assets.stages.interface import StageContext, StageResult
from policyalign_assets.tables import JUDGEMENTS_INFO


def make(
    context: StageContext, policy_document: PolicyDocument, generations: pa.Table
) -> StageResult:
    settings = context.settings
    judge = make_judge(settings.judge, settings.model.id, policy_document, context.report)
    context.report(f"judging {generations.num_rows} answers: {described(judge)}")
    table = judge_answers(
        generations, judge, make_correctness_judge(settings.judge, context.report)
    )
    judged = JudgementsInfo(
        sha256_table(generations), described(judge), settings.judge.model_dump(mode="json")
    )
    suites = [
        row["suite"] or row["benchmark"]
        for row in generations.select(["suite", "benchmark"]).to_pylist()
    ]
    counts: dict[tuple[str, str], Counter] = {}
    for suite, row in zip(suites, table.to_pylist(), strict=True):
        said = counts.setdefault((suite, row["arm"]), Counter())
        said["unscored"] += not row["scored"]
        for finding in ("refused", "safe", "correct"):
            said[finding] += bool(row[finding])
            said[f"{finding} or not"] += row[finding] is not None
    reasons = Counter(reason for reason in table["unscored_reason"].to_pylist() if reason)
    return StageResult(
        table.replace_schema_metadata(
            {JUDGEMENTS_INFO: TypeAdapter(JudgementsInfo).dump_json(judged)}
        ),
        sha256_table(table),
        {
            "dagster/partition_row_count": table.num_rows,
            "judge": judged.judge,
            "unscored answers": reasons.total(),
            "verdicts": markdown_table(
                ("suite or benchmark", "arm", "refused", "safe", "correct", "unscored"),
                [
                    (
                        *key,
                        *(
                            f"{said[f]} of {said[f'{f} or not']}"
                            if said[f"{f} or not"]
                            else "not asked"
                            for f in ("refused", "safe", "correct")
                        ),
                        said["unscored"],
                    )
                    for key, said in counts.items()
                ],
            ),
            "why unscored": markdown_table(("reason", "answers"), reasons.most_common())
            if reasons
            else "none",
        },
    )
