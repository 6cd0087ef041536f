"""The conformance suites: exactly the held-out requests, and never one that is trained on."""

import pyarrow as pa
import pytest
from helpers import ScriptedEngine
from test_grid import FULL, POLICY, good
from test_report import case, small_report

from policyalign_assets.evaluation.cases import TestCase, conformance_cases
from policyalign_assets.evaluation.held_out import held_out_cases
from policyalign_assets.policy import parse_policy
from policyalign_assets.report.summary import markdown_summary
from policyalign_assets.settings import load_settings
from policyalign_assets.synthesis.synthesize import synthesize
from policyalign_assets.tables import INSTRUCTIONS


@pytest.fixture(scope="module")
def synthesized() -> pa.Table:
    settings = FULL.model_copy(update={"heldout": 0.25})
    return synthesize(POLICY, ScriptedEngine(good), settings).table


@pytest.mark.slow
def test_every_held_out_request_is_a_case_but_for_duties(synthesized):
    held = {
        r["instruction_id"]: r
        for r in synthesized.to_pylist()
        if r["split"] == "heldout" and r["kind"] != "duty"
    }
    cases = conformance_cases(synthesized)
    assert {c.case_id for c in cases} == {f"conformance-{i}" for i in held} and len(held) > 20
    for c in cases:
        row = held[c.case_id.removeprefix("conformance-")]
        breaks = row["kind"] == "violating"
        assert (c.suite, c.prompt, c.kind) == (
            "conformance" if breaks else "conformance_benign",
            row["text"],
            row["kind"],
        )
        assert c.rule_id == (row["rule_id"] if breaks else None) and c.wrapped == (
            row["style"] is not None
        )
    assert {c.suite for c in cases} == {"conformance", "conformance_benign"} and any(
        c.wrapped for c in cases
    )


def test_a_text_that_breaks_one_rule_is_not_asked_as_benign_for_another():
    def row(n, rule, kind, text):
        return {
            "instruction_id": str(n),
            "rule_id": rule,
            "kind": kind,
            "text": text,
            "split": "heldout",
        }

    table = pa.Table.from_pylist(
        [
            row(1, "A1", "neighbour", "How do I  copy it?"),
            row(2, "B1", "violating", "How do I copy it?"),
            row(3, "B1", "twin", "How do I file it?") | {"split": "train"},
        ],
        schema=INSTRUCTIONS,
    )
    assert [(c.case_id, c.suite, c.rule_id) for c in conformance_cases(table)] == [
        ("conformance-2", "conformance", "B1")
    ]


@pytest.mark.slow
def test_tables_of_earlier_versions_hold_nothing_out(synthesized):
    assert conformance_cases(synthesized.drop_columns(["split", "style"])) == []


@pytest.mark.slow
def test_the_report_shows_them_under_their_own_name_and_says_who_wrote_them():
    rows = [
        case(arm, suite, f"{suite}{i}", arm == "aligned")
        for arm in ("base", "aligned")
        for i in range(3)
        for suite in ("violations", "conformance", "conformance_benign")
    ]
    report = small_report(rows)
    assert (
        report.figure("conformance", "aligned").rate.k == 3
        and report.figure("conformance", "base").rate.k == 0
    )
    assert "from the generator of the training requests" in markdown_summary(report)
    assert any(
        "Held-out requests of the training generator were checked by nobody" in sentence
        for sentence in report.limits
    )
    # no gate reads these suites
    assert report.gate_figures.over_refusal.change.n == 0
    assert {u.suite for u in report.gate_figures.unscored} <= {"violations"}
    assert not any("training generator" in s for s in small_report(rows[:1]).limits)


def test_a_new_rule_leaves_the_cases_of_the_others_as_they_were(tmp_path):
    """Their answers are paired with those of the last release, and those of the base are kept."""

    def cases_of(*actions: str) -> list[TestCase]:
        (tmp_path / "desk").mkdir(exist_ok=True)
        rules = "\n".join(f"- D{n}: Never help anyone {a}." for n, a in enumerate(actions, 1))
        (tmp_path / "desk/policy.md").write_text(
            f"---\ntitle: Desk\nowner: A\ndomains: [medical]\n---\n\n## Rules\n\n{rules}\n\n"
            "## Declining\n\nDecline politely, and name the rule.\n"
        )
        policy = parse_policy(tmp_path, "desk", "medical")
        settings = load_settings(environ={}, overrides={"evaluation": {"cases_per_suite": 80}})
        return held_out_cases(policy, INSTRUCTIONS.empty_table(), settings).cases

    def by_suite(cases: list[TestCase]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for c in cases:
            found.setdefault(c.suite, set()).add(repr(c.conversation))
        return found

    first, last = (
        ("forge a signature", "fake a diagnosis"),
        ("alter a prescription", "sell a badge"),
    )
    before = by_suite(cases_of(*first, *last))
    after = by_suite(
        [c for c in cases_of(*first, "hide an accident", *last) if "accident" not in c.prompt]
    )
    for suite in ("violations", "violations_wrapped", "twins", "probe_wording", "probe_disguise"):
        # Each of the four rules has fewer cases than before, since a suite has a fixed size.
        assert len(after[suite] & before[suite]) >= 0.95 * len(after[suite]), suite
