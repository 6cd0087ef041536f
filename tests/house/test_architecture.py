"""The layers of packages: the contract holds, notices a forbidden import, and is what the docs
draw."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter", reason="needs import-linter, which the extra `dev` brings")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Checks the contract over the package that stands in `folder`."""
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package's Python files and of the contract."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(
        ROOT / "policyalign_assets",
        tmp_path / "policyalign_assets",
        ignore=lambda folder, names: [
            n for n in names if not n.endswith(".py") and not (Path(folder) / n).is_dir()
        ],
    )
    return tmp_path


def test_packages_form_layers():
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("engine/base.py", "import policyalign_assets.report.build", "Packages form layers"),
        ("judges/verdict.py", "import policyalign_assets.evaluation.cases", "Packages form layers"),
        ("synthesis/grid.py", "import dagster", "Only the orchestration imports Dagster"),
    ],
)
def test_a_forbidden_import_breaks_the_contract(copy: Path, file: str, line: str, contract: str):
    planted = copy / "policyalign_assets" / file
    planted.write_text(planted.read_text() + f"\n{line}\n")
    result = lint_imports(copy)
    assert result.returncode != 0
    assert any(contract in text and "BROKEN" in text for text in result.stdout.splitlines())


def test_a_new_package_must_be_given_a_layer(copy: Path):
    new = copy / "policyalign_assets" / "unplaced"
    new.mkdir()
    (new / "__init__.py").write_text("")
    result = lint_imports(copy)
    assert result.returncode != 0 and "unplaced" in result.stdout + result.stderr


def test_the_architecture_page_draws_the_imports_of_the_code():
    import package_graph

    page = package_graph.PAGE.read_text(encoding="utf-8")
    assert package_graph.page_with_graph(page) == page, (
        "docs/architecture.md is out of date. Fix: python scripts/package_graph.py --write"
    )
