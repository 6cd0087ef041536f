"""The files that `policyalign init` writes into a folder of one's own."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

FILES = {
    "dagster.yaml": "dagster.yaml",
    "workspace.yaml": "workspace.yaml",
    ".gitignore": "gitignore",
    "policies/example/policy.md": "policy.md",
    "policies/example/medical.md": "medical.md",
}


def write_scaffold(folder: Path) -> tuple[list[str], list[str]]:
    """Writes the files that `folder` lacks. Returns the names written, and those kept."""
    written, kept = [], []
    for name, source in FILES.items():
        path = folder / name
        if path.exists():
            kept.append(name)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        text = resources.files(__package__).joinpath(source).read_text(encoding="utf-8")
        path.write_text(text, encoding="utf-8")
        written.append(name)
    return written, kept
