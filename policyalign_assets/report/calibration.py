"""How well the judge of a report agrees with labels: found on file, or measured here and now.

* The bundled model's own judge is measured each time, on answers of that model which a reader
  labelled (`judge_labels_bundled.csv`). A change of the judge therefore changes the figure.
* Any other judge needs a record: the JSON that `policyalign_assets.evaluation.calibrate --json`
  writes, in `<data>/calibrations/` or among those that are shipped with the judges.

A record counts only for the same judge, revision and prompt template.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from policyalign_assets.evaluation.calibrate import Agreement, agreement
from policyalign_assets.files import Location
from policyalign_assets.judges.phrases import judge_for
from policyalign_assets.judges.verdict import Dialogue, Judge
from policyalign_assets.report.chain import JudgedAnswers
from policyalign_assets.report.contents import JudgeAgreement
from policyalign_assets.settings import BUNDLED
from policyalign_assets.statistics import wilson

LABELS = "judge_labels_bundled.csv"
QUESTIONS = ("unsafe", "refused")  # the first that a record answers
SHIPPED = "calibrations"  # a folder of the package `judges`


def find_calibration(answers: JudgedAnswers, data: Location) -> JudgeAgreement | None:
    """The calibration of the judge whose verdicts these are; None where none is on file."""
    rows = answers.heldout.select(["judge_id", "judge_revision", "judge_template"]).to_pylist()
    judges = {tuple(row.values()) for row in rows if row["judge_id"]}
    if len(judges) != 1:
        return None
    ((judge_id, revision, template),) = judges
    if answers.asked.model_id == BUNDLED and judge_id == judge_for(BUNDLED).id:
        return measured_on_labels(judge_for(BUNDLED))
    wanted = {"judge": judge_id, "revision": revision, "template": template}
    for record in _records(data):
        if all(record.get(name) == value for name, value in wanted.items()):
            return _from_record(record)
    return None


def measured_on_labels(judge: Judge) -> JudgeAgreement:
    """`judge` on the shipped answers of the bundled model.

    A labelled refusal that the judge does not find, or cannot score, counts as missed. Answers
    that the reader could not label are left out.
    """
    text = resources.files(__package__).joinpath(LABELS).read_text(encoding="utf-8")
    rows = [row for row in csv.DictReader(text.splitlines()) if row["refused"]]
    verdicts = judge.judge_all([Dialogue(row["prompt"], row["response"]) for row in rows])
    pairs = [(row["refused"] == "yes", v.refused) for row, v in zip(rows, verdicts, strict=True)]
    # an unscored answer disagrees with its label, whatever that is
    found = agreement("refused", [(label, not label if v is None else v) for label, v in pairs])
    missed = {}
    for group in dict.fromkeys(row["group"] for row in rows):
        refusals = [
            said is not True
            for (label, said), row in zip(pairs, rows, strict=True)
            if label and row["group"] == group
        ]
        missed[group] = wilson(sum(refusals), len(refusals))
    labels = "answers of the bundled model, labelled by one reader"
    return _summary(judge.id, found, labels, missed)


def _from_record(record: Mapping[str, Any]) -> JudgeAgreement | None:
    """The first question of QUESTIONS that the record answers."""
    try:
        agreements = [Agreement(**a) for a in record["agreements"]]
        groups = {
            str(name): wilson(int(g["missed"]), int(g["yes"]))
            for name, g in (record.get("groups") or {}).items()
        }
    except (KeyError, TypeError, ValueError):
        return None
    for question in QUESTIONS:
        for found in agreements:
            if found.question == question and found.kappa is not None:
                labels = str(record.get("labels") or "labelled answers")
                return _summary(str(record["judge"]), found, labels, groups)
    return None


def _summary(
    judge: str, found: Agreement, labels: str, missed: Mapping[str, Any]
) -> JudgeAgreement:
    return JudgeAgreement(
        judge, found.question, labels, found.n, found.kappa, _kappa_low(found), dict(missed)
    )


def _kappa_low(found: Agreement) -> float | None:
    """The lower end of kappa's interval.

    The usual interval has no width where all labels agree. Wilson's lower bound of the share of
    agreement, put into kappa's formula, keeps the uncertainty of a finite number of labels.
    """
    if found.kappa is None or found.low is None or not found.n:
        return None
    agreed = found.n - found.false_negatives - found.false_positives
    said_yes = found.people_yes - found.false_negatives + found.false_positives
    people, judge = found.people_yes / found.n, said_yes / found.n
    by_chance = people * judge + (1 - people) * (1 - judge)
    low = wilson(agreed, found.n).low
    if low is None or by_chance == 1:
        return None
    return min(found.low, (low - by_chance) / (1 - by_chance))


def _records(data: Location) -> Iterator[Mapping[str, Any]]:
    own = data / "calibrations"
    files: list[Any] = sorted(own.glob("*.json"), key=str) if own.is_dir() else []
    shipped = resources.files("policyalign_assets.judges").joinpath(SHIPPED)
    if shipped.is_dir():
        files += [f for f in shipped.iterdir() if f.name.endswith(".json")]
    for file in files:
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # not a record: the judge then counts as not measured
        if isinstance(record, dict):
            yield record
