"""Answers of one model to a list of chats, kept in a file that is named by all they depend on.

After another training only the aligned model has to answer again. The policies of a domain share
the base model's answers to public benchmarks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from policyalign_assets.engine.base import Chat, Engine, Generation, Sampling
from policyalign_assets.evaluation.lm_eval_harness import Weights
from policyalign_assets.files import write_parquet

_SCHEMA = pa.schema([("text", pa.string()), ("tokens", pa.int32()), ("truncated", pa.bool_())])
# Raise it when engines begin to answer differently for the same model, chat and sampling.
CODE_VERSION = 1

Generate = Callable[[Engine, Sequence[Chat], Sampling], Sequence[Generation | None]]


@dataclass(frozen=True)
class Answer:
    """`truncated`: the answer was cut off at the limit of new tokens."""

    text: str
    tokens: int
    truncated: bool


@dataclass(frozen=True)
class Model:
    """One of the compared models.

    identity: names weights, adapter and number format. Models of one identity answer alike.
    engine: loads the model.
    weights: what another process would load, or None if no other process can load the model.
    """

    identity: str
    engine: Callable[[], Engine]
    weights: Weights | None = None


def all_at_once(engine: Engine, chats: Sequence[Chat], sampling: Sampling) -> Sequence[Generation]:
    """Generates every answer in one call. Raises PromptTooLong if any chat does not fit."""
    return engine.generate(chats, sampling)


def answers(
    model: Model,
    chats: Sequence[Chat],
    sampling: Sampling,
    store: Path | None,
    generate: Generate = all_at_once,
) -> list[Answer | None]:
    """One answer per chat, in order. None where `generate` gave none.

    store: folder of answers. If it holds these answers, the model is not loaded.
    """
    file = store / f"{_key(model, chats, sampling)}.parquet" if store else None
    if file and file.exists():
        rows = pq.read_table(file, schema=_SCHEMA).to_pylist()
        return [None if row["text"] is None else Answer(**row) for row in rows]
    made = [
        None if g is None else Answer(g.text, len(g.token_ids), g.finish == "length")
        for g in generate(model.engine(), chats, sampling)
    ]
    if file:
        empty = {"text": None, "tokens": None, "truncated": None}
        write_parquet(
            pa.Table.from_pylist([asdict(a) if a else empty for a in made], schema=_SCHEMA), file
        )
    return made


def _key(model: Model, chats: Sequence[Chat], sampling: Sampling) -> str:
    parts = [
        CODE_VERSION,
        model.identity,
        asdict(sampling),
        [[(m.role, m.content) for m in chat] for chat in chats],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
