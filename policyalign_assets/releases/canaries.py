"""Canaries: requests whose greedy answers tell a release from its base and from the release before.

They are chosen at random from the answers that the bundle holds, so another release has others.
They lie beside the bundle, not in it, in a file that its owner alone can read: a server that knows
them could answer them from a list. The release key signs them.
"""

from __future__ import annotations

import json
import os
import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from policyalign_assets.evaluation.suites import ALIGNED, BASE, SUITES
from policyalign_assets.files import write_whole
from policyalign_assets.releases import answers as kept
from policyalign_assets.releases.errors import ReleaseError
from policyalign_assets.releases.keys import (
    is_signed_by,
    key_id,
    load_private_key,
    load_public_key,
    sign_text,
)
from policyalign_assets.releases.record import bundle_id, read_record

POOL = 60  # kept; a look asks about 30 of them
FEWEST = 10  # with fewer that tell this release from its base, no verdict would be worth much

THIS, OF_BASE, PREVIOUS = "this release", "the base model", "the previous release"


@dataclass(frozen=True)
class Canary:
    """A request, and the greedy answer of each known model that answers it."""

    prompt: str
    answers: dict[str, str]  # by THIS, OF_BASE, PREVIOUS


@dataclass(frozen=True)
class Canaries:
    """`previous`: the bundle of the release before, or None. `max_tokens`: of an answer."""

    bundle_id: str
    target: str
    previous: str | None
    max_tokens: int
    canaries: tuple[Canary, ...]


def canaries_file(bundle: Path) -> Path:
    """Where the canaries of a bundle lie: beside it."""
    return bundle.absolute().parent / f"{bundle.absolute().name}.canaries.json"


def write_canaries(bundle: Path, previous: Path | None, private_key: Path) -> Path | None:
    """Chooses, signs and writes the canaries of a new bundle.

    previous: the bundle of the release before. None where too few answers differ from the base's.
    """
    record = read_record(bundle)
    before = _stored(previous) if previous else []
    chosen = choose(_stored(bundle), before, secrets.SystemRandom())
    if chosen is None:
        return None
    place = record.place(bundle, record.policies[0])  # all policies are asked with one limit
    limit = kept.judged(place, record.checkpoint_id).asked.settings["evaluation"]["max_new_tokens"]
    found = Canaries(
        bundle_id(bundle), record.target, bundle_id(previous) if previous else None, limit, chosen
    )
    key = load_private_key(private_key)
    text = json.dumps(asdict(found), sort_keys=True)
    signed = {
        "canaries": text,
        "key_id": key_id(key.public_key()),
        "signature": sign_text(key, text),
    }
    file = canaries_file(bundle)
    write_whole(file, (json.dumps(signed, indent=1) + "\n").encode())
    os.chmod(file, 0o600)
    return file


def read_canaries(file: Path, bundle: Path, public_keys: Sequence[Path]) -> Canaries:
    """Raises ReleaseError unless a trusted key signed the canaries for this very bundle."""
    keys = {key_id(key): key for key in map(load_public_key, public_keys)}
    try:
        signed = json.loads(file.read_text(encoding="utf-8"))
        text = signed["canaries"]
        good = signed["key_id"] in keys and is_signed_by(
            keys[signed["key_id"]], text, signed["signature"]
        )
        found = TypeAdapter(Canaries).validate_json(text)
    except FileNotFoundError:
        raise ReleaseError(
            f"{file} is missing. Fix: copy it from where the release was made, and name it with "
            "--canaries."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise ReleaseError(
            f"{file} cannot be read ({type(error).__name__}). Fix: restore it from a copy."
        ) from None
    if not good:
        raise ReleaseError(f"{file} is not signed by a trusted key. Fix: do not use it.")
    if found.bundle_id != bundle_id(bundle):
        raise ReleaseError(f"{file} belongs to another bundle. Fix: name that of this bundle.")
    return found


def choose(
    rows: Sequence[Mapping[str, Any]],
    previous: Sequence[Mapping[str, Any]],
    draw: random.Random,
    most: int = POOL,
) -> tuple[Canary, ...] | None:
    """Requests that this release answers otherwise than its base, those first that the previous
    release answers otherwise too. None if there are fewer than FEWEST.

    rows, previous: of GENERATIONS.
    """
    this, base = _answers(rows, ALIGNED), _answers(rows, BASE)
    old = _answers(previous, ALIGNED)
    found = [
        Canary(
            prompt,
            {THIS: this[prompt], OF_BASE: base[prompt]}
            | ({PREVIOUS: old[prompt]} if prompt in old else {}),
        )
        for prompt in sorted(this.keys() & base.keys())
    ]
    draw.shuffle(found)
    telling = [c for c in found if c.answers[THIS] != c.answers[OF_BASE]]
    if len(telling) < FEWEST:
        return None
    # of those that tell the two releases apart, whatever the base answers, up to half
    apart = [c for c in found if c.answers.get(PREVIOUS, c.answers[THIS]) != c.answers[THIS]]
    both = [c for c in apart if c in telling]
    first = (both + [c for c in apart if c not in both])[: most if len(both) >= most else most // 2]
    rest = [c for c in telling if c not in first]
    chosen = (first + rest)[:most]
    draw.shuffle(chosen)
    return tuple(chosen)


def _stored(bundle: Path) -> list[dict[str, Any]]:
    """The answers in a bundle, under all of its policies."""
    record = read_record(bundle)
    return [
        row
        for policy in record.policies
        for row in kept.read_answers(record.place(bundle, policy)).generations.to_pylist()
    ]


def _answers(rows: Sequence[Mapping[str, Any]], arm: str) -> dict[str, str]:
    """{request: answer} of single requests that were answered to the end. A request that has two
    answers, as in two suites with other openings, is left out.
    """
    found: dict[str, set[str]] = {}
    for row in rows:
        if row["arm"] != arm or row["prompt"] is None or row["conversation"]:
            continue
        if row["suite"] and SUITES[row["suite"]].probe:
            continue  # some have a system message or a begun answer
        if row["response"] and not row["truncated"] and not row["unanswered"]:
            found.setdefault(row["prompt"], set()).add(row["response"].strip())
    return {prompt: texts.pop() for prompt, texts in found.items() if len(texts) == 1}
