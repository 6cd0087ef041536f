"""Rule sentences in the forms that organisations write, each with the reading that it must get.

The table stands in `rule_sentences.txt`. Every sentence counts as one test; those of the table that
are known to be misread would be listed here, and at most 5 % may be.
"""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from policyalign_assets.policy.reading.reader import Surroundings, read_rule

TABLE = Path(__file__).parent / "rule_sentences.txt"
MISREAD: frozenset[str] = frozenset()


class Expected(NamedTuple):
    """One line of the table."""

    text: str
    surroundings: Surroundings
    kind: str
    forbids: bool
    action: str | None
    condition: str | None
    exceptions: tuple[str, ...]


def expected(line: str) -> Expected:
    said, _, reading = line.partition(" => ")
    found = re.fullmatch(r"(?:\[(?P<heading>.+?)\] )?(?:\{(?P<lead>.+?)\} )?(?P<text>.+)", said)
    assert found is not None, line
    kind, *rest = [part.strip() for part in reading.split("|")]
    named = dict(p.split(": ", 1) for p in rest if p.startswith(("when: ", "except: ")))
    action = next((p for p in rest if p and not p.startswith(("when: ", "except: "))), None)
    return Expected(
        found["text"],
        Surroundings(
            (found["lead"],) if found["lead"] else (),
            (found["heading"],) if found["heading"] else (),
        ),
        kind.rstrip("+-"),
        kind in ("prohibit", "condition-"),
        action,
        named.get("when"),
        (named["except"],) if "except" in named else (),
    )


LINES = [
    line
    for line in TABLE.read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("# ") and line != "#"
]


@pytest.mark.parametrize("line", LINES)
def test_a_rule_sentence_is_read_right(line: str) -> None:
    if line in MISREAD:
        pytest.xfail("known to be misread")
    wanted = expected(line)
    got = read_rule(wanted.text, wanted.surroundings)
    assert (got.kind, got.forbids) == (wanted.kind, wanted.forbids)
    if wanted.action is not None:
        assert (got.action or got.demand) == wanted.action
    elif not wanted.forbids:
        assert got.action is None
    assert (got.condition, got.exceptions) == (wanted.condition, wanted.exceptions)


def test_the_table_is_large_and_read_right_nearly_throughout() -> None:
    assert len(LINES) >= 150
    assert len(MISREAD) <= 0.05 * len(LINES)
