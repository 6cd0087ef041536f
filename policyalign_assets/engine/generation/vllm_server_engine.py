"""Generation by one or more `vllm serve` processes (`model.engine=vllm-server`, `model.servers`).

Prompts are passed as token ids from the same `render` as everywhere else, one request a row, and
answers come back as token ids with their log-probabilities. A row's random numbers depend on seed
and row alone, as with the `vllm` engine. So answers do not depend on how many servers there are or
which one a row went to, except for rounding: a server that computes a row in another batch may add
up in another order, and a token that was nearly as likely may then be drawn.

The engine holds no weights in this process, so several training processes can use the same servers.
"""

from __future__ import annotations

import hashlib
import logging
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from policyalign_assets.engine.base import Chat, Generation, NotFinite, Progress, Sampling
from policyalign_assets.engine.chat import render
from policyalign_assets.engine.generation.adapter_versions import AdapterVersions
from policyalign_assets.engine.generation.replicas import NAME, Adapter, Replicas
from policyalign_assets.engine.generation.server_requests import ServerRefuses
from policyalign_assets.engine.loading import describe, model_path
from policyalign_assets.engine.responses import check_lengths, finished
from policyalign_assets.engine.sampling import seed_of_row
from policyalign_assets.settings import ModelSettings

# Of each token of a response: the log-probabilities of the likeliest tokens there, and of itself.
TopLogProbs = list[dict[int, float]]

ANSWERED_OTHERWISE = "Fix: use `vllm serve` of vllm 0.32, as docs/deploy.md starts it."


Result = TypeVar("Result")


class VllmServerEngine:
    """A `TokenEngine` that asks servers for the base model or, after `use_adapter`, an adapter.

    `context` is the smallest of the model's and the servers' contexts, in tokens.
    Raises ServersDown, ServerRefuses (another model), SettingsError (a host that is not allowed),
    ModelNotFound.
    """

    device = "server"

    def __init__(self, settings: ModelSettings):
        description = describe(settings)
        self.tokenizer, self.end_ids = description.tokenizer, description.end_ids
        self._base_revision = self.revision = description.revision
        self.model_id, self.replicas = settings.id, len(settings.servers)
        self._folder = Path(settings.adapters_dir) if settings.adapters_dir else None
        self._versions: AdapterVersions | None = None
        self._run = secrets.token_hex(4)
        self._mine: Adapter | None = None  # the adapter that this process gave to the servers
        self._replicas = Replicas(settings, [settings.id, model_path(settings)])
        self._replicas.run(lambda session: session.check())
        self.context = min(
            description.context, *(r.context for r in self._replicas.all if r.context)
        )

    @property
    def away(self) -> int:
        """How many of the servers did not answer last."""
        return sum(r.away_until > 0 for r in self._replicas.all)

    def describe_servers(self) -> list[str]:
        """A line about each server: its address, vLLM's version, and why it is away."""
        return [
            f"{r.address}: "
            + (r.why if r.away_until else f"vLLM {r.version}, context of {r.context:,} tokens")
            for r in self._replicas.all
        ]

    # ---- adapters --------------------------------------------------------------------------------

    def use_adapter(self, write: Callable[[Path], object] | None, version: str = "adapter") -> None:
        """Answers from now on with the PEFT adapter that `write` saves into the given folder.

        With None, answers with the base model. The adapter's name at the servers holds the hash of
        its files, and the one before is unloaded. Raises ServerRefuses, ServersDown.
        """
        self.adopt(None)
        if not write:
            return
        if self._versions is None:
            self._versions = versions = AdapterVersions(self._folder)
            self._replicas.run(lambda session: session.sweep(versions.beginning))
        _, path = self._versions.put(write)
        name = f"{NAME}{self._run}-{_hash_of(path)}"
        old, self._mine = self._mine, Adapter(name, path, f"{self._base_revision}+{version}")
        self.adopt(self._mine)
        replaced = old if old and old.name != name else None
        self._replicas.run(lambda session: session.load_everywhere(replaced))

    @property
    def adapter(self) -> Adapter | None:
        """What the servers answer with; None for the base model."""
        return self._replicas.adapter

    def adopt(self, adapter: Adapter | None) -> None:
        """Answers from now on with an adapter that another process gave to the servers."""
        self._replicas.adapter = adapter
        self.revision = adapter.revision if adapter else self._base_revision

    # ---- answers ---------------------------------------------------------------------------------

    def generate(
        self, chats: Sequence[Chat], sampling: Sampling, progress: Progress | None = None
    ) -> list[Generation]:
        return self.generate_ids([render(self.tokenizer, c) for c in chats], sampling, progress)

    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        progress: Progress | None = None,
        rows: Sequence[int] | None = None,
    ) -> list[Generation]:
        """See `TokenEngine`; raises also ServersDown, ServerRefuses and NotFinite."""
        return self.with_log_probs(prompts, sampling, progress, rows)[0]

    def with_log_probs(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        progress: Progress | None = None,
        rows: Sequence[int] | None = None,
    ) -> tuple[list[Generation], list[list[float]]]:
        """Like `generate_ids`, with the sampled tokens' log-probabilities at temperature 1."""
        generations, tops = self.with_top_log_probs(prompts, sampling, 0, progress, rows)
        return generations, [
            [top[token] for top, token in zip(of_row, made.token_ids, strict=True)]
            for of_row, made in zip(tops, generations, strict=True)
        ]

    def with_top_log_probs(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        top: int,
        progress: Progress | None = None,
        rows: Sequence[int] | None = None,
    ) -> tuple[list[Generation], list[TopLogProbs]]:
        """Like `generate_ids`, with the `top` likeliest tokens of each place at temperature 1."""
        check_lengths(prompts, sampling.max_new_tokens, self.context)
        row_numbers = list(range(len(prompts)) if rows is None else rows)
        requests = [
            self._request(prompt, sampling, row) | {"logprobs": top}
            for prompt, row in zip(prompts, row_numbers, strict=True)
        ]

        def read(reply: Mapping[str, Any], n: int) -> tuple[list[int], TopLogProbs]:
            return self._read(reply, prompts[n], sampling.max_new_tokens, top)

        made = self._asked(requests, row_numbers, read, progress)
        return (
            [finished(tokens, self.end_ids, self.tokenizer) for tokens, _ in made],
            [tops for _, tops in made],
        )

    def read_responses(
        self,
        prompts: Sequence[list[int]],
        responses: Sequence[Sequence[int]],
        top: int,
        rows: Sequence[int] | None = None,
    ) -> list[TopLogProbs]:
        """The `top` likeliest tokens at each place of given responses, at temperature 1.

        The server reads prompt and response as one prompt, and answers with one token more. It
        computes the whole prompt, since what it keeps of a prefix holds no log-probabilities.
        Raises PromptTooLong, ServersDown, ServerRefuses and NotFinite.
        """
        read_too = [[*p, *r] for p, r in zip(prompts, responses, strict=True)]
        check_lengths(read_too, 1, self.context)
        row_numbers = list(range(len(prompts)) if rows is None else rows)
        requests = [
            self._request(prompt, Sampling(1), row) | {"logprobs": None, "prompt_logprobs": top}
            for prompt, row in zip(read_too, row_numbers, strict=True)
        ]

        def read(reply: Mapping[str, Any], n: int) -> TopLogProbs:
            return self._read_prompt(reply, read_too[n], len(prompts[n]), top)

        return self._asked(requests, row_numbers, read, None)

    def _asked(
        self,
        requests: Sequence[dict[str, Any]],
        rows: Sequence[int],
        read: Callable[[Mapping[str, Any], int], Result],
        progress: Progress | None,
    ) -> list[Result]:
        if not requests:
            return []

        def done(finished_rows: int) -> None:
            if progress:
                progress(finished_rows, len(requests))

        return self._replicas.run(lambda session: session.answers(requests, rows, read, done))

    def close(self) -> None:
        """Takes this process's adapter from the servers, and removes its files."""
        try:
            if mine := self._mine:
                self._replicas.run(lambda session: session.unload_everywhere(mine.name))
        except Exception as error:  # the work itself is done, or has failed with its own reason
            logging.getLogger(__name__).warning("an adapter stays at the servers: %s", error)
        finally:
            if self._versions:
                self._versions.close()

    def _request(self, prompt: list[int], sampling: Sampling, row: int) -> dict[str, Any]:
        # Everything that shapes the distribution is named: the server's own defaults must not.
        return {
            "prompt": list(prompt),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "seed": seed_of_row(sampling, row) if sampling.temperature else None,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": list(self.end_ids),
            "n": 1,
            "logprobs": 0,  # of the sampled token only
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,  # no text of a token is needed
        }

    def _read(
        self, reply: Mapping[str, Any], prompt: list[int], longest: int, top: int
    ) -> tuple[list[int], TopLogProbs]:
        """Tokens and log-probabilities of an answer. Raises ServerRefuses and NotFinite."""
        tops: list[dict[int, Any]]
        try:
            (choice,) = reply["choices"]
            tokens, read = choice["token_ids"], choice["prompt_token_ids"]
            log_probs, how = choice["logprobs"]["token_logprobs"], choice["finish_reason"]
            fits = (
                all(type(t) is int and t >= 0 for t in tokens)
                and 0 < len(tokens) == len(log_probs) <= longest
            )
            listed = choice["logprobs"]["top_logprobs"] if top else [{}] * len(log_probs)
            tops = [
                {int(name.removeprefix("token_id:")): p for name, p in of_token.items()}
                | {token: own}
                for of_token, token, own in zip(listed, tokens, log_probs, strict=True)
            ]
            fits = fits and all(len(of_token) >= top for of_token in tops)
        except (KeyError, TypeError, ValueError, AttributeError):
            fits = False
        if not fits:
            raise ServerRefuses(
                "a server of model.servers does not reply with token ids and their "
                f"log-probabilities. {ANSWERED_OTHERWISE}"
            )
        self._require_tokens(read, prompt)
        self._require_numbers(tops)
        if how == "stop" and tokens[-1] not in self.end_ids:
            raise ServerRefuses(
                "a server of model.servers ends answers at tokens of its own. Fix: start it with "
                "--generation-config vllm, and no other stop tokens."
            )
        if how not in ("stop", "length") or (how == "length" and len(tokens) < longest):
            raise ServerRefuses(
                f"a server of model.servers broke off an answer ({how!r} after {len(tokens)} "
                f"tokens). {ANSWERED_OTHERWISE}"
            )
        return tokens, tops

    def _read_prompt(
        self, reply: Mapping[str, Any], prompt: list[int], start: int, top: int
    ) -> TopLogProbs:
        """What a reply lists from the prompt's token `start` on. Raises as `_read` does."""
        tops: list[dict[int, Any]]
        try:
            (choice,) = reply["choices"]
            listed, read = choice["prompt_logprobs"], choice["prompt_token_ids"]
            tops = [
                {int(token): entry["logprob"] for token, entry in of_token.items()}
                for of_token in listed[start:]
            ]
            fits = len(listed) == len(prompt) and all(
                token in of_token and len(of_token) >= top
                for token, of_token in zip(prompt[start:], tops, strict=True)
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            fits = False
        if not fits:
            raise ServerRefuses(
                "a server of model.servers does not reply with the log-probabilities of a prompt. "
                f"{ANSWERED_OTHERWISE}"
            )
        self._require_tokens(read, prompt)
        self._require_numbers(tops)
        return tops

    def _require_tokens(self, read: object, sent: list[int]) -> None:
        if read != list(sent):
            raise ServerRefuses(
                "a server of model.servers has read other tokens than those it was sent. "
                f"{ANSWERED_OTHERWISE}"
            )

    def _require_numbers(self, tops: Sequence[Mapping[int, Any]]) -> None:
        values = [p for of_token in tops for p in of_token.values()]
        if any(type(p) not in (int, float) or not math.isfinite(p) for p in values):
            raise NotFinite(
                f"model {self.model_id!r} gives logits that are not numbers (start the servers "
                "again before another attempt, since their cache may keep them)"
            )


def _hash_of(folder: Path) -> str:
    """A hash of names and content of an adapter's files: 16 characters."""
    made = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        made.update(f"{file.relative_to(folder)} {content}\n".encode())
    return made.hexdigest()[:16]
