"""Generation with Hugging Face transformers: runs anywhere, on CPU or GPU.

The decoding loop is our own. `generate` of transformers copies a shared policy into every row and
keeps decoding finished rows until the slowest one ends. Here the policy is computed once, and
finished rows leave the batch. On a CPU, each core decodes batches of its own (`engine/cpu/forks`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from policyalign_assets.engine.base import Chat, Generation, NotFinite, Progress, Sampling
from policyalign_assets.engine.chat import content_ids, render
from policyalign_assets.engine.choose_forward import forward_of
from policyalign_assets.engine.cpu.forks import batches_for, forks_for, spread
from policyalign_assets.engine.forward.protocol import Forward
from policyalign_assets.engine.forward.scoring import logits_held, prompt_prefix
from policyalign_assets.engine.forward.shared_prefix import Prefix, alike
from policyalign_assets.engine.loading import LoadedModel
from policyalign_assets.engine.responses import answer_if, check_lengths, finished
from policyalign_assets.engine.sampling import NO_TOKEN, choose, choose_surely, uniforms

CHARACTERS = 4  # of a token, about
GUESSES_TRIED = 64  # before all others
# From this share of right ones on, comparing all guesses takes less time than decoding.
GUESSES_RIGHT = 0.75


class TransformersEngine:
    """A `GuessingEngine` over a loaded model. A PEFT adapter on `loaded.model` is used as it is.

    Without `forward`, the engine makes its own and reads the model's current weights at every
    call. A caller who passes `forward` (over the same model) owns it, and must call its `read()`
    whenever the weights have changed.
    """

    takes_guesses = True

    def __init__(self, loaded: LoadedModel, batch_tokens: int, forward: Forward | None = None):
        self.loaded, self.batch_tokens = loaded, batch_tokens
        self._owns_forward = forward is None
        self.forward: Forward = forward or forward_of(loaded.model)
        self.model_id, self.revision = loaded.model_id, loaded.revision
        self.tokenizer, self.device = loaded.tokenizer, loaded.device.type

    def generate(
        self,
        chats: Sequence[Chat],
        sampling: Sampling,
        progress: Progress | None = None,
        guesses: Sequence[str] = (),
    ) -> list[Generation]:
        return self.generate_ids(self._rendered(chats), sampling, progress, guesses=guesses)

    def _rendered(self, chats: Sequence[Chat]) -> list[list[int]]:
        """The token ids of each chat, from forks where there are thousands of long ones."""
        about = [sum(len(m.content) for m in c) // CHARACTERS for c in chats]
        forks = forks_for(self.forward, about)
        size = max(1, math.ceil(len(chats) / (4 * forks)))
        parts = [chats[at : at + size] for at in range(0, len(chats), size)]

        def of_part(part: Sequence[Chat]) -> list[list[int]]:
            return [render(self.loaded.tokenizer, c) for c in part]

        made = dict(spread(of_part, parts, forks))
        return [ids for i in range(len(parts)) for ids in made[i]]

    @torch.inference_mode()
    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        sampling: Sampling,
        progress: Progress | None = None,
        rows: Sequence[int] | None = None,
        guesses: Sequence[str] = (),
    ) -> list[Generation]:
        """Like `generate`, from rendered prompts.

        See `TokenEngine.generate_ids` for `rows`, and `GuessingEngine` for `guesses`.

        Only the temperature shapes the distribution: sampling parameters in the model's own
        generation_config are ignored, because training needs samples of the model itself.
        Raises PromptTooLong before any work, and NotFinite.
        """
        check_lengths(prompts, sampling.max_new_tokens, self.loaded.context)
        if self._owns_forward:
            self.forward.read()
        most = sampling.max_new_tokens
        results: dict[int, Generation] = {}

        def note(i: int, tokens: Sequence[int]) -> None:
            results[i] = finished(tokens, self.loaded.end_ids, self.tokenizer)
            if progress:
                progress(len(results), len(prompts))

        with self.forward.applied():
            work = _Work(
                *self._shared(prompts),
                range(len(prompts)) if rows is None else rows,
                sampling,
                [content_ids(self.tokenizer, guess)[:most] for guess in guesses],
            )
            for i, tokens in self._guessed_right(work):
                note(i, tokens)
            left = [i for i in range(len(prompts)) if i not in results]
            lengths = [len(work.suffixes[i]) + most for i in left]
            for i, tokens in self._by_batch(self._decode, work, left, lengths):
                note(i, tokens)
        return [results[i] for i in range(len(prompts))]

    def _shared(
        self, prompts: Sequence[list[int]]
    ) -> tuple[list[Prefix | None], list[int], list[list[int]]]:
        """The prefixes that prompts share, which one each prompt has, and what follows it."""
        prefixes: list[Prefix | None] = []
        of_row, suffixes = [0] * len(prompts), list(prompts)
        for group in alike(prompts):
            prefix = prompt_prefix(self.forward, [prompts[i] for i in group])
            for i in group:
                of_row[i] = len(prefixes)
                suffixes[i] = prompts[i][prefix.length if prefix else 0 :]
            prefixes.append(prefix)
        return prefixes, of_row, suffixes

    def _guessed_right(self, work: _Work) -> Iterator[tuple[int, list[int]]]:
        """Yields (row, tokens) for each guess that is the answer.

        A few guesses are compared first. Where too many are wrong, the others are not.
        """
        guessed = [i for i, guess in enumerate(work.guesses) if guess]
        trial = guessed[:: max(1, len(guessed) // GUESSES_TRIED)]
        tried = set(trial)
        for rows in (trial, [i for i in guessed if i not in tried]):
            right = 0
            lengths = [len(work.suffixes[i]) + len(work.guesses[i]) for i in rows]
            for i, tokens in self._by_batch(self._compared, work, rows, lengths):
                if tokens:
                    right += 1
                    yield i, tokens
            if right < GUESSES_RIGHT * len(rows):
                return

    def _by_batch(
        self,
        do: Callable[[_Work, list[int]], list[list[int]]],
        work: _Work,
        rows: Sequence[int],
        lengths: Sequence[int],
    ) -> Iterator[tuple[int, list[int]]]:
        """Yields (row, its tokens by `do`) for all `rows`, in batches that fit into memory."""
        forks, todo = forks_for(self.forward, lengths), list[list[int]]()
        for prefix in range(len(work.prefixes)):  # of which a batch has one
            some = [j for j, row in enumerate(rows) if work.of_row[row] == prefix]
            batches = batches_for(forks, [lengths[j] for j in some], self.batch_tokens)
            todo += [[rows[some[k]] for k in batch] for batch in batches]
        while todo:
            too_large = []
            for at, made in spread(lambda batch: self._if_it_fits(do, work, batch), todo, forks):
                if made is None:
                    too_large.append(todo[at])
                else:
                    yield from zip(todo[at], made, strict=True)
            if too_large:
                self._halve()
            # Try again in halves. A row's answer does not depend on its batch.
            todo = [
                half
                for batch in too_large
                for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :])
            ]

    @staticmethod
    def _if_it_fits(
        do: Callable[[_Work, list[int]], list[list[int]]], work: _Work, batch: list[int]
    ) -> list[list[int]] | None:
        """What `do` makes of the batch, or None if it does not fit into memory.

        Raises OutOfMemoryError if a single row does not fit.
        """
        try:
            return do(work, batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        # Outside of `except`, because the error keeps the tensors of its frames alive.
        torch.cuda.empty_cache()
        return None

    def _halve(self) -> None:
        self.batch_tokens //= 2
        logging.getLogger(__name__).warning(
            "out of memory: generation continues with batches of %d tokens", self.batch_tokens
        )

    def _compared(self, work: _Work, batch: list[int]) -> list[list[int]]:
        """The tokens of each row's answer if it is surely the guess, or else none.

        In one pass over prompt and guess, the model chooses a token after each of theirs.
        """
        most, ends = work.sampling.max_new_tokens, self.loaded.end_ids
        rows = [[*work.suffixes[i], *work.guesses[i]] for i in batch]
        starts = [len(work.suffixes[i]) - 1 for i in batch]
        wanted = [slice(start, start + most) for start in starts]
        hidden_MD = self.forward.hidden(rows, wanted, work.prefix(batch))
        lengths = [len(row[part]) for row, part in zip(rows, wanted, strict=True)]
        uniform_BT = uniforms(work.sampling, [work.numbers[i] for i in batch])
        uniform_M = torch.cat(
            [row_T[:length] for row_T, length in zip(uniform_BT, lengths, strict=True)]
        ).to(hidden_MD.device)
        step = logits_held(self.forward)
        chosen = [
            choose_surely(
                self.forward.logits(hidden_MD[at : at + step]),
                work.sampling.temperature,
                uniform_M[at : at + step],
            )
            for at in range(0, len(hidden_MD), step)
        ]
        tokens_M, sure_M = (torch.cat(parts) for parts in zip(*chosen, strict=True))
        return [
            answer_if(work.guesses[i], tokens_m.tolist(), bool(sure_m.all()), ends, most)
            for i, tokens_m, sure_m in zip(
                batch, tokens_M.split(lengths), sure_M.split(lengths), strict=True
            )
        ]

    def _decode(self, work: _Work, batch: list[int]) -> list[list[int]]:
        """Each row's sampled tokens, including the end token."""
        ends, sampling, device = set(self.loaded.end_ids), work.sampling, self.loaded.device
        most = sampling.max_new_tokens
        suffixes = [work.suffixes[i] for i in batch]
        decoding = self.forward.decoding(suffixes, most, work.prefix(batch))
        out: list[list[int]] = [[] for _ in batch]
        live_rows = list(range(len(batch)))  # index into `out` for each row still decoding
        uniform_BT = uniforms(sampling, [work.numbers[i] for i in batch]).to(device)
        logits_BV = decoding.start()
        for t in range(most):
            next_B = choose(logits_BV, sampling.temperature, uniform_BT[:, t])
            tokens = next_B.tolist()
            if NO_TOKEN in tokens:
                raise NotFinite(f"model {self.model_id!r} gives logits that are not numbers")
            for row, token in zip(live_rows, tokens):
                out[row].append(token)
            live = [i for i, token in enumerate(tokens) if token not in ends]
            if not live or t + 1 == most:
                break
            if len(live) < len(live_rows):  # finished rows leave the batch
                live = _closed_up(live)
                live_b = torch.tensor(live, device=device)
                decoding.keep(live_b)
                live_rows = [live_rows[i] for i in live]
                next_B, uniform_BT = next_B[live_b], uniform_BT[live_b]
            logits_BV = decoding.step(next_B)
        return out


@dataclass(frozen=True)
class _Work:
    """What a call of the engine has to generate, by row.

    of_row: which of the `prefixes` the prompt has. suffixes: the prompts behind them.
    numbers: the rows' numbers, which select the random numbers.
    guesses: token ids of the answers that were guessed, without an end token; empty for none.
    """

    prefixes: list[Prefix | None]
    of_row: list[int]
    suffixes: list[list[int]]
    numbers: Sequence[int]
    sampling: Sampling
    guesses: list[list[int]]

    def prefix(self, batch: list[int]) -> Prefix | None:
        """The prefix of all rows of a batch."""
        return self.prefixes[self.of_row[batch[0]]]


def _closed_up(live: list[int]) -> list[int]:
    """These row numbers, in an order in which most rows stay where they are.

    The last rows fill the gaps of the finished ones, so that few keys and values must be moved.
    """
    kept, last = set(live), iter([i for i in live if i >= len(live)])
    return [i if i in kept else next(last) for i in range(len(live))]
