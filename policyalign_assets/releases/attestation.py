"""Which model answers at an endpoint? Decided from its greedy answers to a release's canaries.

Each known model gives its own answer to a canary, but for rounding: another engine, batch or number
format turns a few. So a model that is served gives its kept answer with probability 1 - SLIP each
time, and an unknown one gives a kept answer with probability LIKENESS. The likeliest of the known
models and "another model" is the verdict. How often that errs follows from the canaries at hand,
by simulation.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from policyalign_assets.endpoint import (
    Asker,
    Endpoint,
    EndpointDown,
    EndpointRefuses,
    NotACompletion,
)
from policyalign_assets.releases.canaries import THIS, Canary
from policyalign_assets.releases.errors import ReleaseError
from policyalign_assets.settings import EndpointSettings

ANOTHER = "another model"
SLIP = 0.1  # an answer of the served model that is not the kept one
LIKENESS = 0.3  # a kept answer that an unknown model gives all the same
DRAWS = 4000  # simulated looks for the error rates
ASKED = 30


@dataclass(frozen=True)
class Attestation:
    """matches: how many canaries got the kept answer of each model, of how many it has one for.

    errors: by model, how often a look like this one would take it for another one.
    """

    verdict: str
    asked: int
    matches: dict[str, tuple[int, int]]
    log_likelihoods: dict[str, float]
    errors: dict[str, float]

    @property
    def is_this_release(self) -> bool:
        return self.verdict == THIS


def ask(settings: EndpointSettings, canaries: Sequence[Canary], max_tokens: int) -> list[str]:
    """The endpoint's greedy answers. Raises ReleaseError if one cannot be had."""
    endpoint = Endpoint(settings, "attest", f"the model {settings.model!r}")

    async def all_of(asker: Asker) -> list[str]:
        free = asyncio.Semaphore(settings.concurrency)

        async def one(canary: Canary) -> str:
            async with free:
                said = await asker.ask(
                    [{"role": "user", "content": canary.prompt}], max_tokens, 0.0, 0
                )
            return (said.text or "").strip()

        return list(await asyncio.gather(*map(one, canaries)))

    try:
        return endpoint.run(all_of)
    except (EndpointDown, EndpointRefuses, NotACompletion) as error:
        raise ReleaseError(
            f"The endpoint {settings.base_url} could not be asked: nothing is attested. {error}. "
            "Fix: check the address, --model and --key-variable, and that the server runs."
        ) from None


def judge(canaries: Sequence[Canary], answers: Sequence[str]) -> Attestation:
    """Which model gave these answers, one for each canary."""
    names = list(dict.fromkeys(name for canary in canaries for name in canary.answers))
    hits = {
        name: [
            None if name not in canary.answers else answer == canary.answers[name]
            for canary, answer in zip(canaries, answers, strict=True)
        ]
        for name in names
    }
    likelihoods = {name: _of_known(found) for name, found in hits.items()}
    known = [any(hits[name][i] for name in names) for i in range(len(canaries))]
    likelihoods[ANOTHER] = _of_another(sum(known), len(known))
    return Attestation(
        _likeliest(likelihoods),
        len(canaries),
        {
            n: (sum(h is True for h in found), sum(h is not None for h in found))
            for n, found in hits.items()
        },
        likelihoods,
        {},
    )


def attest(settings: EndpointSettings, canaries: Sequence[Canary], max_tokens: int) -> Attestation:
    """Asks the endpoint and decides, with the error rates of such a look."""
    found = judge(canaries, ask(settings, canaries, max_tokens))
    return replace(found, errors=error_rates(canaries))


def error_rates(canaries: Sequence[Canary], seed: int = 0) -> dict[str, float]:
    """How often each known model would be taken for another one, and an unknown one for a known.

    A slip counts as an answer that no known model gives: on a real server it hardly is another's.
    """
    draw = np.random.default_rng(seed)
    names = list(dict.fromkeys(name for canary in canaries for name in canary.answers))
    errors = {}
    for truth in [*names, ANOTHER]:
        wrong = 0
        for _ in range(DRAWS // 10 if len(canaries) > 100 else DRAWS):
            wrong += _simulated(canaries, truth, names, draw) != truth
        errors[truth] = wrong / (DRAWS // 10 if len(canaries) > 100 else DRAWS)
    return errors


def _simulated(
    canaries: Sequence[Canary], truth: str, names: Sequence[str], draw: np.random.Generator
) -> str:
    """The verdict on one simulated look at `truth`."""
    chance = draw.random(len(canaries))
    answers = []
    for canary, c in zip(canaries, chance, strict=True):
        if truth == ANOTHER:
            own = sorted(set(canary.answers.values()))
            answers.append(own[int(c / LIKENESS * len(own))] if c < LIKENESS else "")
        elif truth in canary.answers:
            answers.append(canary.answers[truth] if c >= SLIP else "")
        else:
            answers.append("")
    return judge(canaries, answers).verdict


def _of_known(hits: Sequence[bool | None]) -> float:
    """Log-likelihood. A canary without a kept answer of the model says nothing about it, and is
    weighed like an answer of an unknown model."""
    weights = {True: math.log(1 - SLIP), False: math.log(SLIP), None: math.log(1 - LIKENESS)}
    return sum(weights[hit] for hit in hits)


def _of_another(known: int, asked: int) -> float:
    return known * math.log(LIKENESS) + (asked - known) * math.log(1 - LIKENESS)


def _likeliest(likelihoods: Mapping[str, float]) -> str:
    """All of those that are alike: what cannot be told apart is not called this release."""
    best = max(likelihoods.values())
    ties = [name for name, value in likelihoods.items() if math.isclose(value, best)]
    return " or ".join(ties)
