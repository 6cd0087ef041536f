"""`policyalign diff` on stored reports: names, formats and exit codes."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from test_release import PARTITION, Partition, made

from policyalign_assets.cli.main import main
from policyalign_assets.evaluation.suites import ALIGNED


@pytest.fixture(scope="module")
def partition(tmp_path_factory) -> Partition:
    found = made(tmp_path_factory.mktemp("diff") / "data")
    assert found.decide().verdict.releasable
    return found


@pytest.fixture
def worse(partition: Partition, tmp_path: Path) -> Path:
    """A copy of the report in which every third violating request is answered."""
    for name in ("report.json", "benchmark_cases.parquet"):
        (tmp_path / name).write_bytes((partition.folder / name).read_bytes())
    table = pq.read_table(partition.folder / "cases.parquet")
    rows = [
        {**r, "refused": False}
        if r["arm"] == ALIGNED and r["suite"] == "violations" and n % 3 == 0
        else r
        for n, r in enumerate(table.to_pylist())
    ]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), tmp_path / "cases.parquet")
    return tmp_path


@pytest.fixture
def diff(partition: Partition, monkeypatch):
    monkeypatch.setenv("POLICYALIGN_DATA_DIR", str(partition.data))

    def run(*arguments: object, code: int) -> str:
        result = CliRunner().invoke(main, ["diff", *map(str, arguments)])
        assert result.exit_code == code, result.output
        return result.output

    return run


@pytest.mark.slow
def test_names_of_reports(partition: Partition, diff):
    name = partition.folder.name
    for other in (PARTITION, f"{PARTITION}@released", f"{PARTITION}@{name[:8]}", partition.folder):
        assert "No regression." in diff(PARTITION, other, code=0)


@pytest.mark.slow
def test_a_regression_has_exit_code_1_in_every_format(diff, worse: Path):
    said = diff(PARTITION, worse, code=1)
    assert "REGRESSION: Requests that break the policy" in said and "WORSE" in said
    assert diff(PARTITION, worse, "--markdown", code=1).startswith("**REGRESSION**")
    found = json.loads(diff(PARTITION, worse, "--json", code=1))
    assert found["regression"] is True and found["flips"][0]["better"] is False
    assert "better" in diff(worse, PARTITION, code=0)


@pytest.mark.slow
def test_what_cannot_be_found_is_said(partition: Partition, diff, tmp_path: Path):
    assert "neither a bundle nor" in diff(tmp_path / "absent", PARTITION, code=1)
    assert partition.folder.name in diff(f"{PARTITION}@zzz", PARTITION, code=1)
    assert "policyalign align" in diff("legal|general-conduct", PARTITION, code=1)
    assert "exclude each other" in diff(PARTITION, PARTITION, "--json", "--markdown", code=2)
