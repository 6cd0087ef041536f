"""Which model answers at an endpoint? Decided from its greedy answers to a release's canaries.

Each known model gives its own answer to a canary, but for rounding: another engine, batch or number
format turns a few. So a model that is served gives its kept answer with probability 1 - SLIP each
time, and an unknown one gives a kept answer with probability LIKENESS. Where the server gives
log-probabilities, another answer than the kept one says more: rounding turns what was nearly as
likely (see `closeness`), and another model does so seldom. The likeliest of the known models and
"another model" is the verdict. How often it errs follows from the canaries, by simulation.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from policyalign_assets.endpoint import (
    Asker,
    Completion,
    Endpoint,
    EndpointDown,
    EndpointRefuses,
    NotACompletion,
    Token,
)
from policyalign_assets.releases.canaries import THIS, Canary
from policyalign_assets.releases.closeness import TOP, Closeness, closeness
from policyalign_assets.releases.errors import ReleaseError
from policyalign_assets.settings import EndpointSettings

ANOTHER = "another model"
SLIP = 0.1  # an answer of the served model that is not the kept one
LIKENESS = 0.3  # a kept answer that an unknown model gives all the same
NEAR_IN_SLIPS = 0.9  # of the slips of a served model: the kept answer was nearly as likely
NEAR_BY_CHANCE = 0.2  # of the other answers of another model: the kept answer was nearly as likely
DRAWS = 4000  # simulated looks for the error rates
ASKED = 30


@dataclass(frozen=True)
class Given:
    """An answer of the endpoint. `tokens`: with log-probabilities, where the server gives them."""

    text: str
    tokens: tuple[Token, ...] | None = None


@dataclass(frozen=True)
class Attestation:
    """matches: how many canaries got the kept answer of each model, of how many it has one for.

    near: of the others, how many were left where the kept answer was nearly as likely.
    with_log_probabilities: how many answers came with them; with none, the greedy text decides.
    errors: by model, how often a look like this one would take it for another one.
    """

    verdict: str
    asked: int
    matches: dict[str, tuple[int, int]]
    near: dict[str, int]
    with_log_probabilities: int
    log_likelihoods: dict[str, float]
    errors: dict[str, float]

    @property
    def is_this_release(self) -> bool:
        return self.verdict == THIS

    @property
    def decided_from(self) -> str:
        """What the verdict was decided from, and what the server did not give."""
        if self.with_log_probabilities == self.asked:
            return "greedy answers with log-probabilities"
        if not self.with_log_probabilities:
            return "greedy answers alone, since the server gives no log-probabilities"
        return (
            f"greedy answers, {self.with_log_probabilities} of {self.asked} with log-probabilities"
        )


def ask(settings: EndpointSettings, canaries: Sequence[Canary], max_tokens: int) -> list[Given]:
    """The endpoint's greedy answers, with log-probabilities where it gives them.

    A server that refuses to give them is asked without. Raises ReleaseError if an answer cannot be
    had.
    """
    endpoint = Endpoint(settings, "attest", f"the model {settings.model!r}")

    async def all_of(asker: Asker) -> list[Given]:
        free = asyncio.Semaphore(settings.concurrency)

        async def one(canary: Canary, top: int | None) -> Completion:
            async with free:
                message = {"role": "user", "content": canary.prompt}
                return await asker.ask([message], max_tokens, 0.0, 0, top)

        top: int | None = TOP
        try:
            first = await one(canaries[0], top)
        except EndpointRefuses:
            top = None
            first = await one(canaries[0], top)
        rest = await asyncio.gather(*(one(canary, top) for canary in canaries[1:]))
        return [Given((said.text or "").strip(), said.tokens) for said in (first, *rest)]

    try:
        return endpoint.run(all_of)
    except (EndpointDown, EndpointRefuses, NotACompletion) as error:
        raise ReleaseError(
            f"The endpoint {settings.base_url} could not be asked: nothing is attested. {error}. "
            "Fix: check the address, --model and --key-variable, and that the server runs."
        ) from None


def judge(canaries: Sequence[Canary], answers: Sequence[Given]) -> Attestation:
    """Which model gave these answers, one for each canary."""
    names = list(dict.fromkeys(name for canary in canaries for name in canary.answers))
    found = {
        name: [
            closeness(canary.answers.get(name), given.text, given.tokens)
            for canary, given in zip(canaries, answers, strict=True)
        ]
        for name in names
    }
    likelihoods = {name: sum(map(_of_known, those)) for name, those in found.items()}
    likelihoods[ANOTHER] = sum(map(_of_another, zip(*found.values(), strict=True)))
    return Attestation(
        _likeliest(likelihoods),
        len(canaries),
        {n: (f.count("same"), len(f) - f.count("unknown")) for n, f in found.items()},
        {n: f.count("near") for n, f in found.items()},
        sum(given.tokens is not None for given in answers),
        likelihoods,
        {},
    )


def attest(settings: EndpointSettings, canaries: Sequence[Canary], max_tokens: int) -> Attestation:
    """Asks the endpoint and decides, with the error rates of such a look."""
    found = judge(canaries, ask(settings, canaries, max_tokens))
    return replace(found, errors=error_rates(canaries))


def error_rates(canaries: Sequence[Canary], seed: int = 0) -> dict[str, float]:
    """How often each known model would be taken for another one, and an unknown one for a known.

    By the text of the answers alone; log-probabilities only help. A slip counts as an answer that
    no known model gives: on a real server it hardly is another's.
    """
    draw = np.random.default_rng(seed)
    names = list(dict.fromkeys(name for canary in canaries for name in canary.answers))
    draws = DRAWS // 10 if len(canaries) > 100 else DRAWS
    tables = [_table(canary, names) for canary in canaries]
    return {
        truth: _mistaken(truth, canaries, tables, names, draw.random((draws, len(canaries))))
        for truth in [*names, ANOTHER]
    }


def _texts(canary: Canary) -> list[str]:
    """What a simulated look may be given for a canary: an answer of a known model, or another."""
    return [*sorted(set(canary.answers.values())), ""]


def _table(canary: Canary, names: Sequence[str]) -> np.ndarray:
    """Log-likelihoods (texts, models): of each text of `_texts`, under each of `names` and
    ANOTHER."""
    rows = []
    for text in _texts(canary):
        found = [closeness(canary.answers.get(name), text, None) for name in names]
        rows.append([*map(_of_known, found), _of_another(found)])
    return np.array(rows)


def _mistaken(
    truth: str,
    canaries: Sequence[Canary],
    tables: Sequence[np.ndarray],
    names: Sequence[str],
    chance_LC: np.ndarray,
) -> float:
    """The share of simulated looks at `truth` with another verdict.

    chance_LC: uniform random numbers, (looks, canaries).
    """
    likelihoods = np.zeros((len(chance_LC), len(names) + 1))  # (looks, models)
    for canary, table, chance in zip(canaries, tables, chance_LC.T, strict=True):
        *own, _ = _texts(canary)
        other = len(own)  # the place of the text that no known model gives
        if truth == ANOTHER:
            text = np.where(chance < LIKENESS, chance / LIKENESS * len(own), other).astype(int)
        elif truth in canary.answers:
            text = np.where(chance < SLIP, other, own.index(canary.answers[truth]))
        else:
            text = np.full(len(chance), other)
        likelihoods += table[text]
    verdicts = (_likeliest(dict(zip([*names, ANOTHER], row))) for row in likelihoods.tolist())
    return sum(verdict != truth for verdict in verdicts) / len(chance_LC)


_KNOWN: dict[Closeness, float] = {
    "same": math.log(1 - SLIP),
    "near": math.log(SLIP * NEAR_IN_SLIPS),
    "far": math.log(SLIP * (1 - NEAR_IN_SLIPS)),
    "different": math.log(SLIP),
    # no kept answer says nothing about the model, and is weighed like one of an unknown model
    "unknown": math.log(1 - LIKENESS),
}


def _of_known(found: Closeness) -> float:
    """Log-likelihood of an answer if the model is served whose kept answer it is compared with."""
    return _KNOWN[found]


def _of_another(found: Sequence[Closeness]) -> float:
    """Log-likelihood of an answer of an unknown model. found: towards each known model."""
    if "same" in found:
        return math.log(LIKENESS)
    if "near" in found:
        return math.log((1 - LIKENESS) * NEAR_BY_CHANCE)
    if "far" in found:
        return math.log((1 - LIKENESS) * (1 - NEAR_BY_CHANCE))
    return math.log(1 - LIKENESS)


def _likeliest(likelihoods: Mapping[str, float]) -> str:
    """All of those that are alike: what cannot be told apart is not called this release."""
    best = max(likelihoods.values())
    ties = [name for name, value in likelihoods.items() if math.isclose(value, best)]
    return " or ".join(ties)
