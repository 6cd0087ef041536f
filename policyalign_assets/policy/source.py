"""Reads one policy file: safely from disk, without comments, with the number of each line."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from policyalign_assets.policy.characters import invisible
from policyalign_assets.policy.errors import Fault, PolicyError

MAX_BYTES = 256 * 1024


@dataclass(frozen=True)
class Source:
    """The text of a policy file (or its tail) without comments.

    `numbers[i]` is the number that line i has in the file.
    """

    path: str
    lines: tuple[str, ...]
    numbers: tuple[int, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def tail(self, start: int) -> "Source":
        return Source(self.path, self.lines[start:], self.numbers[start:])

    def error(self, index: int | None, problem: str, fix: str) -> Fault:
        """A fault at line `index` of this text."""
        return Fault(self.path, None if index is None else self.numbers[index], problem, fix)

    def warning(self, index: int | None, problem: str, fix: str) -> Fault:
        """A warning at line `index` of this text."""
        return replace(self.error(index, problem, fix), level="warning")


def shown_path(policies_dir: Path, *parts: str) -> str:
    """The path that errors show: from the policies folder on, the same on every machine."""
    return "/".join((policies_dir.resolve().name, *parts))


def read_source(policies_dir: Path, policy_id: str, name: str) -> Source:
    """Read `policies_dir/policy_id/name`; both parts must already be validated.

    Raises PolicyError: missing or unreadable, outside the policies folder, too large, not UTF-8,
    empty, with an unclosed comment or an invisible character.
    """
    path = shown_path(policies_dir, policy_id, name)
    root = Path(os.path.realpath(policies_dir))
    real = Path(os.path.realpath(root / policy_id / name))
    if not real.is_relative_to(root):
        raise PolicyError(
            path,
            None,
            "the file is a link that leads out of the policies folder",
            "Put a copy of the file itself here.",
        )
    return source_of(path, _read_bytes(path, real))


def read_any_file(file: Path) -> Source:
    """Read a Markdown or text file from anywhere. Raises PolicyError as `read_source`."""
    return source_of(str(file), _read_bytes(str(file), file))


def source_of(path: str, data: bytes) -> Source:
    """The text of a file's bytes. Raises PolicyError as `read_source`; `path` is for its words."""
    text = _decode(path, data)
    source = _without_comments(path, text)
    filled = [index for index, line in enumerate(source.lines) if line.strip()]
    if not filled:
        raise PolicyError(
            path,
            None,
            "the file is empty",
            "Write a front matter, a '## Rules' list and a '## Declining' paragraph.",
        )
    return source.tail(filled[0])


def _read_bytes(path: str, real: Path) -> bytes:
    if not real.is_file():
        raise PolicyError(
            path,
            None,
            "there is no such file",
            f"Create {path}, or check the spelling of the policy's name.",
        )
    try:
        with real.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PolicyError(
            path,
            None,
            f"the file cannot be read ({error.strerror})",
            "Check the file's permissions.",
        ) from error
    if len(data) > MAX_BYTES:
        raise PolicyError(
            path,
            None,
            "the file is larger than 256 KiB",
            "Shorten it: a model reads the whole policy with each request.",
        )
    return data


def _decode(path: str, data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise PolicyError(
            path, line, "the file is not UTF-8 text here", "Save the file with the encoding UTF-8."
        ) from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    for number, written in enumerate(text.split("\n"), 1):
        if name := invisible(written):
            problem = f"the invisible character {name} stands here"
            raise PolicyError(path, number, problem, "Delete it; type the line anew if need be.")
    return text


def _without_comments(path: str, text: str) -> Source:
    """Cuts HTML comments. Lines that held nothing else go too, so no comment splits a paragraph."""
    lines, numbers, number, position = [""], [1], 1, 0
    commented = set()
    while True:
        start = text.find("<!--", position)
        for count, piece in enumerate(
            text[position : start if start >= 0 else len(text)].split("\n")
        ):
            if count:
                number += 1
                lines.append("")
                numbers.append(number)
            lines[-1] += piece
        if start < 0:
            break
        end = text.find("-->", start + 2)
        if end < 0:
            raise PolicyError(path, number, "this comment is never closed", "End it with '-->'.")
        number += text.count("\n", start, end)
        commented.add(len(lines) - 1)
        position = end + len("-->")
    kept = [index for index, line in enumerate(lines) if line.strip() or index not in commented]
    return Source(
        path, tuple(lines[index] for index in kept), tuple(numbers[index] for index in kept)
    )
