"""A folder of one's own, from the built wheel, as a user without this repository has it."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from helpers import ROOT

from policyalign_assets.cli.project import project_above, use_project_above

KEEP_OUT = ("POLICYALIGN_", "DAGSTER_", "PYTHONPATH")


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A Python with the wheel installed, and the dependencies of the one that runs the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "policyalign_assets", source / "policyalign_assets")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    built = subprocess.run(
        [*pip, "wheel", *offline, "--no-build-isolation", "-w", str(folder), str(source)],
        capture_output=True,
        text=True,
    )
    if "No module named 'setuptools'" in built.stderr or "Cannot import" in built.stderr:
        pytest.skip("setuptools >= 77 is not installed, so no wheel can be built offline")
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    shutil.rmtree(source)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv/bin/python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    subprocess.run([*pip, "install", *offline, "--target", site, str(wheel)], check=True)
    # after the wheel on the path, so that the dependencies come from there and the package does not
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def without_the_repository() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(KEEP_OUT)}


def run(python, folder, *args: str, code: int = 0) -> str:
    environ = without_the_repository()
    done = subprocess.run(
        [python, "-m", *args], cwd=folder, env=environ, capture_output=True, text=True, timeout=600
    )
    said = done.stdout + done.stderr
    assert done.returncode == code, said[-3000:]
    assert "Traceback" not in said
    return said


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder(python, tmp_path):
    empty, below = tmp_path / "empty", tmp_path / "empty/policies"
    empty.mkdir()
    said = run(python, empty, "policyalign_assets", "align", "medical|example", code=1)
    assert "there is no dagster.yaml" in said and "policyalign init" in said
    said = run(python, empty, "policyalign_assets", "init")
    assert "policyalign align 'medical|example'" in said
    assert run(python, empty, "policyalign_assets", "init").count("kept") == 5
    said = run(python, empty, "policyalign_assets", "lint", "example")
    assert "C1  Never help anyone forge a signature." in said
    assert run(python, below, "policyalign_assets", "lint", "example") == said
    definitions = ["-m", "policyalign_assets.definitions"]
    run(python, empty, "dagster", "definitions", "validate", *definitions)
    run(
        python, empty, "dagster", "asset", "materialize", *definitions, "--select", "policy_catalog"
    )
    run(python, empty, "dagster", "asset", "materialize", *definitions, "--select",
        "policy_document", "--partition", "medical|example")  # fmt: skip
    assert (empty / "data/assets/policy_document/medical/example.json").is_file()
    assert (empty / ".dagster/storage").is_dir()
    said = run(python, below, "policyalign_assets", "report", "medical|example", code=1)
    assert str(empty / "data") in said and "Fix: policyalign align" in said
    # nothing was made but what the folder is for
    made = {path.name for path in empty.iterdir()}
    assert made == {".dagster", ".gitignore", "dagster.yaml", "data", "policies", "workspace.yaml"}


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(python):
    code = "import policyalign_assets as p; print(p.__path__[0])"
    done = subprocess.run(
        [python, "-c", code],
        capture_output=True,
        text=True,
        cwd="/",
        check=True,
        env=without_the_repository(),
    )
    installed, source = Path(done.stdout.strip()), ROOT / "policyalign_assets"
    assert installed != source
    shown = {".py", ".yaml", ".jinja", ".sql", ".js", ".csv", ".json", ".md", ".safetensors"}
    missing = [
        str(path.relative_to(source))
        for path in source.rglob("*")
        if path.suffix in shown and not (installed / path.relative_to(source)).is_file()
    ]
    assert missing == []


def test_a_subfolder_belongs_to_the_project_above(tmp_path, monkeypatch):
    (tmp_path / "dagster.yaml").touch()
    below = tmp_path / "policies/example"
    below.mkdir(parents=True)
    assert project_above(tmp_path) is None and project_above(below) == tmp_path
    monkeypatch.chdir(below)
    environ = {"POLICYALIGN_DATA_DIR": "elsewhere"}
    use_project_above(environ)
    assert environ == {
        "POLICYALIGN_DATA_DIR": "elsewhere",
        "POLICYALIGN_POLICIES_DIR": str(tmp_path / "policies"),
        "POLICYALIGN_DEPLOYMENTS_DIR": str(tmp_path / "deployments"),
    }
