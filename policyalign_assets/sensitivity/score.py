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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from policyalign_assets.engine.base import Generation, Progress, Sampling, TokenEngine, chat
from policyalign_assets.engine.chat import render
from policyalign_assets.engine.choose_forward import forward_of
from policyalign_assets.engine.cpu.forks import batches_for, forks_for, spread
from policyalign_assets.engine.forward.protocol import Forward
from policyalign_assets.engine.forward.scoring import prompt_prefix, response_hidden
from policyalign_assets.engine.loading import LoadedModel
from policyalign_assets.engine.responses import check_lengths
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.sensitivity.divergences import TokenDivergences, token_divergences
from policyalign_assets.sensitivity.partial_scores import PartialScores
from policyalign_assets.settings import SensitivitySettings
from policyalign_assets.tables import SENSITIVITY

LOGITS = 1 << 24  # logits of one side held at a time (64 MiB in float32)


def score_instructions(
    policy: PolicyDocument,
    instructions: pa.Table,
    loaded: LoadedModel,
    engine: TokenEngine,
    settings: SensitivitySettings,
    batch_tokens: int,
    progress: Progress | None = None,
    parts: PartialScores | None = None,
) -> pa.Table:
    """Returns a SENSITIVITY table, one row per instruction in their order.

    Scores of an empty response are null; what a judge decides is null until `with_flips`. With
    `parts`, rows are saved as they are computed: a killed call continues there, and the table is
    read from there.
    Raises PromptTooLong; for the longest text before any work.
    """
    scorer = _Scorer(loaded, forward_of(loaded.model), engine, settings, batch_tokens)
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


@dataclass(frozen=True)
class _Scorer:
    loaded: LoadedModel
    forward: Forward
    engine: TokenEngine
    settings: SensitivitySettings
    batch_tokens: int

    def prompts(self, texts: Sequence[str], system: str | None = None) -> list[list[int]]:
        return [render(self.loaded.tokenizer, chat(t, system)) for t in texts]

    def rows(self, part: pa.Table, start: int, policy_text: str) -> list[dict[str, Any]]:
        """The rows of `part`, whose first row is number `start` of the whole table."""
        texts = part["text"].to_pylist()
        student_prompts, teacher_prompts = self.prompts(texts), self.prompts(texts, policy_text)
        settings, n = self.settings, part.num_rows
        sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.seed)
        # Numbered in the whole table, so that samples do not depend on where parts begin.
        row_numbers = range(start, start + n)
        students = self.engine.generate_ids(student_prompts, sampling, rows=row_numbers)
        teachers = self.engine.generate_ids(teacher_prompts, sampling, rows=row_numbers)
        # A divergence needs both sides' logits on a response: each side reads both responses.
        with self.forward.applied():
            divergences = self.divergences(
                student_prompts * 2,
                teacher_prompts * 2,
                [g.token_ids for g in (*students, *teachers)],
            )
        return rows_of(
            part,
            (students, teachers),
            (divergences[:n], divergences[n:]),
            {
                "seed": settings.seed,
                "model_id": self.loaded.model_id,
                "model_revision": self.loaded.revision,
            },
        )

    @torch.inference_mode()
    def divergences(
        self,
        student_prompts: Sequence[list[int]],
        teacher_prompts: Sequence[list[int]],
        responses: Sequence[Sequence[int]],
    ) -> list[TokenDivergences | None]:
        """The token divergences on each response; None for an empty one."""
        forward = self.forward
        results: list[TokenDivergences | None] = [None] * len(responses)
        todo = [i for i, r in enumerate(responses) if r]
        prefix = prompt_prefix(forward, teacher_prompts)
        shared = prefix.length if prefix else 0
        step = max(1, LOGITS // forward.model.config.get_text_config().vocab_size)
        lengths = [len(teacher_prompts[i]) - shared + len(responses[i]) for i in todo]
        forks = forks_for(forward, lengths)
        batches = [
            [todo[j] for j in batch] for batch in batches_for(forks, lengths, self.batch_tokens)
        ]

        def of_batch(rows: list[int]) -> list[list[np.ndarray]]:
            """The divergences of each row of a batch, as arrays that another process can send."""
            tokens = [responses[i] for i in rows]
            student_MD = response_hidden(forward, [student_prompts[i] for i in rows], tokens)
            teacher_MD = response_hidden(
                forward, [teacher_prompts[i] for i in rows], tokens, prefix
            )
            chunks = [
                token_divergences(
                    forward.logits(student_MD[at : at + step]).float(),
                    forward.logits(teacher_MD[at : at + step]).float(),
                )
                for at in range(0, len(student_MD), step)
            ]
            per_token = (torch.cat(chunk).cpu() for chunk in zip(*chunks))
            per_row = (x.split([len(t) for t in tokens]) for x in per_token)
            return [[x.numpy() for x in of_row] for of_row in zip(*per_row, strict=True)]

        for at, made in spread(of_batch, batches, forks):
            for i, of_row in zip(batches[at], made, strict=True):
                results[i] = TokenDivergences(*map(torch.from_numpy, of_row))
        return results
