"""How far the policy shifts the model on each instruction (Policy-Sensitive Filtering).

The paper leaves the score open. All candidates come from the same forward passes, each in a column:

* `reverse_kl`: mean token KL(student || teacher) on a response sampled without the policy, which
  is the training objective itself; `reverse_kl_p90` is its 90th percentile over tokens, and `js`
  the Jensen-Shannon divergence on the same tokens (bounded by log 2)
* `forward_kl`: mean token KL(teacher || student) on a response sampled with the policy
* `jeffreys`: the sum of `reverse_kl` and `forward_kl`
* `flip` (see `flips`): answered without the policy, refused with it

Raise `CODE_VERSION` (`version.py`) when a change here changes these columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from policyalign_assets.engine.base import (
    Generation,
    GuessingEngine,
    Progress,
    Sampling,
    TokenEngine,
    chat,
)
from policyalign_assets.engine.chat import content_ids, render
from policyalign_assets.engine.choose_forward import forward_of
from policyalign_assets.engine.cpu.forks import batches_for, forks_for, spread
from policyalign_assets.engine.forward.protocol import Forward
from policyalign_assets.engine.forward.scoring import (
    logits_held,
    prompt_prefix,
    response_hidden,
)
from policyalign_assets.engine.loading import LoadedModel
from policyalign_assets.engine.responses import answer_if, check_lengths, finished
from policyalign_assets.engine.sampling import choose_surely, uniforms
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.sensitivity.divergences import TokenDivergences, token_divergences
from policyalign_assets.sensitivity.partial_scores import PartialScores
from policyalign_assets.settings import SensitivitySettings
from policyalign_assets.tables import SENSITIVITY

GUESSES_TRIED = 64  # instructions whose earlier responses are compared before all others


def score_instructions(
    policy: PolicyDocument,
    instructions: pa.Table,
    loaded: LoadedModel,
    engine: TokenEngine,
    settings: SensitivitySettings,
    batch_tokens: int,
    progress: Progress | None = None,
    parts: PartialScores | None = None,
    earlier: pa.Table | None = None,
) -> pa.Table:
    """Returns a SENSITIVITY table, one row per instruction in their order.

    Scores of an empty response are null; what a judge decides is null until `with_flips`. With
    `parts`, rows are saved as they are computed: a killed call continues there, and the table is
    read from there.
    earlier: rows of SENSITIVITY from before an edit, in any order. Most responses stay as they
        were, and the pass that scores them shows so. They decide no response.
    Raises PromptTooLong; for the longest text before any work.
    """
    scorer = _Scorer(
        loaded,
        forward_of(loaded.model),
        engine,
        settings,
        batch_tokens,
        _responses(earlier) if isinstance(engine, GuessingEngine) else {},
    )
    scorer.forward.read()
    parts = parts or PartialScores()
    longest = max(instructions["text"].to_pylist(), key=len, default="")
    check_lengths(
        scorer.prompts([longest], policy.prompt_text), settings.max_new_tokens, loaded.context
    )
    for start, part in parts.remaining(instructions):
        rows = scorer.rows(part, start, policy.prompt_text)
        parts.save(start, pa.Table.from_pylist(rows, schema=SENSITIVITY))
        if progress:
            progress(start + part.num_rows, instructions.num_rows)
    return parts.table(SENSITIVITY)


def rows_of(
    part: pa.Table,
    generations: tuple[Sequence[Generation], Sequence[Generation]],
    divergences: tuple[Sequence[TokenDivergences | None], Sequence[TokenDivergences | None]],
    made_with: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """The rows of SENSITIVITY for a part of the instructions.

    Both pairs are the student's and the teacher's: their responses, and the divergences on each.
    """
    columns = ["instruction_id", "rule_id", "kind", "text", "policy_hash"]
    return [
        row | _scores(student, teacher, on_student, on_teacher) | made_with
        for row, student, teacher, on_student, on_teacher in zip(
            part.select(columns).to_pylist(), *generations, *divergences, strict=True
        )
    ]


def _scores(
    student: Generation,
    teacher: Generation,
    on_student: TokenDivergences | None,
    on_teacher: TokenDivergences | None,
) -> dict[str, Any]:
    """The score columns, from the divergences on the student's and the teacher's response."""
    reverse_kl = on_student.reverse_M.mean().item() if on_student else None
    forward_kl = on_teacher.forward_M.mean().item() if on_teacher else None
    return {
        "student_response": student.text,
        "teacher_response": teacher.text,
        "student_tokens": len(student.token_ids),
        "teacher_tokens": len(teacher.token_ids),
        "student_refused": None,
        "teacher_refused": None,
        "flip": None,
        "reverse_kl": reverse_kl,
        "reverse_kl_p90": on_student.reverse_M.quantile(0.9).item() if on_student else None,
        "forward_kl": forward_kl,
        "js": on_student.js_M.mean().item() if on_student else None,
        "jeffreys": None if reverse_kl is None or forward_kl is None else reverse_kl + forward_kl,
    }


Pair = tuple[str, str]  # the student's response and the teacher's
SIDES = (0, 1)


def _responses(earlier: pa.Table | None) -> dict[str, Pair]:
    """The pair of responses to each instruction."""
    if earlier is None:
        return {}
    names = ("text", "student_response", "teacher_response")
    rows = zip(*(earlier[name].to_pylist() for name in names), strict=True)
    return {text: (student or "", teacher or "") for text, student, teacher in rows}


@dataclass(frozen=True)
class _Item:
    """A response of one instruction, to be read by both sides.

    row: of the part. side: whose response it is. tokens: of the response; of a guess, without its
    end token. guess: whether it is yet to be seen if that side gives it.
    """

    row: int
    side: int
    tokens: tuple[int, ...]
    guess: bool = False


class _Read(NamedTuple):
    """What a pass over a response shows. `tokens` are those of a guess that is right, else none."""

    tokens: list[int]
    divergences: TokenDivergences


@dataclass(frozen=True)
class _Scorer:
    loaded: LoadedModel
    forward: Forward
    engine: TokenEngine
    settings: SensitivitySettings
    batch_tokens: int
    earlier: Mapping[str, Pair]

    def prompts(self, texts: Sequence[str], system: str | None = None) -> list[list[int]]:
        return [render(self.loaded.tokenizer, chat(t, system)) for t in texts]

    def rows(self, part: pa.Table, start: int, policy_text: str) -> list[dict[str, Any]]:
        """The rows of `part`, whose first row is number `start` of the whole table."""
        texts = part["text"].to_pylist()
        settings, n = self.settings, part.num_rows
        work = _Part(
            (self.prompts(texts), self.prompts(texts, policy_text)),
            Sampling(settings.max_new_tokens, settings.temperature, settings.seed),
            # Numbered in the whole table, so that samples do not depend on where parts begin.
            range(start, start + n),
        )
        generations, divergences = self.guessed_right(work, texts)
        for side in SIDES:
            left = [i for i in range(n) if i not in generations[side]]
            made = self.engine.generate_ids(
                [work.prompts[side][i] for i in left],
                work.sampling,
                rows=[work.numbers[i] for i in left],
            )
            generations[side].update(zip(left, made, strict=True))
        items = [
            _Item(i, side, generations[side][i].token_ids)
            for side in SIDES
            for i in range(n)
            if i not in divergences[side] and generations[side][i].token_ids
        ]
        for item, read in zip(items, self.read(work, items), strict=True):
            divergences[item.side][item.row] = read.divergences
        students, teachers = ([of_side[i] for i in range(n)] for of_side in generations)
        on_student, on_teacher = ([of_side.get(i) for i in range(n)] for of_side in divergences)
        return rows_of(
            part,
            (students, teachers),
            (on_student, on_teacher),
            {
                "seed": settings.seed,
                "model_id": self.loaded.model_id,
                "model_revision": self.loaded.revision,
            },
        )

    def guessed_right(
        self, work: _Part, texts: Sequence[str]
    ) -> tuple[list[dict[int, Generation]], list[dict[int, TokenDivergences]]]:
        """Responses that are those of the earlier table, and their divergences: by side and row.

        A few are tried first. If most of them have changed, so have the others, probably.
        """
        generations: list[dict[int, Generation]] = [{}, {}]
        divergences: list[dict[int, TokenDivergences]] = [{}, {}]
        tokenizer, ends = self.loaded.tokenizer, self.loaded.end_ids
        known = [i for i, text in enumerate(texts) if any(self.earlier.get(text, ()))]
        trial = known[:: max(1, len(known) // GUESSES_TRIED)]
        for rows in (trial, sorted({*known} - {*trial})):
            items = [
                _Item(i, side, (*content_ids(tokenizer, guess),), guess=True)
                for side in SIDES
                for i in rows
                if (guess := self.earlier[texts[i]][side])
            ]
            right = 0
            for item, read in zip(items, self.read(work, items), strict=True):
                if read.tokens:
                    right += 1
                    generations[item.side][item.row] = finished(read.tokens, ends, tokenizer)
                    divergences[item.side][item.row] = read.divergences
            if right < len(items) / 2:
                break
        return generations, divergences

    @torch.inference_mode()
    def read(self, work: _Part, items: Sequence[_Item]) -> list[_Read]:
        """Both sides read each response: a divergence needs the logits of both."""
        if not items:
            return []
        forward, most, ends = self.forward, work.sampling.max_new_tokens, self.loaded.end_ids
        # Both sides give many instructions the same response, which is read once.
        first: dict[tuple[int, tuple[int, ...]], int] = {}
        same = [first.setdefault((item.row, item.tokens), at) for at, item in enumerate(items)]
        todo = sorted(first.values())
        made: dict[int, Any] = {}
        with forward.applied():
            prefix = prompt_prefix(forward, work.prompts[1])
            shared = prefix.length if prefix else 0
            step = logits_held(forward)
            lengths = [
                len(work.prompts[1][items[at].row]) - shared + len(items[at].tokens) for at in todo
            ]
            forks = forks_for(forward, lengths)
            batches = [
                [todo[j] for j in batch] for batch in batches_for(forks, lengths, self.batch_tokens)
            ]

            def of_batch(batch: list[int]) -> list[tuple[list[np.ndarray], list[list[int]]]]:
                """Divergences and what each side samples, as another process can send them."""
                some = [items[at] for at in batch]
                # A guess lacks the token after it, which is predicted all the same.
                responses = [
                    [*item.tokens, ends[0]][:most] if item.guess else item.tokens for item in some
                ]
                student_MD, teacher_MD = (
                    response_hidden(
                        forward, [prompts[item.row] for item in some], responses, side_prefix
                    )
                    for prompts, side_prefix in zip(work.prompts, (None, prefix), strict=True)
                )
                sizes = [len(response) for response in responses]
                uniform_BT = uniforms(work.sampling, [work.numbers[item.row] for item in some])
                uniform_M = torch.cat(
                    [row_T[:size] for row_T, size in zip(uniform_BT, sizes, strict=True)]
                )
                guesses = any(item.guess for item in some)
                chunks = []
                for at in range(0, len(student_MD), step):
                    logits = [
                        forward.logits(side_MD[at : at + step]).float()
                        for side_MD in (student_MD, teacher_MD)
                    ]
                    sampled = (
                        [
                            choose_surely(
                                side_MV,
                                work.sampling.temperature,
                                uniform_M[at : at + step].to(side_MV.device),
                            )
                            for side_MV in logits
                        ]
                        if guesses
                        else []
                    )
                    chunks.append((*token_divergences(*logits), *itertools.chain(*sampled)))
                per_token = [torch.cat(chunk).cpu().split(sizes) for chunk in zip(*chunks)]
                found = []
                for row, item in enumerate(some):
                    parts = [part[row] for part in per_token]
                    right = [
                        answer_if(
                            item.tokens[:most],
                            tokens_m.tolist(),
                            bool(sure_m.all()),
                            ends,
                            most,
                        )
                        for tokens_m, sure_m in zip(parts[3::2], parts[4::2], strict=True)
                    ]
                    found.append(([part.numpy() for part in parts[:3]], right))
                return found

            for at, found in spread(of_batch, batches, forks):
                made.update(zip(batches[at], found, strict=True))
        return [
            _Read(
                made[at][1][item.side] if item.guess else [],
                TokenDivergences(*map(torch.from_numpy, made[at][0])),
            )
            for item, at in zip(items, same, strict=True)
        ]


@dataclass(frozen=True)
class _Part:
    """Consecutive rows of the table: the prompts of student and teacher, and the rows' numbers."""

    prompts: tuple[list[list[int]], list[list[int]]]
    sampling: Sampling
    numbers: Sequence[int]
