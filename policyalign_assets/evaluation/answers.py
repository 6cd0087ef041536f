"""Answers of one model to a list of requests, kept in a file named by all they depend on.

After another training only the aligned model has to answer again. The policies of a domain share
the base model's answers to public benchmarks. After an edit of the policy most requests are as they
were, so a list takes from the lists before it what the same model has answered already.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from policyalign_assets.engine.base import (
    Chat,
    Engine,
    Generation,
    GuessingEngine,
    PromptTooLong,
    Sampling,
    TokenEngine,
)
from policyalign_assets.evaluation.lm_eval_harness import Weights
from policyalign_assets.files import write_parquet

_SCHEMA = pa.schema(
    [
        ("request", pa.string()),
        ("text", pa.string()),
        ("tokens", pa.int32()),
        ("truncated", pa.bool_()),
    ]
)
LOOKED_AT = 24  # lists of a model, the newest first, in which an answer is looked for
# Raise it when engines begin to answer differently for the same model, request and sampling.
CODE_VERSION = 2


@dataclass(frozen=True)
class Request:
    """A chat that ends with a message of the user.

    opening: how the answer must begin.
    guess: what it may be, such as the answer before an edit. It saves time, and decides nothing.
    """

    chat: Chat
    opening: str = ""
    guess: str = ""


Generate = Callable[[Engine, Sequence[Request], Sampling], Sequence[Generation | None]]


@dataclass(frozen=True)
class Answer:
    """`text` has the opening of its request before it; `tokens` counts what was generated.

    truncated: the answer was cut off at the limit of new tokens.
    """

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


def all_at_once(
    engine: Engine, requests: Sequence[Request], sampling: Sampling
) -> Sequence[Generation]:
    """Generates every answer in one call. Raises PromptTooLong if any request does not fit."""
    guessing = isinstance(engine, GuessingEngine) and any(r.guess for r in requests)
    if not any(r.opening for r in requests):
        chats = [r.chat for r in requests]
        if guessing:
            guesses = [r.guess for r in requests]
            return cast(GuessingEngine, engine).generate(chats, sampling, guesses=guesses)
        return engine.generate(chats, sampling)
    if not hasattr(engine, "generate_ids"):
        raise TypeError(f"{type(engine).__name__} cannot continue an answer that was begun")
    from policyalign_assets.engine.chat import content_ids, render

    token_engine = cast(TokenEngine, engine)
    tokenizer = token_engine.tokenizer
    begun = [content_ids(tokenizer, r.opening) if r.opening else [] for r in requests]
    prompts = [render(tokenizer, r.chat) + b for r, b in zip(requests, begun, strict=True)]
    if guessing:
        rest = [r.guess.removeprefix(r.opening) for r in requests]
        return cast(GuessingEngine, engine).generate_ids(prompts, sampling, guesses=rest)
    return token_engine.generate_ids(prompts, sampling)


def what_fits(
    engine: Engine, requests: Sequence[Request], sampling: Sampling
) -> list[Generation | None]:
    """As `all_at_once`, with None for each request that does not fit into the context.

    The engine refuses before any work, so trying halves costs little.
    """
    try:
        return list(all_at_once(engine, requests, sampling)) if requests else []
    except PromptTooLong:
        if len(requests) == 1:
            return [None]
    middle = len(requests) // 2
    first, second = requests[:middle], requests[middle:]
    return what_fits(engine, first, sampling) + what_fits(engine, second, sampling)


def answers(
    model: Model,
    requests: Sequence[Request],
    sampling: Sampling,
    store: Path | None,
    generate: Generate = all_at_once,
) -> list[Answer | None]:
    """One answer per request, in order. None where `generate` gave none.

    store: folder of answers. If it holds all of them, the model is not loaded. An answer is the
    same in any list but for rounding, which depends on the requests that are computed beside it.
    """
    if store is None:
        return _generated(model, requests, sampling, generate)
    names = [_digest([[(m.role, m.content) for m in r.chat], r.opening]) for r in requests]
    folder = store / _digest([CODE_VERSION, model.identity, asdict(sampling)])
    file = folder / f"{_digest(names)}.parquet"
    known = _kept(file, folder, set(names))
    missing = [i for i, name in enumerate(names) if name not in known]
    if missing:
        new = _generated(model, [requests[i] for i in missing], sampling, generate)
        known |= {names[i]: answer for i, answer in zip(missing, new, strict=True)}
    made = [known[name] for name in names]
    if not file.exists():
        empty = {"text": None, "tokens": None, "truncated": None}
        rows = [
            {"request": name, **(asdict(a) if a else empty)}
            for name, a in zip(names, made, strict=True)
        ]
        write_parquet(pa.Table.from_pylist(rows, schema=_SCHEMA), file)
    return made


def _generated(
    model: Model, requests: Sequence[Request], sampling: Sampling, generate: Generate
) -> list[Answer | None]:
    return [
        None
        if g is None
        else Answer(_whole(r.opening, g.text), len(g.token_ids), g.finish == "length")
        for r, g in zip(requests, generate(model.engine(), requests, sampling), strict=True)
    ]


def _kept(file: Path, folder: Path, names: set[str]) -> dict[str, Answer | None]:
    """The answers that this list, or else the newest other ones, hold, by request."""
    if file.exists():
        lists = [file]
    else:
        lists = sorted(folder.glob("*.parquet"), key=lambda f: f.stat().st_mtime, reverse=True)
    found: dict[str, Answer | None] = {}
    for one in lists[:LOOKED_AT]:
        for row in pq.read_table(one, schema=_SCHEMA).to_pylist():
            name = row.pop("request")
            if name in names and name not in found:
                found[name] = None if row["text"] is None else Answer(**row)
    return found


def _whole(opening: str, text: str) -> str:
    return f"{opening} {text.lstrip()}" if opening else text


def _digest(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
