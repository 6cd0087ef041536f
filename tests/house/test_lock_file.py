"""requirements.lock fits pyproject.toml, pins everything by hash, and names no server."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text()
# an entry: "name[extra]==1.2 ; marker \", and indented lines with its hashes
ENTRY = re.compile(
    r"^(?P<requirement>[A-Za-z0-9][^\\\n]*?) *\\\n(?P<hashes>(?:    --hash=.*\n)+)", re.M
)
PINS = {canonicalize_name(Requirement(m["requirement"]).name): m for m in ENTRY.finditer(LOCK)}


def test_every_dependency_is_pinned_to_a_version_that_pyproject_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for wanted in map(Requirement, project["dependencies"]):
        found = Requirement(PINS[canonicalize_name(wanted.name)]["requirement"])
        (pin,) = found.specifier
        assert pin.operator == "==" and wanted.specifier.contains(pin.version), str(wanted)


def test_every_entry_has_a_version_and_hashes():
    lines = [line for line in LOCK.splitlines() if line and line[0] not in " #"]
    assert len(lines) == len(list(ENTRY.finditer(LOCK))) > 100
    for line in lines:
        assert "==" in line, line
    for entry in ENTRY.finditer(LOCK):
        for value in entry["hashes"].splitlines():
            assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", value), value


def test_extras_are_kept():
    """pip refuses `gql[requests]` in a locked installation if only `gql` is pinned."""
    assert any("[" in m["requirement"] for m in PINS.values())


def test_no_server_or_local_folder_is_named():
    assert not re.search(r"://|--index|--extra-index|--find-links|--trusted|@ ", LOCK)
