"""How far the policy shifts the model on each instruction (Policy-Sensitive Filtering, method.md stage 2).

The paper leaves the score open. Every candidate is computed in the same passes and kept as a column:

* `reverse_kl`: mean token KL(student || teacher) on a response sampled *without* the policy, which is the training
  objective itself; `reverse_kl_p90`: its 90th percentile over tokens; `js`: Jensen-Shannon on the same tokens (bounded)
* `forward_kl`: mean token KL(teacher || student) on a response sampled *with* the policy
* `jeffreys`: their sum
* `flip`: answered without the policy, refused with it
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import torch

from policyalign_assets.engine.base import Progress, Sampling, TokenEngine, chat
from policyalign_assets.engine.batching import by_length
from policyalign_assets.engine.chat import render
from policyalign_assets.engine.forward.protocol import Forward, forward_of
from policyalign_assets.engine.forward.scoring import prompt_prefix, response_hidden
from policyalign_assets.engine.loading import LoadedModel
from policyalign_assets.engine.responses import check_lengths
from policyalign_assets.judges.phrases import RuleBasedJudge
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.sensitivity.divergences import TokenDivergences, token_divergences
from policyalign_assets.sensitivity.partial_scores import PartialScores
from policyalign_assets.settings import SensitivitySettings
from policyalign_assets.tables import SENSITIVITY

LOGITS = 1 << 24  # of one side at a time (64 MiB in float32)


def score_instructions(
    policy: PolicyDocument,
    instructions: pa.Table,
    loaded: LoadedModel,
    engine: TokenEngine,
    judge: RuleBasedJudge,
    settings: SensitivitySettings,
    batch_tokens: int,
    progress: Progress | None = None,
    parts: PartialScores | None = None,
) -> pa.Table:
    """One row per instruction (SENSITIVITY), in the order of `instructions`. Scores of an empty response are null.

    With `parts` the rows go to disk as they are made: a killed call continues there, and the table is read from there.
    Raises PromptTooLong; before any work for the longest text.
    """

    def prompts(texts: Sequence[str], system: str | None = None) -> list[list[int]]:
        return [render(loaded.tokenizer, chat(t, system)) for t in texts]

    parts, forward = parts or PartialScores(), forward_of(loaded.model)
    forward.read()
    longest = max(instructions["text"].to_pylist(), key=len, default="")
    check_lengths(prompts([longest], policy.prompt_text), settings.max_new_tokens, loaded.context)
    for start, part in parts.left(instructions):
        texts = part["text"].to_pylist()
        rows = _scored(
            part,
            prompts(texts),
            prompts(texts, policy.prompt_text),
            start,
            loaded,
            forward,
            engine,
            judge,
            settings,
            batch_tokens,
        )
        parts.keep(start, pa.Table.from_pylist(rows, schema=SENSITIVITY))
        if progress:
            progress(start + part.num_rows, instructions.num_rows)
    return parts.table(SENSITIVITY)


def _scored(
    part: pa.Table,
    student_prompts: list[list[int]],
    teacher_prompts: list[list[int]],
    start: int,
    loaded: LoadedModel,
    forward: Forward,
    engine: TokenEngine,
    judge: RuleBasedJudge,
    settings: SensitivitySettings,
    batch_tokens: int,
) -> list[dict]:
    n = part.num_rows
    sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.seed)
    numbers = range(start, start + n)  # a row's samples do not depend on where parts begin
    students = engine.generate_ids(student_prompts, sampling, rows=numbers)
    teachers = engine.generate_ids(teacher_prompts, sampling, rows=numbers)
    # the divergences of a response need the logits of both sides on it: one pass of each side over both responses
    divergences = _divergences(
        forward,
        student_prompts * 2,
        teacher_prompts * 2,
        [g.token_ids for g in (*students, *teachers)],
        batch_tokens,
    )
    rows = []
    for i, row in enumerate(
        part.select(["instruction_id", "rule_id", "kind", "text", "policy_hash"]).to_pylist()
    ):
        s, t = judge.judge(students[i].text).refused, judge.judge(teachers[i].text).refused
        reverse, forward = divergences[i], divergences[n + i]
        reverse_kl = reverse.reverse_M.mean().item() if reverse else None
        forward_kl = forward.forward_M.mean().item() if forward else None
        rows.append(
            row
            | {
                "student_response": students[i].text,
                "teacher_response": teachers[i].text,
                "student_tokens": len(students[i].token_ids),
                "teacher_tokens": len(teachers[i].token_ids),
                "student_refused": s,
                "teacher_refused": t,
                "flip": None if s is None or t is None else (t and not s),
                "reverse_kl": reverse_kl,
                "reverse_kl_p90": reverse.reverse_M.quantile(0.9).item() if reverse else None,
                "forward_kl": forward_kl,
                "js": reverse.js_M.mean().item() if reverse else None,
                "jeffreys": None
                if reverse_kl is None or forward_kl is None
                else reverse_kl + forward_kl,
                "seed": settings.seed,
                "model_id": loaded.model_id,
                "model_revision": loaded.revision,
            }
        )
    return rows


@torch.inference_mode()
def _divergences(
    forward: Forward,
    student_prompts: Sequence[list[int]],
    teacher_prompts: Sequence[list[int]],
    responses: Sequence[Sequence[int]],
    batch_tokens: int,
) -> list[TokenDivergences | None]:
    """Per response; None for an empty one."""
    results: list[TokenDivergences | None] = [None] * len(responses)
    todo = [i for i, r in enumerate(responses) if r]
    prefix = prompt_prefix(forward, teacher_prompts)
    step = max(1, LOGITS // forward.model.config.get_text_config().vocab_size)
    for batch in by_length(
        [
            len(teacher_prompts[i]) - (prefix.length if prefix else 0) + len(responses[i])
            for i in todo
        ],
        batch_tokens,
    ):
        rows = [todo[j] for j in batch]
        tokens = [responses[i] for i in rows]
        student_MD = response_hidden(forward, [student_prompts[i] for i in rows], tokens)
        teacher_MD = response_hidden(forward, [teacher_prompts[i] for i in rows], tokens, prefix)
        pieces = [
            token_divergences(
                forward.logits(student_MD[at : at + step]).float(),
                forward.logits(teacher_MD[at : at + step]).float(),
            )
            for at in range(0, len(student_MD), step)
        ]
        per_token = (torch.cat(p).cpu() for p in zip(*pieces))
        for i, *of_row in zip(
            rows, *(x.split([len(t) for t in tokens]) for x in per_token), strict=True
        ):
            results[i] = TokenDivergences(*of_row)
    return results
