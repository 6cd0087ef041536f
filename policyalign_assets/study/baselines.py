"""What a team would train in place of ours: SFT and DPO on the teacher's answers.

Both take the same instructions in the same batches as the distillation, sample with the same
temperature and seeds, and make as many updates with the same optimizer. They are off-policy:

sft     cross-entropy on answers that the teacher (the untrained model with the policy in its
        prompt) gave; also called context distillation. The loss is a mean over all tokens of an
        optimizer batch, as in the distillation.
dpo     direct preference optimization (Rafailov et al., arXiv 2305.18290): the teacher's answer
        is preferred to the one that the untrained model gave without the policy. The reference is
        the untrained model without the policy. The loss is a mean over pairs.

All answers are sampled before the first update. Nothing is saved in between: these runs are short.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from policyalign_assets.distillation.batches import Instruction, batch_indices
from policyalign_assets.distillation.budget import Budget, DistillationFailed
from policyalign_assets.distillation.gradient_checkpointing import checkpointed
from policyalign_assets.distillation.state import decay_factor
from policyalign_assets.distillation.teacher import Teacher
from policyalign_assets.distillation.tuning import Model, Tuning, tuning_of
from policyalign_assets.distillation.updates import FIX_NOT_FINITE
from policyalign_assets.engine.base import Sampling, chat
from policyalign_assets.engine.batching import by_length
from policyalign_assets.engine.chat import render
from policyalign_assets.engine.choose_forward import forward_of
from policyalign_assets.engine.forward.protocol import Forward
from policyalign_assets.engine.forward.scoring import response_hidden
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.loading import LoadedModel
from policyalign_assets.engine.responses import check_lengths
from policyalign_assets.settings import DistillationSettings

CODE_VERSION = 1  # raise it when a change here changes what the baselines train
REPORT_EVERY = 10  # steps between two lines of progress
Log = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """A trained model and what it took.

    tokens: response tokens in all updates. `same`: pairs of DPO whose two answers were equal, which
    teach nothing.
    """

    model: Model
    seconds: float
    tokens: int
    updates: int
    same: int | None = None


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt without the policy, and of the teacher's answer to it.

    rejected: of DPO, the untrained model's own answer.
    """

    prompt: list[int]
    response: tuple[int, ...]
    rejected: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return len(self.response) + len(self.rejected)


def train_sft(
    policy: str,
    instructions: Sequence[Instruction],
    loaded: LoadedModel,
    settings: DistillationSettings,
    batch_tokens: int,
    log: Log = lambda _: None,
) -> Trained:
    """Supervised fine-tuning on the teacher's answers.

    The result is a PEFT model over `loaded.model`, or that model itself with full tuning.
    Raises PromptTooLong before any work, and DistillationFailed where the loss is not finite.
    """
    return _train(policy, instructions, loaded, settings, batch_tokens, log, None)


def train_dpo(
    policy: str,
    instructions: Sequence[Instruction],
    loaded: LoadedModel,
    settings: DistillationSettings,
    batch_tokens: int,
    beta: float,
    log: Log = lambda _: None,
) -> Trained:
    """Direct preference optimization of the teacher's answers; returns and raises as `train_sft`.

    beta: how strongly the reference model holds.
    """
    return _train(policy, instructions, loaded, settings, batch_tokens, log, beta)


def _train(
    policy: str,
    instructions: Sequence[Instruction],
    loaded: LoadedModel,
    settings: DistillationSettings,
    batch_tokens: int,
    log: Log,
    beta: float | None,
) -> Trained:
    begun = time.monotonic()
    batches = sampled(policy, instructions, loaded, settings, batch_tokens, beta is not None)
    examples = [example for batch in batches for example in batch]
    log(f"{len(examples)} answers sampled")
    tuning = tuning_of(loaded.model, settings)
    tuning.model.eval()  # no dropout, as in the distillation
    student = forward_of(tuning.model, tuning.plain and not settings.gradient_checkpointing)
    reference = Teacher(tuning, "frozen", {0: [e.prompt for e in examples]})
    loss: Loss = SftLoss(student) if beta is None else DpoLoss(student, reference, beta)
    optimizer = torch.optim.AdamW(
        tuning.trained().values(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    budget = Budget(settings.micro_batch_tokens, log)
    updates = 0
    for step, batch in enumerate(batches):
        factor = decay_factor(step, settings.steps, settings.lr_decay)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        for at in range(0, len(batch), settings.mini_batch_size):
            mini = batch[at : at + settings.mini_batch_size]
            student.read()
            value = budget.fitted(
                partial(_gradients, loss, mini, tuning, optimizer, settings, budget)
            )
            norm = torch.nn.utils.clip_grad_norm_(tuning.trained().values(), settings.max_grad_norm)
            if not math.isfinite(value) or not math.isfinite(norm.item()):
                raise DistillationFailed(
                    f"the loss ({value}) or its gradient ({norm.item()}) is not finite at step "
                    f"{step + 1}. {FIX_NOT_FINITE}"
                )
            optimizer.step()
            updates += 1
        if (step + 1) % REPORT_EVERY == 0:
            log(f"step {step + 1}/{settings.steps}  loss {value:.4f}")
    student.read()
    return Trained(
        tuning.model,
        time.monotonic() - begun,
        sum(e.tokens for e in examples),
        updates,
        None if beta is None else sum(e.response == e.rejected for e in examples),
    )


def sampled(
    policy: str,
    instructions: Sequence[Instruction],
    loaded: LoadedModel,
    settings: DistillationSettings,
    batch_tokens: int,
    rejected: bool,
) -> list[list[Example]]:
    """The examples of every step: the teacher's answers and, if asked, the model's own.

    A request that comes up again is answered anew. Batches and random numbers are those of the
    distillation with these settings. Raises ValueError without an instruction.
    """
    if not instructions:
        raise ValueError("no instruction to train on")
    students = [render(loaded.tokenizer, chat(i.text)) for i in instructions]
    teachers = [render(loaded.tokenizer, chat(i.text, policy)) for i in instructions]
    check_lengths(teachers, settings.max_new_tokens, loaded.context)
    engine = TransformersEngine(loaded, batch_tokens)
    groups = [i.group for i in instructions]
    batches = []
    for step in range(settings.steps):
        chosen = batch_indices(groups, settings.batch_size, step, settings.seed)
        sampling = Sampling(
            settings.max_new_tokens, settings.temperature, settings.seed * 1_000_003 + step
        )
        taught = engine.generate_ids([teachers[i] for i in chosen], sampling)
        own = engine.generate_ids([students[i] for i in chosen], sampling) if rejected else taught
        batches.append(
            [
                Example(students[i], t.token_ids, o.token_ids if rejected else ())
                for i, t, o in zip(chosen, taught, own, strict=True)
            ]
        )
    return batches


class SftLoss:
    """Cross-entropy of the teacher's answers, in nats."""

    def __init__(self, student: Forward):
        self.student = student

    def weight(self, mini: Sequence[Example]) -> float:
        """What the sum over a mini-batch is divided by: its response tokens."""
        return float(sum(len(e.response) for e in mini))

    def before(self, examples: Sequence[Example]) -> None:
        """Nothing is compared with."""

    def __call__(self, examples: Sequence[Example], before_M: None = None) -> torch.Tensor:
        """The sum over all response tokens, a scalar with gradient."""
        prompts, responses = [e.prompt for e in examples], [e.response for e in examples]
        hidden_MD = response_hidden(self.student, prompts, responses)
        return -_log_probs(self.student.logits(hidden_MD), responses).sum()


class DpoLoss:
    """-log sigmoid(beta * ((log p_s - log p_r)(preferred) - (log p_s - log p_r)(rejected)))."""

    def __init__(self, student: Forward, reference: Teacher, beta: float):
        self.student, self.reference, self.beta = student, reference, beta

    def weight(self, mini: Sequence[Example]) -> float:
        """What the sum over a mini-batch is divided by: its pairs."""
        return float(len(mini))

    @torch.no_grad()
    def before(self, examples: Sequence[Example]) -> torch.Tensor:
        """Log-probabilities of the reference model: preferred answers, then rejected ones."""
        self.reference.sync()  # of a frozen model: once
        prompts, responses = _pairs(examples)
        return _log_probs(
            self.reference.logits(self.reference.hidden(0, prompts, responses)), responses
        )

    def __call__(self, examples: Sequence[Example], before_M: torch.Tensor) -> torch.Tensor:
        """The sum over all pairs, a scalar with gradient."""
        prompts, responses = _pairs(examples)
        hidden_MD = response_hidden(self.student, prompts, responses)
        now_M = _log_probs(self.student.logits(hidden_MD), responses)
        lengths = torch.tensor([len(r) for r in responses], device=now_M.device)
        row_M = torch.repeat_interleave(torch.arange(len(responses), device=now_M.device), lengths)
        gains_N = now_M.new_zeros(len(responses)).index_add(0, row_M, now_M - before_M)
        preferred_N, rejected_N = gains_N.chunk(2)
        return -F.logsigmoid(self.beta * (preferred_N - rejected_N)).sum()


Loss = SftLoss | DpoLoss


def _gradients(
    loss: Loss,
    mini: Sequence[Example],
    tuning: Tuning,
    optimizer: torch.optim.Optimizer,
    settings: DistillationSettings,
    budget: Budget,
) -> float:
    """Sets the gradients of one mini-batch, in micro-batches, and returns its mean loss."""
    optimizer.zero_grad(set_to_none=True)
    weight, total = loss.weight(mini), 0.0
    lengths = [2 * len(e.prompt) + e.tokens for e in mini]
    for chosen in by_length(lengths, budget.tokens):
        examples = [mini[i] for i in chosen]
        before_M: Any = loss.before(examples)  # outside of the student's weights
        with loss.student.applied(), checkpointed(tuning.model, settings.gradient_checkpointing):
            value = loss(examples, before_M) / weight
            value.backward()
        total += value.item()
    return total


def _pairs(examples: Sequence[Example]) -> tuple[list[list[int]], list[tuple[int, ...]]]:
    return (
        [e.prompt for e in examples] * 2,
        [e.response for e in examples] + [e.rejected for e in examples],
    )


def _log_probs(logits_MV: torch.Tensor, responses: Sequence[Sequence[int]]) -> torch.Tensor:
    """Log-probability of each response token: logps_M, rows concatenated in order."""
    tokens_M = torch.tensor([t for r in responses for t in r], device=logits_MV.device)
    return logits_MV.float().log_softmax(-1).gather(-1, tokens_M[:, None])[:, 0]
