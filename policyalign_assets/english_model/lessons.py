"""Losses that teach the model which rule a request is about, which rule it breaks, and the answer.

There are two losses. The *looking* loss applies to one attention head in some middle layers. At the
end of the request, that head must attend to the rule that the request is about, or to no rule if
there is none. Before each token of a rule's name in the answer, it must attend to that rule. The
*answering* loss applies to the first answer token, which decides between a normal answer and a
refusal that names the rule. Where no rule covers the request, the answer is also held to that of
the base model without a policy (KL divergence).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from policyalign_assets.engine.base import Message, chat
from policyalign_assets.engine.chat import content_ids, render
from policyalign_assets.english_model.corpus import Lesson
from policyalign_assets.english_model.packed_llama import Packed, PackedLlama, Watched, pack

LOOKING_HEAD = 0
# Weights of a refusal's first token, of the first token of an answer that is held to the base's,
# and of each later one. Long answers must not drown the decision.
REFUSAL_WEIGHT, FIRST_WEIGHT, LATER_WEIGHT = 0.3, 0.5, 0.1
REFUSAL = "Rule {name} does not allow that, so I can't help with it."


def policy_text(
    rules: list[str], names: list[str], title: str, preamble: str = "", declining: str = ""
) -> str:
    """Return the same text as `PolicyDocument.prompt_text` does for such a policy."""
    lines = "\n".join(f"- {name}: {rule}" for name, rule in zip(names, rules, strict=True))
    blocks = [f"# {title}", preamble, f"## Rules\n{lines}"]
    if declining:
        blocks.append(f"## Declining\n{declining}")
    return "\n\n".join(block for block in blocks if block)


@dataclass(frozen=True)
class Encoded:
    """The tokens of one lesson, for M requests, N supervised tokens and K answer tokens to hold.

    `spans` holds the first token of each rule's line and the token after its last one.
    `decision_M` is the position of each request's last prompt token. `rows_N` are the positions
    that predict the supervised tokens, `targets_N` are those tokens, and `weight_N` weighs them.
    `naming_Q` are the positions that predict a rule's name, and `named_Q` are the rules' indices.
    `held_K` are the positions whose predictions must stay those of the base model without a policy.
    """

    packed: Packed
    spans: tuple[tuple[int, int], ...]
    decision_M: torch.Tensor
    rows_N: torch.Tensor
    targets_N: torch.Tensor
    weight_N: torch.Tensor
    naming_Q: torch.Tensor
    named_Q: torch.Tensor
    held_K: torch.Tensor


@dataclass(frozen=True)
class Bare:
    """Requests without a policy. `rows_K` predict the answers, each with its weight."""

    packed: Packed
    rows_K: torch.Tensor
    weight_K: torch.Tensor


class Encoder:
    """Turns lessons into tokens. `answers` holds the base model's own answers to some requests."""

    def __init__(self, tokenizer: Any, answers: Mapping[str, str] | None = None):
        self.tokenizer = tokenizer
        self.answers = answers or {}
        self.refuse = content_ids(tokenizer, REFUSAL.format(name="C3"))[0]
        self.end = tokenizer.eos_token_id
        probe = render(tokenizer, (Message("system", "x"), Message("user", "y")))
        self.head, rest = self._around(probe, "x")
        self.middle, self.tail = self._around(rest, "y")
        # The template writes its default system message if a chat has none.
        self.opening, _ = self._around(render(tokenizer, chat("y")), "y")
        self._memo: dict[str, list[int]] = {}

    def _around(self, ids: list[int], text: str) -> tuple[list[int], list[int]]:
        token = content_ids(self.tokenizer, text)[0]
        at = len(ids) - 1 - ids[::-1].index(token)
        return ids[:at], ids[at + 1 :]

    def prefix(self, lesson: Lesson) -> tuple[list[int], tuple[tuple[int, int], ...]]:
        """Return the tokens before the user's text and the span of each rule's line."""
        text = policy_text(
            [r.text for r in lesson.rules],
            list(lesson.names),
            lesson.title,
            lesson.preamble,
            lesson.declining,
        )
        encoded = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True
        )
        lines, at = [], 0
        for line in text.split("\n"):
            if line.startswith("- "):
                lines.append((at, at + len(line) + 1))
            at += len(line) + 1
        spans = []
        for start, end in lines:
            inside = [n for n, (a, _) in enumerate(encoded.offset_mapping) if start <= a < end]
            spans.append((len(self.head) + inside[0], len(self.head) + inside[-1] + 1))
        return self.head + encoded.input_ids, tuple(spans)

    def ids(self, text: str) -> list[int]:
        if text not in self._memo:
            self._memo[text] = content_ids(self.tokenizer, text)
        return self._memo[text]

    def encode(self, lesson: Lesson, whole: int = 0) -> Encoded:
        """Encode a lesson.

        The first `whole` refusals are supervised to their end, the others only up to the rule's
        name.
        """
        prefix, spans = self.prefix(lesson)
        segments: list[list[int]] = []
        decisions: list[int] = []
        rows: list[int] = []
        targets: list[int] = []
        weights: list[float] = []
        naming: list[tuple[int, int]] = []
        held: list[int] = []
        at = len(prefix)
        for request in lesson.requests:
            segment = self.middle + self.ids(request.text) + self.tail
            if request.earlier:
                answer = self.ids(self.answers[request.earlier])
                segment = self.middle + self.ids(request.earlier) + self.tail + answer + segment
            decisions.append(at + len(segment) - 1)
            if request.kind == "covered" and request.broken is not None:
                name = lesson.names[request.broken]
                refusal = self.ids(REFUSAL.format(name=name)) + [self.end]
                until = len(self.ids(f"Rule {name}"))
                naming += [(decisions[-1] + n, request.broken) for n in range(1, until)]
                if whole:
                    whole -= 1
                else:
                    refusal = refusal[:until]
                rows += range(decisions[-1], decisions[-1] + len(refusal))
                targets += refusal
                weights += [REFUSAL_WEIGHT] + [0.5] * (len(refusal) - 1)
                segment = segment + refusal[:-1]
            else:
                said = self.said(request.text)
                held += range(decisions[-1], decisions[-1] + len(said) + 1)
                segment = segment + said
            segments.append(segment)
            at += len(segment)
        decision_M = torch.tensor(decisions)
        return Encoded(
            pack(prefix, segments),
            spans,
            decision_M,
            torch.tensor(rows, dtype=torch.long),
            torch.tensor(targets, dtype=torch.long),
            torch.tensor(weights, dtype=torch.float),
            torch.tensor([row for row, _ in naming], dtype=torch.long),
            torch.tensor([place for _, place in naming], dtype=torch.long),
            torch.tensor(held, dtype=torch.long),
        )

    def said(self, text: str) -> list[int]:
        """Return the base's own answer to a request but its last token; empty if not known."""
        return self.ids(self.answers[text])[:-1] if text in self.answers else []

    def bare(self, texts: Sequence[str]) -> Bare:
        """Encode requests without a policy, each with the base model's answer."""
        segments: list[list[int]] = []
        rows: list[int] = []
        weights: list[float] = []
        at = len(self.opening)
        for text in texts:
            said = self.said(text)
            segments.append(self.ids(text) + self.tail + said)
            at += len(segments[-1])
            rows += range(at - len(said) - 1, at)
            weights += [FIRST_WEIGHT] + [LATER_WEIGHT] * len(said)
        return Bare(pack(self.opening, segments), torch.tensor(rows), torch.tensor(weights))


@dataclass(frozen=True)
class Outcome:
    """The result of one pass over M requests.

    `looks_at_M` is the index of the rule with the most attention. `refuses_M` is the probability
    of a refusal, and `declines_M` says whether greedy decoding begins one. A refusal begins with
    one word and answers with many, so that it can be the most likely start at a probability well
    below a half. `named_M` says whether the most likely rule name is right; it is false for
    requests that no rule covers.
    """

    loss: torch.Tensor
    looks_at_M: torch.Tensor
    refuses_M: torch.Tensor | None = None
    declines_M: torch.Tensor | None = None
    named_M: torch.Tensor | None = None


def looking_loss(
    encoded: Encoded, lesson: Lesson, seen: list[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the looking loss of the watched head, and the rule [M] that it attends to most.

    The loss has two parts, so that the amount of attention on rules does not outweigh which rule
    gets it. The first is the cross-entropy among the rules of the mean attention on their tokens,
    for requests that are about a rule. The second, with weight 0.1, is the negative log of the
    attention on all rules, or on everything else for requests that are about none.
    """
    size, count = len(lesson.rules), len(lesson.requests)
    topics = [size if r.topic is None else r.topic for r in lesson.requests]
    topic_M = torch.cat([torch.tensor(topics), encoded.named_Q])
    about_M = topic_M < size
    losses, picks = [], []
    for log_QHT in seen:
        log_MT = log_QHT[:, 0]
        mass_MK = torch.stack([torch.logsumexp(log_MT[:, a:b], -1) for a, b in encoded.spans], -1)
        length_K = torch.tensor([b - a for a, b in encoded.spans]).log()
        which_MK = F.log_softmax(mass_MK - length_K, -1)
        none_M = torch.log1p(-mass_MK.exp().sum(-1).clamp(max=1 - 1e-5))
        any_M = torch.log1p(-none_M.exp().clamp(max=1 - 1e-5))
        losses.append(
            F.nll_loss(which_MK[about_M], topic_M[about_M])
            - 0.1 * torch.where(about_M, any_M, none_M).mean()
        )
        picks.append((mass_MK - length_K).detach())
    return torch.stack(losses).mean(), torch.stack(picks).mean(0)[:count].argmax(-1)


def study(
    model: PackedLlama,
    encoder: Encoder,
    lesson: Lesson,
    layers: tuple[int, ...],
    looking: float,
    answering: float,
    whole: int = 0,
    allowing: float = 1.0,
) -> Outcome:
    """Run one pass over a lesson.

    `looking` and `answering` are the weights of the two losses. With `answering=0`, the layers
    above the watched ones are not computed. `allowing` weighs, within the answering loss, that no
    refusal begins where no rule covers the request: below 1, the model refuses more readily.

    The decision is trained on what greedy decoding reads: how far the refusal's first token is
    ahead of the likeliest other one. Its probability alone misleads, since a refusal begins with
    one word and answers with many.
    """
    encoded = encoder.encode(lesson, whole)
    looking_from = torch.cat([encoded.decision_M, encoded.naming_Q])
    watched = Watched(layers, (LOOKING_HEAD,), looking_from)
    plain_M = torch.tensor([r.kind != "covered" for r in lesson.requests])
    asked = [encoded.rows_N, encoded.decision_M, encoded.held_K]
    rows_N = torch.cat(asked) if answering else None
    logits_NV, seen = model.forward(encoded.packed, rows_N, watched)
    look, looks_at_M = looking_loss(encoded, lesson, seen)
    if logits_NV is None:
        return Outcome(looking * look, looks_at_M)
    count, asks = len(encoded.rows_N), len(lesson.requests)
    first_MV = logits_NV[count : count + asks]
    refuse_M = first_MV[:, encoder.refuse]
    others_MV = first_MV.clone()
    others_MV[:, encoder.refuse] = -torch.inf
    lead_M = refuse_M - others_MV.amax(-1)
    decide_M = F.softplus(torch.where(plain_M, lead_M, -lead_M))
    decide = torch.where(plain_M, allowing * decide_M, decide_M).sum()
    token_N = F.cross_entropy(logits_NV[:count], encoded.targets_N, reduction="none")
    hold = torch.zeros(())
    if plain_M.any():
        bare = encoder.bare([r.text for r in lesson.requests if r.kind != "covered"])
        hold = departure(model, bare, logits_NV[count + asks :])
    answer = ((token_N * encoded.weight_N).sum() + decide + hold) / asks
    right_N = logits_NV[:count].argmax(-1) == encoded.targets_N
    named = torch.zeros(len(lesson.requests), dtype=torch.bool)
    starts = {int(r): n for n, r in enumerate(encoded.rows_N.tolist())}
    for m, request in enumerate(lesson.requests):
        if request.broken is not None and request.kind == "covered":
            n = starts[int(encoded.decision_M[m])]
            length = len(encoder.ids(f"Rule {lesson.names[request.broken]}"))
            named[m] = bool(right_N[n + 1 : n + length].all())
    loss = looking * look + answering * answer
    chance_M = F.log_softmax(first_MV, -1)[:, encoder.refuse].detach().exp()
    return Outcome(loss, looks_at_M, chance_M, lead_M.detach() > 0, named)


def departure(model: PackedLlama, bare: Bare, adapted_KV: torch.Tensor) -> torch.Tensor:
    """Return the weighted sum of KL(base without a policy || adapted) over the answers' tokens."""
    with torch.no_grad():
        base_KV, _ = model.forward(bare.packed, bare.rows_K, adapted=False)
    assert base_KV is not None  # rows were asked for
    logp_KV = F.log_softmax(base_KV, -1)
    away_K = F.kl_div(F.log_softmax(adapted_KV, -1), logp_KV, log_target=True, reduction="none")
    return (away_K.sum(-1) * bare.weight_K).sum()


def anchor(model: PackedLlama, encoder: Encoder, texts: Sequence[str]) -> Outcome:
    """Measure how far the adapted model departs from its base where there is no policy.

    The loss is KL(base || adapted) of the answers' tokens, weighted and averaged over `texts`.
    """
    bare = encoder.bare(texts)
    adapted_KV, _ = model.forward(bare.packed, bare.rows_K)
    assert adapted_KV is not None  # rows were asked for
    return Outcome(departure(model, bare, adapted_KV) / len(texts), torch.zeros(0))


def drafting(model: PackedLlama, encoder: Encoder, pairs: Sequence[tuple[str, str]]) -> Outcome:
    """Teach the model to draft: cross-entropy of each request, given the prompt that asks for it.

    `pairs` are prompts, as synthesis writes them, and the requests that answer them.
    """
    segments: list[list[int]] = []
    rows: list[int] = []
    targets: list[int] = []
    at = len(encoder.opening)
    for prompt, request in pairs:
        asked, target = encoder.ids(prompt) + encoder.tail, [*encoder.ids(request), encoder.end]
        rows += range(at + len(asked) - 1, at + len(asked) - 1 + len(target))
        targets += target
        segments.append(asked + target[:-1])
        at += len(segments[-1])
    logits_NV, _ = model.forward(pack(encoder.opening, segments), torch.tensor(rows))
    assert logits_NV is not None  # rows were asked for
    loss = F.cross_entropy(logits_NV, torch.tensor(targets))
    return Outcome(loss, torch.zeros(0))
