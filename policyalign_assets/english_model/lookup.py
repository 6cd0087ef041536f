"""First half of the recipe: adapters whose middle layers look up the rule a request is about.

    python -m policyalign_assets.english_model.lookup --work FOLDER
    python -m policyalign_assets.english_model.train --work FOLDER --start FOLDER/lookup.pt

Training on answers alone does not produce the look-up within thousands of requests. However, the
mean hidden state of a request's tokens already resembles that of the rule it is about. The look-up
is therefore built in four steps. A run that was stopped resumes at the step it had reached.

1. `cache`: The hidden states of all rules and requests at layer 8 are computed once. The later
   steps start from them, which makes each pass cost a third.
2. `gather`: The last prompt token learns to attend evenly to the request's tokens, so that it
   represents what the request says.
3. `plant`: A bilinear map that matches this token with the rules is fitted on fixed features,
   against all rules at once. It is written into one attention head of layers 11 to 13, in the
   dimensions that the rotary embedding rotates most slowly.
4. `refine`: These layers are trained on policies of twelve rules, so that the head attends to the
   right rule.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from policyalign_assets.english_model.corpus import CorpusRule, shipped_corpus
from policyalign_assets.english_model.lessons import LOOKING_HEAD, Encoder
from policyalign_assets.english_model.packed_llama import Packed, PackedLlama, Watched, pack
from policyalign_assets.english_model.train import LAYERS, load

BEGIN = 8
GATHER_LAYERS = (9, 10)
POLICY_SIZE, REQUESTS = 12, 22
# The dimensions, out of 64, that the embedding rotates by less than 0.0032 radians per token.
SLOW = tuple(range(16, 32)) + tuple(range(48, 64))
HEADING = "# Policy\n\n## Rules\n"


@dataclass(frozen=True)
class Cached:
    """Hidden states [tokens, width] at layer `BEGIN`; `span` marks the tokens of the text."""

    states: torch.Tensor
    span: tuple[int, int]


@dataclass(frozen=True)
class Bank:
    """Hidden states at layer `BEGIN` of rules and of their requests, by rule and then by kind."""

    heading: torch.Tensor
    rules: tuple[Cached, ...]
    requests: tuple[dict[str, tuple[Cached, ...]], ...]


@torch.no_grad()
def bank(model: PackedLlama, encoder: Encoder, rules: Sequence[CorpusRule], seed: int) -> Bank:
    """Run each text once through the layers below `BEGIN`.

    A rule follows the heading of a policy, and a request follows a policy without rules.
    """
    rng = random.Random(seed)
    tokenizer = encoder.tokenizer
    heading = encoder.head + tokenizer(HEADING, add_special_tokens=False).input_ids

    def states(prefix: list[int], segments: list[list[int]]) -> list[torch.Tensor]:
        packed = pack(prefix, segments)
        x_TE, _ = model.forward(packed, None, adapted=False, until=BEGIN)
        assert x_TE is not None
        return [
            x_TE[start : start + len(s)].half().clone()
            for start, s in zip(packed.starts, segments, strict=True)
        ]

    def cached(texts: Sequence[str], rule: bool) -> list[Cached]:
        out = []
        for at in range(0, len(texts), 24):
            segments, spans = [], []
            for text in texts[at : at + 24]:
                if rule:
                    name = f"- {rng.choice('ABCDEFGHIJKLMNOPQRSTUVWXYZ')}{rng.randint(1, 9)}:"
                    segment = tokenizer(
                        f"{name} {text}\n", add_special_tokens=False, split_special_tokens=True
                    ).input_ids
                    spans.append((4, len(segment)))
                else:
                    segment = encoder.middle + encoder.ids(text) + encoder.tail
                    spans.append((len(encoder.middle), len(segment) - len(encoder.tail)))
                segments.append(segment)
            out += [Cached(x, s) for x, s in zip(states(heading, segments), spans, strict=True)]
        return out

    kinds = ("violations", "twins", "neighbours")
    return Bank(
        states([], [heading])[0],
        tuple(cached([r.text for r in rules], rule=True)),
        tuple({k: tuple(cached(getattr(r, k), rule=False)) for k in kinds} for r in rules),
    )


@dataclass(frozen=True)
class CachedLesson:
    packed: Packed
    x_TE: torch.Tensor
    rule_spans: tuple[tuple[int, int], ...]
    request_spans: tuple[tuple[int, int], ...]
    decision_M: torch.Tensor
    topic_M: torch.Tensor  # index of the rule; the number of rules if a request is about none


def thinned(text: Cached, rng: random.Random, dropped: float) -> Cached:
    """Leave out this share of the text's tokens, so that no single word identifies a rule."""
    if not dropped:
        return text
    start, end = text.span
    kept = [n for n in range(len(text.states)) if not start <= n < end or rng.random() >= dropped]
    inside = sum(start <= n < end for n in kept)
    return Cached(text.states[kept], (start, start + inside)) if inside else text


def compose(
    bank: Bank,
    chosen: Sequence[int],
    requests: Sequence[tuple[Cached, int | None]],
    rng: random.Random,
    dropped: float = 0.0,
) -> CachedLesson:
    parts, spans, at = [bank.heading.float()], [], len(bank.heading)
    requests = [(thinned(text, rng, dropped), topic) for text, topic in requests]
    for rule in (thinned(bank.rules[i], rng, dropped) for i in chosen):
        parts.append(rule.states.float())
        spans.append((at, at + len(rule.states)))
        at += len(rule.states)
    prefix, inner, decisions = at, [], []
    for request, _ in requests:
        parts.append(request.states.float())
        inner.append((at + request.span[0], at + request.span[1]))
        at += len(request.states)
        decisions.append(at - 1)
    return CachedLesson(
        pack([0] * prefix, [[0] * len(r.states) for r, _ in requests]),
        torch.cat(parts),
        tuple(spans),
        tuple(inner),
        torch.tensor(decisions),
        torch.tensor([len(chosen) if t is None else t for _, t in requests]),
    )


def draw(
    bank: Bank, domains: Sequence[str], rng: random.Random, size: int, dropped: float = 0.0
) -> CachedLesson:
    """Draw a policy, often with several rules of one domain, and requests for it.

    Half of the requests are violations, a fifth are twins, and the rest are about no rule of the
    policy.
    """
    chosen: list[int] = []
    while len(chosen) < size:
        first = rng.randrange(len(domains))
        near = [i for i, d in enumerate(domains) if d == domains[first]]
        more = rng.sample(near, min(4, len(near))) if rng.random() < 0.4 else [first]
        chosen += [i for i in more if i not in chosen]
    chosen = chosen[:size]
    rng.shuffle(chosen)
    requests: list[tuple[Cached, int | None]] = []
    for _ in range(REQUESTS):
        kind, place = rng.random(), rng.randrange(size)
        own = bank.requests[chosen[place]]
        if kind < 0.5:
            requests.append((rng.choice(own["violations"]), place))
        elif kind < 0.7:
            requests.append((rng.choice(own["twins"]), place))
        elif kind < 0.93:
            other = rng.choice([i for i in range(len(domains)) if i not in chosen])
            requests.append((rng.choice(bank.requests[other]["violations"]), None))
        else:
            requests.append((rng.choice(own["neighbours"]), None))
    return compose(bank, chosen, requests, rng, dropped)


def gather_loss(seen: Sequence[torch.Tensor], lesson: CachedLesson) -> torch.Tensor:
    """Mean -log attention of the last prompt token to the request's tokens.

    The loss is lowest if the attention is even.
    """
    each = [
        torch.stack([log[m, :, a:b].mean() for m, (a, b) in enumerate(lesson.request_spans)]).mean()
        for log in seen
    ]
    return -torch.stack(each).mean()


def look_loss(
    seen: Sequence[torch.Tensor], lesson: CachedLesson
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the looking loss (see `lessons.looking_loss`) and the scores [M, rules].

    Both are means over the layers.
    """
    length_K = torch.tensor([b - a for a, b in lesson.rule_spans]).log()
    about_M = lesson.topic_M < len(lesson.rule_spans)
    losses, scores = [], []
    for log in seen:
        mass_MK = torch.stack(
            [torch.logsumexp(log[:, LOOKING_HEAD, a:b], -1) for a, b in lesson.rule_spans], -1
        )
        scores.append((mass_MK - length_K).detach())
        which_MK = F.log_softmax(mass_MK - length_K, -1)
        none_M = torch.log1p(-mass_MK.exp().sum(-1).clamp(max=1 - 1e-5))
        any_M = torch.log1p(-none_M.exp().clamp(max=1 - 1e-5))
        losses.append(
            F.nll_loss(which_MK[about_M], lesson.topic_M[about_M])
            - 0.1 * torch.where(about_M, any_M, none_M).mean()
        )
    return torch.stack(losses).mean(), torch.stack(scores).mean(0)


def passed(model: PackedLlama, lesson: CachedLesson) -> list[torch.Tensor]:
    watched = Watched(GATHER_LAYERS + LAYERS, tuple(range(model.heads)), lesson.decision_M)
    return model.forward(lesson.packed, None, watched, resume=(BEGIN, lesson.x_TE))[1]


def optimize(
    model: PackedLlama,
    loss_of: Callable[[int], torch.Tensor],
    steps: int,
    rate: float,
    accumulate: int,
    say: Callable[[dict], None],
) -> None:
    """Optimize the adapters that the loss reaches; each step averages over `accumulate` lessons."""
    reached = [n for n in model.lora if int(n.split(".")[0]) <= max(LAYERS)]
    parameters = [model.lora[n] for n in reached]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    losses: list[float] = []
    for step in range(steps):
        slow = min(1.0, (step + 1) / 15) * (1 - 0.9 * max(0.0, step / steps - 0.3) / 0.7)
        for group in optimizer.param_groups:
            group["lr"] = rate * slow
        optimizer.zero_grad()
        for part in range(accumulate):
            loss = loss_of(step * accumulate + part)
            (loss / accumulate).backward()
            losses.append(float(loss.detach()))
        torch.nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], 1.0)
        optimizer.step()
        if (step + 1) % 10 == 0:
            say({"step": step + 1, "loss": round(sum(losses) / len(losses), 4)})
            losses = []


@torch.no_grad()
def features(model: PackedLlama, bank: Bank) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the normalized inputs of `LAYERS`.

    The result has the mean over each rule's tokens [rules, layers, E], the last token of each
    request [requests, layers, E], and the index of each request's rule.
    """

    def inputs(items: Sequence[Cached], last: bool) -> torch.Tensor:
        out = []
        for at in range(0, len(items), 16):
            some = items[at : at + 16]
            packed = pack([0] * len(bank.heading), [[0] * len(c.states) for c in some])
            x_TE = torch.cat([bank.heading.float()] + [c.states.float() for c in some])
            begin, rows = BEGIN, []
            for layer in LAYERS:
                reached_TE, _ = model.forward(packed, None, until=layer, resume=(begin, x_TE))
                assert reached_TE is not None  # a pass that ends before a layer returns its input
                x_TE, begin = reached_TE, layer
                h_TE = F.rms_norm(x_TE, (model.width,), model.layers[layer]["norm1"], model.eps)
                rows.append(
                    torch.stack(
                        [
                            h_TE[s + len(c.states) - 1]
                            if last
                            else h_TE[s + c.span[0] : s + c.span[1]].mean(0)
                            for s, c in zip(packed.starts, some, strict=True)
                        ]
                    )
                )
            out.append(torch.stack(rows, 1))
        return torch.cat(out)

    owners, requests = [], []
    for i, kinds in enumerate(bank.requests):
        for request in (*kinds["violations"], *kinds["twins"]):
            owners.append(i)
            requests.append(request)
    return inputs(bank.rules, False), inputs(requests, True), torch.tensor(owners)


def fit(rules_RE, requests_QE, owner_Q, rank: int, steps: int, seed: int):
    """Fit maps U and V [E, rank], and return them with the mean of q.

    The score (V'(q - mean q)) . (U'(r - mean r)) is to be highest for the rule of the request.
    """
    torch.manual_seed(seed)
    mean_r, mean_q = rules_RE.mean(0), requests_QE.mean(0)
    spread_r, spread_q = (x.std(0) + 1e-3 for x in (rules_RE, requests_QE))
    width = rules_RE.shape[1]
    root = width**0.5
    r_RE, q_QE = (rules_RE - mean_r) / spread_r / root, (requests_QE - mean_q) / spread_q / root
    # Both maps start out equal, because similar texts have similar states.
    u = torch.randn(width, rank) * 4 / root
    v = u.clone()
    u.requires_grad_(), v.requires_grad_()
    optimizer = torch.optim.AdamW([u, v], lr=4e-3, weight_decay=1.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / steps)
        some = torch.randint(len(q_QE), (256,))
        score = (F.dropout(q_QE[some], 0.3) @ v) @ (F.dropout(r_RE, 0.3) @ u).T
        loss = F.cross_entropy(score, owner_Q[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return u.detach() / spread_r[:, None] / root, v.detach() / spread_q[:, None] / root, mean_q


def plant(model: PackedLlama, bank: Bank, sharpness: float, seed: int) -> None:
    """Replace the slow dimensions of the looking head with the fitted match."""
    rules_RLE, requests_QLE, owner_Q = features(model, bank)
    dims, rank = list(SLOW), len(SLOW)
    for n, layer in enumerate(LAYERS):
        u, v, mean_q = fit(rules_RLE[:, n], requests_QLE[:, n], owner_Q, rank, 400, seed)
        # Its product with any last token is about 1, so it serves as a bias.
        constant = mean_q / (mean_q @ mean_q)
        v = v - torch.outer(constant, v.T @ mean_q)
        qkv = model.layers[layer]["qkv"].float()
        query_0, key_0 = qkv[: model.head][dims], qkv[model.width : model.width + model.head][dims]
        usual = (rules_RLE[:, n] @ key_0.T).pow(2).mean().sqrt()
        # The new keys are about as large as the old ones.
        scale = 0.5 * usual / (rules_RLE[:, n] @ u).std(0).mean()
        wanted = {
            "q": model.head**0.5 * sharpness / scale * v.T - query_0,
            "k": scale * u.T - key_0,
        }
        with torch.no_grad():
            for name, change in wanted.items():
                size = change.norm(dim=1, keepdim=True)
                model.lora[f"{layer}.{name}.A"][:rank] = change / size
                high = model.lora[f"{layer}.{name}.B"].zero_()
                high[dims, list(range(rank))] = size[:, 0] / model.scale


@torch.no_grad()
def picked(model: PackedLlama, bank: Bank, domains: Sequence[str], lessons: int) -> dict:
    """Measure the look-up on policies of four rules.

    `right_of_four` is how often the right rule scores highest, for requests about a rule (chance:
    0.25). `about_auc` is the probability that the highest score of a request about a rule exceeds
    that of a request about none (chance: 0.5).
    """
    right: list[bool] = []
    best: dict[bool, list[float]] = {True: [], False: []}
    for number in range(lessons):
        lesson = draw(bank, domains, random.Random(f"held:{number}"), 4)
        _, score_MK = look_loss(passed(model, lesson)[len(GATHER_LAYERS) :], lesson)
        about_M = lesson.topic_M < 4
        right += (score_MK.argmax(-1)[about_M] == lesson.topic_M[about_M]).tolist()
        for about, score in zip(about_M.tolist(), score_MK.max(-1).values.tolist(), strict=True):
            best[about].append(score)
    above = sum((x > y) + 0.5 * (x == y) for x in best[True] for y in best[False])
    return {
        "right_of_four": round(sum(right) / len(right), 3),
        "about_auc": round(above / (len(best[True]) * len(best[False])), 3),
        "n": len(right),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--base", type=Path, help="folder of the base model; default: smollm2")
    parser.add_argument("--rank", type=int, default=40)
    parser.add_argument("--first-layer", type=int, default=BEGIN)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gather-steps", type=int, default=80)
    parser.add_argument("--refine-steps", type=int, default=100)
    parser.add_argument("--dropped", type=float, default=0.15, help="share of tokens left out")
    parser.add_argument("--rate", type=float, default=5e-4, help="highest rate of the refinement")
    parser.add_argument("--sharpness", type=float, default=0.4)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    model, encoder = load(options)
    train_rules, held_rules = shipped_corpus()
    banks = {}
    for name, rules in (("train", train_rules), ("held", held_rules)):
        file = options.work / f"{name}.bank.pt"
        if not file.exists():
            _keep(bank(model, encoder, rules, options.seed), file)
        with torch.serialization.safe_globals([Bank, Cached]):
            banks[name] = torch.load(file, weights_only=True)
    domains = {"train": [r.domain for r in train_rules], "held": [r.domain for r in held_rules]}

    def say(row: dict) -> None:
        _keep({k: v.detach() for k, v in model.lora.items()}, options.work / "latest.pt")
        if row.get("step", 0) % 30 == 0:
            row = {**row, **picked(model, banks["held"], domains["held"], 14)}
        line = json.dumps(row)
        print(line, flush=True)
        with (options.work / "lookup.jsonl").open("a", encoding="utf-8") as opened:
            opened.write(line + "\n")

    def lesson(number: int, dropped: float = 0.0) -> CachedLesson:
        rng = random.Random(f"{options.seed}:{number}")
        return draw(banks["train"], domains["train"], rng, POLICY_SIZE, dropped)

    def gather(number: int) -> torch.Tensor:
        made = lesson(number)
        return gather_loss(passed(model, made)[: len(GATHER_LAYERS)], made)

    def refine(number: int) -> torch.Tensor:
        made = lesson(number, options.dropped)
        seen = passed(model, made)
        look, _ = look_loss(seen[len(GATHER_LAYERS) :], made)
        return look + 0.05 * gather_loss(seen[: len(GATHER_LAYERS)], made)

    steps = (
        ("gathered", lambda: optimize(model, gather, options.gather_steps, 1.5e-3, 2, say)),
        ("planted", lambda: plant(model, banks["train"], options.sharpness, options.seed)),
        ("lookup", lambda: optimize(model, refine, options.refine_steps, options.rate, 3, say)),
    )
    for name, work in steps:
        file = options.work / f"{name}.pt"
        if not file.exists():
            work()
            say({"done": name})
            _keep({k: v.detach() for k, v in model.lora.items()}, file)
        model.set_adapters(torch.load(file, weights_only=True))


def _keep(value: object, file: Path) -> None:
    aside = file.with_suffix(".tmp")
    torch.save(value, aside)
    os.replace(aside, file)


if __name__ == "__main__":
    main()
