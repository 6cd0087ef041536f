"""Every command and every setting that the documents name exists, with the options they give it.

What is cheap runs for real. Of the rest, the arguments are read by the command's own parser.
"""

import contextlib
import importlib.util
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
import warnings
from functools import cache
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import ROOT

from policyalign_assets.cli.main import COMMANDS, main
from policyalign_assets.settings import Settings

DOCUMENTS = [ROOT / n for n in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
# Programs that others wrote; what we tell them is theirs to check.
OTHERS = set(
    "cat cd cosign cp curl docker echo export gh git helm inspect jq kubectl llama-cli "
    "llama-server lm_eval mv ollama openssl pip pre-commit ray sqlite3 trtllm-serve vllm".split()
)
# Variables that are not fields of the settings.
VARIABLES = {"POLICYALIGN_PROFILE", "POLICYALIGN_DATA_DIR", "POLICYALIGN_POLICIES_DIR"}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = set(re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.M))


def blocks(text: str) -> list[str]:
    return re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.S)


def commands(text: str) -> list[list[str]]:
    """The words of each command in a document's blocks, and of `policyalign …` in its prose."""
    found = []
    for block in blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line.replace("…", ""), posix=True, punctuation_chars="&|;")
            lexer.whitespace_split, words = True, []
            for word in [*lexer, "&&"]:
                if set(word) <= set("&|;"):
                    found.append(words)
                    words = []
                else:
                    words.append(word)
    spans = re.findall(r"`(policyalign [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    found += [shlex.split(span.replace("…", ""), posix=True) for span in spans]
    return [words for words in found if words]


CASES = [
    pytest.param(words, id=f"{document.name}: {' '.join(words)[:70]}")
    for document in DOCUMENTS
    if document.name != "tutorial.md"  # tests/cli/test_tutorial.py runs all of it, for real
    for words in commands(document.read_text())
]


def test_the_documents_have_commands():
    assert len(CASES) > 25


def test_what_does_not_exist_is_noticed():
    for wrong in (["nope"], ["report", "--nope"], ["lint", "--stepps", "6"]):
        with pytest.raises(AssertionError):
            parse(wrong)


@pytest.mark.parametrize("words", CASES)
def test_a_command_of_the_documents_exists_with_its_options(words: list[str]):
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]  # a setting, see below
    if not words:
        return
    program, *arguments = words
    name = Path(program).name
    if name == "make":
        assert {a for a in arguments if "=" not in a} <= TARGETS
    elif name == "policyalign":
        parse(arguments)
    elif name in ("python", "python3"):
        check_python(arguments)
    elif name == "dagster":
        dagster = importlib.import_module("dagster._cli").create_dagster_cli()
        parse_in(dagster, arguments)
    else:
        assert name in OTHERS, f"unknown program {program}"
    for extra in re.findall(r"\[([\w,]+)\]", " ".join(arguments) if name == "pip" else ""):
        assert set(extra.split(",")) <= set(EXTRAS)


def parse(arguments: list[str]) -> None:
    if arguments and not arguments[0].startswith("-"):
        assert arguments[0] in COMMANDS, f"policyalign has no command {arguments[0]}"
        parse_in(main, arguments)


def parse_in(group: click.Group, arguments: list[str]) -> None:
    """Raises where the command does not exist, or has no such option."""
    command: click.Command | None = group
    context = click.Context(group)
    while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
        command, arguments = command.get_command(context, arguments[0]), arguments[1:]
    assert command is not None, f"no such command: {arguments}"
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    given = {a.partition("=")[0] for a in arguments if re.match(r"--?[a-z]", a)}
    assert given <= known | {"--help", "-h"}, f"{command.name} has no {given - known}"
    values = [a for a in arguments if not a.startswith("-")]
    takes = any(isinstance(option, click.Argument) for option in command.params)
    assert takes or len(values) <= len(given), f"{command.name} takes no {values}"


def check_python(arguments: list[str]) -> None:
    if arguments[:1] == ["-m"]:
        assert importlib.util.find_spec(arguments[1]), f"no module {arguments[1]}"
        if arguments[1].startswith("policyalign_assets"):
            options = {a for a in arguments[2:] if a.startswith("--")}
            assert options <= options_of(arguments[1])
    elif arguments and arguments[0].endswith(".py"):
        script = ROOT / arguments[0]
        source = script.read_text()
        # benchmarks share modules that stand beside them, and so their options
        for name in re.findall(r"^from (\w+) import", source, flags=re.M):
            if (beside := script.with_name(f"{name}.py")).exists():
                source += beside.read_text()
        for option in (a for a in arguments[1:] if a.startswith("--")):
            assert f'"{option}"' in source, f"{arguments[0]} has no option {option}"


@cache
def options_of(module: str) -> set[str]:
    said = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(said),
        warnings.catch_warnings(),
        pytest.raises(SystemExit) as ended,
    ):
        patch.setattr(sys, "argv", [module, "--help"])
        warnings.simplefilter("ignore", RuntimeWarning)  # another test has imported the module
        runpy.run_module(module, run_name="__main__")
    assert not ended.value.code
    return set(re.findall(r"--[\w-]+", said.getvalue()))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_every_setting_that_a_document_names_exists(document: Path):
    code = [*(ROOT / "policyalign_assets").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    package = "\n".join(p.read_text() for p in code)
    for name in set(re.findall(r"POLICYALIGN_[A-Z_0-9]*[A-Z0-9]", document.read_text())):
        section, parts, field = name.removeprefix("POLICYALIGN_").lower().partition("__")
        if parts:
            fields = Settings.model_fields[section].annotation.model_fields
            assert field in fields, f"{document.name}: {name}"
        else:  # a variable of its own, or one that the reader is told to set to a key
            assert name in VARIABLES or name in package or f"={name}" in document.read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_every_file_that_a_document_links_to_exists(document: Path):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text()):
        if not re.match(r"\w+:", target):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_query_of_the_readme_runs(tmp_path):
    (query,) = (w for w in commands((ROOT / "README.md").read_text()) if "duckdb" in " ".join(w))
    folder = tmp_path / "data/assets/sensitivity_scores/medical"
    folder.mkdir(parents=True)
    pq.write_table(
        pa.table({"rule_id": ["C1", "C1"], "reverse_kl": [1.0, 2.0]}), folder / "alpha.parquet"
    )
    done = subprocess.run(
        [sys.executable, *query[1:]], cwd=tmp_path, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0 and "1.5" in done.stdout, done.stderr


LONGEST = 45  # words; a list of names counts word by word


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_sentences_are_short(document: Path):
    prose = re.sub(r"```.*?```", "", document.read_text(), flags=re.S)
    for paragraph in re.split(r"\n\s*\n|\n(?=[-*|#]|\d+\. )", prose):
        if not paragraph.lstrip().startswith("|"):
            plain = re.sub(r"`[^`]*`|\]\([^)]*\)", " X ", " ".join(paragraph.split()))
            for sentence in re.split(r"(?<=[.:?!])\s+", plain):
                assert len(re.findall(r"[A-Za-z0-9'][\w'./-]*", sentence)) < LONGEST, sentence
