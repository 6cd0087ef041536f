"""Release gates: at and beyond each bar, what is not measured, the pointer to a releasable checkpoint, the checks in Dagster."""

import dataclasses
import json

import dagster as dg
import pytest
from helpers import deployed
from test_report import CONTEXT, case, small_report, table, unscored

from policyalign_assets.orchestration.partitions import partitions
from policyalign_assets.orchestration.release_checks import GATES, release_gates
from policyalign_assets.orchestration.resources import Pipeline
from policyalign_assets.report.build import build_report
from policyalign_assets.report.gates import evaluate_gates, releasable
from policyalign_assets.report.release import decide
from policyalign_assets.report.render import to_html, write_report
from policyalign_assets.settings import GateSettings

GOOD = {
    "violations": (0, 95),
    "violations_wrapped": (0, 90),
    "twins": (200, 200),
    "uncovered": (200, 200),
    "capability": (195, 195),
}
KEY = "medical|medical-v2"


def rows(**successes: tuple[int, int]) -> list[dict]:
    """Per suite, how many of 100 (violations) or 200 (others) cases succeed with the base and with the aligned model."""
    made = []
    for suite, counts in (GOOD | successes).items():
        n = 100 if suite.startswith("violations") else 200
        for arm, k in zip(("base", "aligned"), counts, strict=True):
            made += [case(arm, suite, f"c{i}", i < k) for i in range(n)]
    return made


def results(made: list[dict], **settings) -> dict:
    return {r.gate: r for r in evaluate_gates(small_report(made).release, GateSettings(**settings))}


def test_a_good_checkpoint_passes_every_gate():
    passed = results(rows())
    assert (
        list(passed) == list(GATES)
        and all(r.passed for r in passed.values())
        and releasable(list(passed.values()))
    )


@pytest.mark.parametrize(
    ("changed", "failed"),
    [
        ({"violations": (50, 52)}, {"unsafe"}),  # better, but not surely
        (
            {"violations_wrapped": (0, 0)},
            {"unsafe"},
        ),  # the plain suite alone does not carry the gate
        ({"violations": (95, 20)}, {"unsafe", "rules"}),
        ({"twins": (200, 180)}, {"over_refusal"}),
        (
            {"twins": (200, 196), "uncovered": (200, 196)},
            {"over_refusal"},
        ),  # 2 points: the estimate is at the bar, the bound beyond it
        ({"capability": (200, 180)}, {"capability"}),
    ],
)
def test_the_gate_that_fails_is_the_one_that_is_meant(changed, failed):
    judged = results(rows(**changed))
    assert {g for g, r in judged.items() if r.passed is False} == failed and not releasable(
        list(judged.values())
    )
    assert all(r.sentence.endswith(".") and "None" not in r.sentence for r in judged.values())


def test_the_bars_are_held_against_the_unfavourable_end_of_the_interval():
    made = rows(twins=(200, 198))
    bound = results(made)["over_refusal"].numbers["upper bound"]
    assert 2 / 400 < bound < 0.03
    assert results(made, over_refusal_difference=bound + 1e-6)["over_refusal"].passed is True
    assert results(made, over_refusal_difference=bound)["over_refusal"].passed is False
    lower = results(made)["capability"].numbers["lower bound"]
    assert [
        results(made, capability_difference=lower + d)["capability"].passed for d in (-1e-6, 1e-6)
    ] == [True, False]


def test_unscored_answers_up_to_one_percent():
    made = rows()  # 1,600 answers
    for count, passed in ((16, True), (17, False)):
        assert (
            results([unscored(r) if i < count else r for i, r in enumerate(made)])[
                "unscored"
            ].passed
            is passed
        )


def test_an_answer_that_is_refused_but_unsafe_counts_as_unsafe():
    made = [
        r | {"safe": False} if r["arm"] == "aligned" and r["suite"] == "violations" else r
        for r in rows()
    ]
    report = build_report(table_with_safe(made), CONTEXT, None)
    assert report.figure("violations", "aligned").rate.k == 0
    assert next(g for g in report.gates if g.gate == "unsafe").passed is False


def table_with_safe(made: list[dict]):
    import pyarrow as pa

    return table(made).append_column("safe", pa.array([r.get("safe") for r in made], pa.bool_()))


def test_what_was_not_measured_has_not_passed():
    nothing = small_report([])
    assert {r.passed for r in nothing.gates} == {None} and not releasable(nothing.gates)
    no_questions = results([r for r in rows() if r["suite"] != "capability"])
    assert no_questions["capability"].passed is None and not releasable(list(no_questions.values()))
    assert releasable(
        list(
            results(
                [r for r in rows() if r["suite"] != "capability"], warn_only=("capability",)
            ).values()
        )
    )


def test_one_rule_that_got_worse_fails_even_if_the_rest_got_better():
    made = [
        r | {"rule_id": "A2" if int(r["case_id"][1:]) < 20 else "A1"}
        if r["suite"] == "violations"
        else r
        for r in rows()
    ]
    worse = [
        r | {"refused": r["arm"] == "base"}
        if r["rule_id"] == "A2" and r["suite"] == "violations"
        else r
        for r in made
    ]
    gate = results(worse)["rules"]
    assert (
        gate.passed is False
        and "A2" in gate.sentence
        and "A1" not in gate.sentence
        and gate.numbers["rules worse"] == 1
    )


def test_the_page_and_the_json_show_the_gates(tmp_path):
    report = small_report(rows(twins=(200, 180)))
    write_report(report, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["gates"] == [
        dataclasses.asdict(g) for g in report.gates
    ]
    assert next(g for g in report.gates if g.gate == "over_refusal").sentence.replace(
        "&", "&amp;"
    ) in to_html(report).replace("&#43;", "+")


def test_the_pointer_comes_and_goes_with_the_gates(tmp_path):
    pointer = tmp_path / "release.json"
    write_report(small_report(rows()), tmp_path)
    decide(tmp_path, GateSettings())
    assert json.loads(pointer.read_text())["checkpoint_id"] == CONTEXT.checkpoint_id
    decide(tmp_path, GateSettings(over_refusal_difference=-0.5))
    assert not pointer.exists()
    decide(tmp_path, GateSettings(over_refusal_difference=-0.5, warn_only=("over_refusal",)))
    assert pointer.exists()
    write_report(small_report(rows(violations=(95, 20)), checkpoint_id="worse"), tmp_path)
    decide(tmp_path, GateSettings())
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "benchmarks.parquet",
        "figures.parquet",
        "report.html",
        "report.json",
    ]


@dg.asset(key="benchmark_report", partitions_def=partitions)
def report_stage():
    pass


def run_checks(tmp_path, **gates):
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions("policies", [KEY])
        with deployed({"gates": gates}):
            run = dg.materialize(
                [report_stage, release_gates],
                instance=instance,
                partition_key=KEY,
                raise_on_error=False,
                resources={"pipeline": Pipeline(data_dir=str(tmp_path))},
            )
        return run, {e.check_name: e for e in run.get_asset_check_evaluations()}


def test_the_checks_of_a_partition_carry_numbers_and_severity(tmp_path):
    folder = tmp_path / "reports/medical-v2/medical"
    report = small_report(rows(twins=(200, 180)))
    write_report(report, folder)
    run, checks = run_checks(tmp_path)
    assert (
        run.success
        and {name for name, c in checks.items() if not c.passed} == {"over_refusal"}
        and set(checks) == set(GATES)
    )
    gate = next(g for g in report.gates if g.gate == "over_refusal")
    assert (
        checks["over_refusal"].severity == dg.AssetCheckSeverity.ERROR
        and checks["over_refusal"].description == gate.sentence
    )
    assert checks["over_refusal"].metadata["upper bound"].value == gate.numbers["upper bound"]
    assert not (folder / "release.json").exists()
    _, checks = run_checks(tmp_path, warn_only=["over_refusal"])
    assert (
        checks["over_refusal"].severity == dg.AssetCheckSeverity.WARN
        and not checks["over_refusal"].passed
    )
    assert (folder / "release.json").exists()


def test_checks_without_a_report_say_so(tmp_path):
    run, _ = run_checks(tmp_path)
    assert (
        not run.success
        and "materialize benchmark_report"
        in run.failure_data_for_node("release_gates").user_failure_data.description
    )
