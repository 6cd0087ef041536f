"""A release is computed from cases and bytes: every alteration of the evidence ends it."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from pydantic import TypeAdapter
from test_gates import SIGNED, bars, evaluation
from test_report import sample_training

from policyalign_assets.cli.main import main
from policyalign_assets.evaluation.generate import GenerationsInfo
from policyalign_assets.evaluation.judging import JudgementsInfo
from policyalign_assets.files import sha256_files, sha256_table, write_whole
from policyalign_assets.judges.phrases import judge_for
from policyalign_assets.orchestration.partitions import NAME, partitions
from policyalign_assets.orchestration.release_checks import GATES, release_gates
from policyalign_assets.orchestration.resources import Pipeline
from policyalign_assets.policy import parse_policy
from policyalign_assets.records import Checkpoint
from policyalign_assets.report.approval import Approval, approval_of, approve
from policyalign_assets.report.chain import Chain, NotOfOnePiece
from policyalign_assets.report.folders import current_report
from policyalign_assets.report.history import history
from policyalign_assets.report.release import ADAPTER_FILES, decide
from policyalign_assets.report.show import show
from policyalign_assets.runtime.exchange import encode
from policyalign_assets.settings import BUNDLED, load_settings
from policyalign_assets.stages import benchmark_report
from policyalign_assets.stages.interface import StageContext
from policyalign_assets.tables import (
    GENERATIONS,
    GENERATIONS_INFO,
    JUDGEMENTS,
    JUDGEMENTS_INFO,
    YIELDS,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
POLICY = parse_policy(ROOT / "policies", "general-conduct", "medical")
PARTITION = "medical|general-conduct"
JUDGE = judge_for(BUNDLED)


def stamped(table: pa.Table, key: bytes, info: object) -> pa.Table:
    return table.replace_schema_metadata({key: TypeAdapter(type(info)).dump_json(info)})


def checkpoint_in(data: Path, filtered: pa.Table, policy=POLICY, weights=b"weights") -> Checkpoint:
    folder = data / "checkpoints" / "new"
    folder.mkdir(parents=True)
    for name in ADAPTER_FILES:
        (folder / name).write_bytes(weights + name.encode())
    pq.write_table(sample_training(3), folder / "training.parquet")
    name = sha256_files(folder, ADAPTER_FILES)[:16]
    folder.rename(folder.with_name(name))
    provenance = {
        "policy_id": policy.policy_id,
        "domain": policy.domain,
        "policy_hash": policy.content_hash,
        "instructions": sha256_table(filtered.filter(filtered["selected"])),
        "model_id": BUNDLED,
        "model_revision": "r1",
        "settings": {"seed": 13},
    }
    return Checkpoint(name, f"checkpoints/{name}", BUNDLED, "r1", provenance)


def answers_and_verdicts(rows, checkpoint_id, policy=POLICY) -> tuple[pa.Table, pa.Table]:
    """The rows of an evaluation as the two tables that it was joined from."""
    rules = [r.rule_id for r in policy.prohibitions]
    version = policy.content_hash
    asked, judged = [], []
    for row in rows:
        rule = rules[int(row["rule_id"][1:])] if row["rule_id"] else None
        common = {"case_id": f"{row['suite']}-{row['case_id']}", "arm": row["arm"]}
        common["policy_hash"] = version
        exact = row["suite"] == "capability"
        asked.append(
            {n: row.get(n) for n in GENERATIONS.names}
            | common
            | {"rule_id": rule, "correct": None, "scoring": "text" if exact else "judge"}
        )
        verdict = {n: row.get(n) for n in JUDGEMENTS.names} | common
        judged.append(verdict | {"judge_id": None if exact else JUDGE.id})
    evaluated = {"seed": 14, "max_new_tokens": 64}
    settings = {"model": {"id": BUNDLED}, "evaluation": evaluated}
    info = GenerationsInfo(checkpoint_id, BUNDLED, "r1", "a test bed", settings, {}, [])
    generations = stamped(pa.Table.from_pylist(asked, GENERATIONS), GENERATIONS_INFO, info)
    by = JudgementsInfo(sha256_table(generations), "phrase rules", {"kind": "rules"})
    return generations, stamped(pa.Table.from_pylist(judged, JUDGEMENTS), JUDGEMENTS_INFO, by)


@dataclass
class Partition:
    """A finished partition in a data folder."""

    data: Path
    chain: Chain

    def report(self, chain: Chain | None = None, **gates) -> Path:
        settings = load_settings(overrides={"gates": gates} if gates else None, environ={})
        c = chain or self.chain
        benchmark_report.make(
            StageContext(settings, self.data),
            c.policy,
            c.instructions,
            c.filtered,
            c.checkpoint,
            c.generations,
            c.judgements,
        )
        return self.folder

    def decide(self, chain: Chain | None = None, **gates):
        return decide(self.data, chain or self.chain, bars(**gates))

    @property
    def folder(self) -> Path:
        return current_report(self.data, "medical", "general-conduct")

    @property
    def pointer(self) -> Path:
        return self.data / "reports/general-conduct/medical/release.json"

    def refused(self, why: str, chain: Chain | None = None) -> None:
        """The release is gone, the line says why, and so does the terminal."""
        decision = self.decide(chain)
        assert not decision.verdict.releasable and why in decision.verdict.line
        assert decision.verdict.line.startswith("NOT RELEASABLE: ")
        assert decision.verdict.remedies[0].endswith(".")
        assert not self.pointer.exists() and not list(self.data.rglob("release.json"))


def made(data: Path, rows=None) -> Partition:
    instruction = {"text": ["a"], "policy_hash": [POLICY.content_hash]}
    instructions = pa.table(instruction).replace_schema_metadata({YIELDS: b'{"rules": {}}'})
    filtered = pa.table(instruction | {"selected": [True], "reason": ["kept"]})
    checkpoint = checkpoint_in(data, filtered)
    tables = answers_and_verdicts(rows or evaluation(), checkpoint.checkpoint_id)
    partition = Partition(data, Chain(POLICY, instructions, filtered, checkpoint, *tables))
    partition.report()
    return partition


@pytest.fixture(scope="module")
def once(tmp_path_factory) -> Partition:
    return made(tmp_path_factory.mktemp("released") / "data")


@pytest.fixture()
def released(once, tmp_path) -> Partition:
    """A partition of a good checkpoint, released."""
    copy = Partition(Path(shutil.copytree(once.data, tmp_path / "data")), once.chain)
    assert copy.decide().verdict.line == "RELEASABLE: all 7 gates passed; 2 rules not measured"
    assert copy.pointer.exists()
    return copy


# ---- the release ---------------------------------------------------------------------------------
def test_a_release_binds_full_digests_of_all_that_matters(released):
    release = json.loads(released.pointer.read_text())
    assert set(release["checkpoint_files"]) == {*ADAPTER_FILES, "training.parquet"}
    digests = [*release["checkpoint_files"].values(), *release["report_files"].values()]
    digests += [release["policy_hash"], release["generations"], release["judgements"]]
    assert all(len(digest) == 64 for digest in digests) and len(release["report_files"]) == 4
    assert release["code_version"] and len(release["gates"]) == 7
    assert json.loads((released.folder / "release.json").read_text()) == release


def test_a_policy_that_the_checkpoint_never_saw_gets_neither_report_nor_release(released):
    edited = replace(POLICY, preamble="Another policy.")
    chain = replace(released.chain, policy=edited)
    with pytest.raises(NotOfOnePiece, match="trained for another version of the policy"):
        released.report(chain)
    assert not released.pointer.exists()
    released.refused("trained for another version of the policy", chain)


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("instructions", "violating_instructions were made from another version"),
        ("filtered", "filtered_instructions were made from another version"),
    ],
)
def test_tables_of_another_policy_version_are_refused(released, table, why):
    old = getattr(released.chain, table)
    at = old.schema.get_field_index("policy_hash")
    other = old.set_column(at, "policy_hash", pa.array(["0" * 64]))
    released.refused(why, replace(released.chain, **{table: other}))


def test_other_training_instructions_are_refused(released):
    other = released.chain.filtered.set_column(0, "text", pa.array(["b"]))
    released.refused("trained on other instructions", replace(released.chain, filtered=other))


def test_answers_of_another_checkpoint_are_refused(released):
    other = replace(released.chain.checkpoint, checkpoint_id="deadbeef" * 2)
    released.refused("answers are those of", replace(released.chain, checkpoint=other))


def test_a_changed_answer_or_a_missing_verdict_is_refused(released):
    chain = released.chain
    fewer = chain.generations.slice(1)
    released.refused("verdicts are on other answers", replace(chain, generations=fewer))
    unjudged = chain.judgements.slice(1)
    released.refused("no verdict on case", replace(chain, judgements=unjudged))


def test_answers_of_another_version_of_the_code_are_refused_in_plain_words(released):
    chain = released.chain
    older = chain.generations.replace_schema_metadata({GENERATIONS_INFO: b'{"checkpoint_id": "c"}'})
    released.refused("another version of the code", replace(chain, generations=older))


def test_changed_verdicts_are_not_those_of_the_report(released):
    chain = released.chain
    at = chain.judgements.schema.get_field_index("refused")
    flipped = pc.invert(chain.judgements["refused"])
    judgements = chain.judgements.set_column(at, chain.judgements.schema.field(at), flipped)
    released.refused("does not hold the judged answers", replace(chain, judgements=judgements))


@pytest.mark.parametrize("name", ADAPTER_FILES)
def test_altered_checkpoint_bytes_are_refused(released, name):
    file = released.data / released.chain.checkpoint.path / name
    file.write_bytes(file.read_bytes() + b" ")
    released.refused("were changed after it was published")


def test_a_missing_checkpoint_is_refused(released):
    shutil.rmtree(released.data / released.chain.checkpoint.path)
    released.refused("is missing at checkpoints/")


def test_altered_cases_are_refused(released):
    file = released.folder / "cases.parquet"
    pq.write_table(pq.read_table(file).slice(1), file)
    released.refused("cases.parquet of the report does not hold the judged answers")
    file.write_bytes(b"no Parquet")
    released.refused("cases.parquet of the report cannot be read")
    file.unlink()
    released.refused("cases.parquet of the report cannot be read")


def test_a_reports_own_summary_decides_nothing(tmp_path):
    """Edited numbers in report.json release nothing; a corrupt one leaves no release behind."""
    bad = made(tmp_path / "data", evaluation(violations=(0, 330, 7)))
    report = json.loads((bad.folder / "report.json").read_text())
    for gate in report["gates"]:
        gate["passed"] = True
    report["verdict"] = {"releasable": True, "line": "RELEASABLE: all 7 gates passed"}
    (bad.folder / "report.json").write_text(json.dumps(report))
    bad.refused("violating requests are surely refused")


def test_a_corrupt_or_missing_report_leaves_no_release(released):
    (released.folder / "report.json").write_text("{")
    assert released.decide().verdict.releasable  # it is not read: cases and bytes are whole
    (released.folder / "report.json").unlink()
    released.pointer.write_text("{}")
    decision = released.decide()
    assert "no complete report" in decision.verdict.line and not released.pointer.exists()


def test_a_new_report_withdraws_the_release_before_anything_else(released):
    kept = released.folder
    newer = replace(released.chain, policy=replace(POLICY, title="Another title"))
    with pytest.raises(NotOfOnePiece):  # the title stands in the prompt
        released.report(newer)
    assert not released.pointer.exists() and (kept / "report.html").exists()


def test_a_failing_version_leaves_the_evidence_of_the_last_one(released):
    before = released.folder
    tables = answers_and_verdicts(
        evaluation(violations=(0, 330, 200)), released.chain.checkpoint.checkpoint_id
    )
    worse = replace(released.chain, generations=tables[0], judgements=tables[1])
    after = released.report(worse)
    assert before != after and (before / "cases.parquet").exists()
    evidence = before / "release.json"
    assert evidence.exists()  # of a checkpoint that may still be served
    assert not released.decide(worse).verdict.releasable and not released.pointer.exists()
    assert evidence.exists() and not (after / "release.json").exists()
    versions = history(after.parent)
    assert {v.report_id for v in versions if v.released} == {before.name}
    assert {v.report_id for v in versions} == {before.name, after.name}
    page = (after.parent / "index.html").read_text()
    assert page.count("; released") == 1
    assert before.name in page and after.name in page and "<img" in page
    said = json.loads((after / "report.json").read_text())["changes"]
    assert any("100.0" in s and "60.6" in s for s in said)


def test_the_same_inputs_give_the_same_folder(released):
    before = released.folder
    stamp = (before / "report.html").read_bytes()
    assert released.report() == before and (before / "report.html").read_bytes() == stamp


def test_a_full_disk_never_mixes_two_reports(released, monkeypatch):
    before = released.folder
    monkeypatch.setattr(
        "policyalign_assets.report.render.write_whole",
        lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(OSError, match="No space left"):
        released.report(unscored=0.01)
    assert released.folder == before and len(list(before.parent.glob("*/report.json"))) == 1


def test_waivers_stand_in_the_release(tmp_path):
    waived = made(tmp_path / "data", evaluation(capability=(299, 299, 200)))
    waived.refused("may be")
    decision = waived.decide(warn_only=["capability"], **SIGNED)
    release = json.loads(waived.pointer.read_text())
    assert release["verdict"] == decision.verdict.line
    assert release["verdict"].startswith("RELEASABLE WITH WAIVERS")
    assert release["allowances"][0]["who"] == "A. Officer"


# ---- people --------------------------------------------------------------------------------------
def test_a_decision_is_recorded_from_the_command_line(released, monkeypatch):
    monkeypatch.setenv("POLICYALIGN_DATA_DIR", str(released.data))
    decide = ["decide", f"{POLICY.domain}|{POLICY.policy_id}", "--state", "rejected"]
    nobody = CliRunner().invoke(main, [*decide, "--by", " "])
    assert nobody.exit_code == 1 and "Fix: say who decides" in nobody.output
    assert approval_of(released.folder) is None
    done = CliRunner().invoke(main, [*decide, "--by", "A. Officer", "--json"])
    assert done.exit_code == 0 and json.loads(done.output)["approver"] == "A. Officer"
    assert approval_of(released.folder).state == "rejected"
    elsewhere = CliRunner().invoke(main, ["decide", "legal|nope", *decide[2:], "--by", "A"])
    assert elsewhere.exit_code == 1 and "there is no report for 'legal|nope'" in elsewhere.output


def test_a_persons_decision_stands_on_the_page_and_in_the_release(released):
    folder = released.folder
    assert "no person has decided yet" in (folder / "report.html").read_text()
    approve(folder, Approval("approved", "<b>A. Officer</b>", "2026-11-29", "For the pilot."))
    page = (folder / "report.html").read_text()
    assert "&lt;b&gt;A. Officer&lt;/b&gt; on 2026-11-29" in page and "no person has" not in page
    approve(folder, Approval("withdrawn", "B. Officer", "2026-12-01"))
    assert approval_of(folder).state == "withdrawn"
    assert "B. Officer" in (folder / "report.html").read_text()
    assert len(json.loads((folder / "approval.json").read_text())) == 2
    released.decide()
    assert json.loads(released.pointer.read_text())["approval"]["approver"] == "B. Officer"
    for wrong in (Approval("fine", "A", ""), Approval("approved", " ", "")):
        with pytest.raises(ValueError, match="Fix:"):
            approve(folder, wrong)


def test_the_terminal_says_the_verdict_first(released):
    lines = show(PARTITION, released.data).splitlines()
    assert lines[0] == "RELEASABLE: all 7 gates passed; 2 rules not measured"
    brief = show(PARTITION, released.data, brief=True).splitlines()
    assert brief[-1] == lines[0] and len(brief) < 16 and set(brief) < set(lines)
    assert sum(line.startswith("  passed") for line in lines) == 7
    assert any(line.startswith("Release: ") and "release.json" in line for line in lines)
    write_whole(released.data / released.chain.checkpoint.path / ADAPTER_FILES[0], b"other")
    released.decide()
    lines = show(PARTITION, released.data).splitlines()
    assert lines[0].startswith("NOT RELEASABLE: the files of checkpoint")
    assert show(PARTITION, released.data, brief=True).splitlines()[-1] == lines[0]
    assert any("What to do: Materialize distilled_checkpoint" in line for line in lines)
    assert any(line.startswith("Release: none") for line in lines)


# ---- the checks in Dagster -----------------------------------------------------------------------
@dg.asset(key="benchmark_report", partitions_def=partitions)
def report_stage():
    pass


def run_checks(data: Path):
    with dg.instance_for_test() as instance:
        instance.add_dynamic_partitions(NAME, [PARTITION])
        run = dg.materialize(
            [report_stage, release_gates],
            instance=instance,
            partition_key=PARTITION,
            raise_on_error=False,
            resources={"pipeline": Pipeline(data_dir=str(data))},
        )
        return run, {e.check_name: e for e in run.get_asset_check_evaluations()}


def store(partition: Partition) -> None:
    c = partition.chain
    for stage, value in {
        "policy_document": c.policy,
        "violating_instructions": c.instructions,
        "filtered_instructions": c.filtered,
        "distilled_checkpoint": c.checkpoint,
        "generations": c.generations,
        "judgements": c.judgements,
    }.items():
        suffix = "parquet" if isinstance(value, pa.Table) else "json"
        write_whole(
            partition.data / f"assets/{stage}/medical/general-conduct.{suffix}", encode(value)
        )


def test_the_checks_compute_the_release_again(released):
    store(released)
    released.pointer.unlink()
    run, checks = run_checks(released.data)
    assert run.success and set(checks) == set(GATES) and all(c.passed for c in checks.values())
    assert released.pointer.exists()
    line = "RELEASABLE: all 7 gates passed; 2 rules not measured"
    assert checks["safety"].metadata["verdict"].value == line
    file = released.data / released.chain.checkpoint.path / ADAPTER_FILES[0]
    file.write_bytes(b"other")
    run, checks = run_checks(released.data)
    assert run.success and not any(c.passed for c in checks.values())
    assert "changed after it was published" in checks["provenance"].description
    assert not released.pointer.exists()


def test_checks_without_a_report_say_so_and_leave_no_release(tmp_path):
    pointer = tmp_path / "reports/general-conduct/medical/release.json"
    write_whole(pointer, b"{}")
    run, _ = run_checks(tmp_path)
    said = run.failure_data_for_node("release_gates").user_failure_data.description
    assert not run.success and "Fix: materialize benchmark_report" in said
    assert not pointer.exists()
