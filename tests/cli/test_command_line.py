"""The command line: its table of commands, its exit codes, and that help stays light."""

import importlib
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from policyalign_assets.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_in_the_table_exists_and_has_help(name: str) -> None:
    module, _, attribute = COMMANDS[name].target.partition(":")
    assert isinstance(getattr(importlib.import_module(module), attribute), click.Command)
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0 and "Usage:" in result.output


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for name, entry in COMMANDS.items():
        assert name in result.output and entry.summary.split()[0] in result.output


def test_an_unknown_command_is_a_usage_error() -> None:
    assert CliRunner().invoke(main, ["no-such-command"]).exit_code == 2


def test_an_error_of_the_package_is_shown_without_a_traceback(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["lint", "absent", "--policies", str(tmp_path)])
    assert result.exit_code == 1
    assert "no such file" in result.output and "Traceback" not in result.output


def test_help_loads_no_command_and_no_heavy_library() -> None:
    code = (
        "import sys\n"
        "from policyalign_assets.cli.main import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "heavy = {'dagster', 'torch', 'transformers', 'policyalign_assets.cli.lint'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip().endswith("loaded: []")


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "policyalign_assets", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert "Commands" in done.stdout
