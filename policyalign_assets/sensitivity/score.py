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

from policyalign_assets.engine.base import Generation, Progress, Sampling, chat
from policyalign_assets.engine.batching import by_length
from policyalign_assets.engine.chat import render
from policyalign_assets.engine.loading import LoadedModel
from policyalign_assets.engine.scoring import prompt_prefix, response_logits
from policyalign_assets.engine.transformers_engine import TransformersEngine, check_lengths
from policyalign_assets.evaluation.judge import RuleBasedJudge
from policyalign_assets.policy import PolicyDocument
from policyalign_assets.sensitivity.divergences import TokenDivergences, token_divergences
from policyalign_assets.settings import SensitivitySettings
from policyalign_assets.tables import SENSITIVITY


def score_instructions(policy: PolicyDocument, instructions: pa.Table, loaded: LoadedModel, engine: TransformersEngine,
                       judge: RuleBasedJudge, settings: SensitivitySettings, batch_tokens: int, progress: Progress | None = None) -> pa.Table:
    """One row per instruction (SENSITIVITY), in the order of `instructions`. Scores of an empty response are null."""
    texts = instructions["text"].to_pylist()
    student_prompts = [render(loaded.tokenizer, chat(t)) for t in texts]
    teacher_prompts = [render(loaded.tokenizer, chat(t, policy.prompt_text)) for t in texts]
    check_lengths(teacher_prompts, settings.max_new_tokens, loaded.context)
    sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.seed)
    students = engine.generate_ids(student_prompts, sampling)
    teachers = engine.generate_ids(teacher_prompts, sampling)
    # the divergences of a response need the logits of both sides on it
    on_student = _divergences(loaded, student_prompts, teacher_prompts, students, batch_tokens, progress)
    on_teacher = _divergences(loaded, student_prompts, teacher_prompts, teachers, batch_tokens, progress)
    rows = []
    for i, row in enumerate(instructions.select(["instruction_id", "rule_id", "kind", "text", "policy_hash"]).to_pylist()):
        s, t = judge.judge(students[i].text).refused, judge.judge(teachers[i].text).refused
        reverse, forward = on_student[i], on_teacher[i]
        reverse_kl = reverse.reverse_M.mean().item() if reverse else None
        forward_kl = forward.forward_M.mean().item() if forward else None
        rows.append(row | {
            "student_response": students[i].text, "teacher_response": teachers[i].text,
            "student_tokens": len(students[i].token_ids), "teacher_tokens": len(teachers[i].token_ids),
            "student_refused": s, "teacher_refused": t, "flip": None if s is None or t is None else (t and not s),
            "reverse_kl": reverse_kl, "reverse_kl_p90": reverse.reverse_M.quantile(0.9).item() if reverse else None,
            "forward_kl": forward_kl, "js": reverse.js_M.mean().item() if reverse else None,
            "jeffreys": None if reverse_kl is None or forward_kl is None else reverse_kl + forward_kl,
            "seed": settings.seed, "model_id": loaded.model_id, "model_revision": loaded.revision})
    return pa.Table.from_pylist(rows, schema=SENSITIVITY)


@torch.inference_mode()
def _divergences(loaded: LoadedModel, student_prompts: Sequence[list[int]], teacher_prompts: Sequence[list[int]],
                 responses: Sequence[Generation], batch_tokens: int, progress: Progress | None) -> list[TokenDivergences | None]:
    results: list[TokenDivergences | None] = [None] * len(responses)
    todo = [i for i, r in enumerate(responses) if r.token_ids]
    prefix = prompt_prefix(loaded.model, teacher_prompts)
    done = 0
    for batch in by_length([len(teacher_prompts[i]) - (prefix.length if prefix else 0) + len(responses[i].token_ids) for i in todo], batch_tokens):
        rows = [todo[j] for j in batch]
        tokens = [responses[i].token_ids for i in rows]
        student_MV = response_logits(loaded.model, [student_prompts[i] for i in rows], tokens)
        teacher_MV = response_logits(loaded.model, [teacher_prompts[i] for i in rows], tokens, prefix)
        per_token = token_divergences(student_MV, teacher_MV)
        for i, *parts in zip(rows, *(x.split([len(t) for t in tokens]) for x in per_token), strict=True):
            results[i] = TokenDivergences(*(p.cpu() for p in parts))
        done += len(rows)
        if progress:
            progress(done, len(todo))
    return results
