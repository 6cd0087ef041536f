"""The manifest of a bundle: the full SHA-256 digest and the size of every file in it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

MANIFEST = "manifest.json"
SIGNATURE = "bundle.sig"
# Neither can hold its own digest. The signature covers the manifest.
_OUTSIDE = frozenset({MANIFEST, SIGNATURE})


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. The file is read in pieces: a model may exceed memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(folder: Path) -> dict[str, dict[str, str | int]]:
    """Digest and size of each file below `folder`, by its relative path; links are not followed."""
    return {
        path.relative_to(folder).as_posix(): {
            "sha256": file_digest(path),
            "size": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name not in _OUTSIDE
    }


def write_manifest(folder: Path) -> str:
    """Writes `manifest.json` and returns its SHA-256, by which the bundle is named."""
    text = json.dumps({"files": describe(folder)}, indent=1, sort_keys=True) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def manifest_faults(folder: Path) -> list[str]:
    """Files that are missing, added or changed since the manifest was written, and links."""
    try:
        stated = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        listed = {str(name): str(entry["sha256"]) for name, entry in stated.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [f"{MANIFEST} is missing or cannot be read"]
    present = describe(folder)
    links = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink()]
    return [
        *(f"{name} is missing" for name in sorted(listed.keys() - present.keys())),
        *(f"{name} was added" for name in sorted(present.keys() - listed.keys())),
        *(f"{name} is a link" for name in sorted(links)),
        *(
            f"{name} was changed"
            for name in sorted(listed.keys() & present.keys())
            if present[name]["sha256"] != listed[name]
        ),
    ]
