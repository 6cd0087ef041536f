"""A document goes all the way to a report, through the commands that people use."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "document_to_report.py"
# the shape of the medical policy of the method's own release: "Label: Do not ..., ...; redirect"
DOCUMENT = ROOT / "tests" / "policy" / "samples" / "clinic-release.md"


def script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(DOCUMENT), "--domain", "medical", "--quick"]
    return subprocess.run(
        [*command, "--folder", str(folder), *arguments], capture_output=True, text=True, cwd=ROOT
    )


@pytest.mark.slow
def test_a_draft_that_nobody_has_reviewed_is_not_aligned(tmp_path: Path) -> None:
    done = script(tmp_path)
    assert done.returncode == 1 and "waits for a review" in done.stdout
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_an_imported_document_is_aligned_up_to_its_report(tmp_path: Path) -> None:
    done = script(tmp_path, "--reviewed", "A. Reviewer, 2026-12-01")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 rules" in done.stdout and "training steps" in done.stdout
    (report,) = (tmp_path / "data" / "reports" / "clinic-release").rglob("report.html")
    page = report.read_text(encoding="utf-8")
    assert "forbids: name a diagnosis from symptoms alone" in page
    assert "no judge reads the rules" in page  # the duty says why it is not measured
