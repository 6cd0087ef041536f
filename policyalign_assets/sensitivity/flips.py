"""Whether the policy turns an answer into a refusal, by the configured judge.

The verdicts come after all scores, so that a judge in this process is opened when the judged model
is freed, and so that another judge needs no new scores.
"""

from __future__ import annotations

import pyarrow as pa

from policyalign_assets.judges.verdict import Dialogue, Judge
from policyalign_assets.tables import SENSITIVITY


def with_flips(scores: pa.Table, judge: Judge) -> pa.Table:
    """The SENSITIVITY table `scores` with `student_refused`, `teacher_refused` and `flip`.

    Null where the judge cannot say; `flip` too, if it cannot say for one of both responses.
    """
    rows = scores.select(["text", "student_response", "teacher_response"]).to_pylist()
    asked = [Dialogue(row["text"], row["student_response"]) for row in rows]
    asked += [Dialogue(row["text"], row["teacher_response"]) for row in rows]
    refused = [verdict.refused for verdict in judge.judge_all(asked)]
    students, teachers = refused[: len(rows)], refused[len(rows) :]
    columns = {
        "student_refused": students,
        "teacher_refused": teachers,
        "flip": [
            None if s is None or t is None else t and not s
            for s, t in zip(students, teachers, strict=True)
        ],
    }
    for name, values in columns.items():
        at = scores.schema.get_field_index(name)
        scores = scores.set_column(at, SENSITIVITY.field(name), pa.array(values, pa.bool_()))
    return scores
