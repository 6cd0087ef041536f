"""The command line: its table of commands, its exit codes, and that help stays light."""

import importlib
import os
import re
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


SHOWS_PROGRESS = {"align"}  # what it made is printed by `report --json`
GROUPS = {"keys": "new"}


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - SHOWS_PROGRESS))
def test_every_command_that_prints_results_prints_them_as_json(name: str) -> None:
    below = [GROUPS[name]] if name in GROUPS else []
    result = CliRunner().invoke(main, [name, *below, "--help"])
    assert "--json" in result.output


def test_help_and_documents_say_the_exit_codes() -> None:
    said = "0 all is well, 1 problems were found, 2 wrong usage"
    assert said in CliRunner().invoke(main, ["--help"]).output
    for page in ("docs/tutorial.md", "docs/releases.md"):
        assert said in " ".join((ROOT / page).read_text(encoding="utf-8").split())


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands_options_and_values(shell: str) -> None:
    """As the shell asks: the program gets the line in variables and prints what may follow."""

    def completed(line: str) -> set[str]:
        words = line.split(" ")
        asked = {
            "_POLICYALIGN_COMPLETE": f"{shell}_complete",
            "COMP_WORDS": line if shell != "fish" else " ".join(words[:-1]),
            "COMP_CWORD": words[-1] if shell == "fish" else str(len(words) - 1),
        }
        done = subprocess.run(
            [sys.executable, "-c", "from policyalign_assets.cli.main import main; "
             "main(prog_name='policyalign')"],
            env={**os.environ, **asked},
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )  # fmt: skip
        lines = [entry for entry in re.split(r"[\n,]", done.stdout) if entry]
        return {re.split(r"[\t,]", entry)[0] for entry in lines}

    assert {"release", "revoke", "report"} <= completed("policyalign re")
    assert "--canaries" in completed("policyalign attest --c")
    assert "new" in completed("policyalign keys n")


def test_the_shell_gets_a_script_that_asks_for_completions() -> None:
    program = "from policyalign_assets.cli.main import main; main(prog_name='policyalign')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "_POLICYALIGN_COMPLETE": "zsh_source"},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert "compdef _policyalign_completion policyalign" in done.stdout


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
