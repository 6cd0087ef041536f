"""Trains the bundled model from nothing.

Usage: `python -m policyalign_assets.bundled_model.train --out DIR --minutes 100`. Each of these
choices was needed to make it learn to read a policy (see `../../docs/bundled-model.md`):

* Dense signal. Each policy is encoded once, and a dozen requests are answered against it with the
  policy's keys and values shared in one forward pass. So a step holds about 10 decisions per 1,000
  tokens instead of about 3.
* A curriculum on the number of rules: one rule until fresh decisions are right, then one more, up
  to 12.
* As many uncovered as covered requests. Uncovered ones share an object, a verb or one word with a
  rule, so no shortcut ("a policy is there and this sounds bad") is right more than half the time.
* Attention heads that look at the previous one to four tokens exist from the first step (set by the
  query and key biases of layer 0). Later layers start with W_q = W_k, so that similar tokens attend
  to each other (after Trockman & Kolter, arXiv 2305.09828). Both are only starting values.
* 4 % refusals without a policy, so that the base model gives some probability to declining, as real
  models do. On its own samples a student gets no gradient towards an answer of probability zero:
  with 1 %, distillation left whole rules behind.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, DynamicCache, Qwen2Config, Qwen2ForCausalLM

from policyalign_assets.bundled_model.tokenizer import (
    ASSISTANT,
    END,
    PAD,
    SYSTEM,
    USER,
    train_tokenizer,
)
from policyalign_assets.world.world import Case, World, WorldPolicy

IGNORE = -100
NOISE = 0.04  # refusals without a policy
ROPE_THETA = 1e6
REACH = 250  # tokens between a request and the rule that covers it


@dataclass(frozen=True)
class TrainConfig:
    hidden: int = 256
    layers: int = 4
    heads: int = 8
    ffn: int = 512
    vocab: int = 3072
    groups: int = 6  # policies per step
    queries: int = 12  # requests per policy
    free: int = 40  # rows per step without a policy (compliance, capability, synthesis)
    muon_lr: float = 2e-3
    adam_lr: float = 2e-3
    warmup: int = 50
    decay_fraction: float = 0.35  # linear decay to zero over the last part of the time
    max_rules: int = 12
    advance_at: float = 0.90
    invented: float = 0.22  # share of words made of random syllables
    minutes: float = 100.0
    seed: int = 0


def build_model(cfg: TrainConfig, pad_id: int, end_id: int) -> Qwen2ForCausalLM:
    torch.manual_seed(cfg.seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(  # type: ignore[call-arg]  # further options go to its base class
            vocab_size=cfg.vocab,
            hidden_size=cfg.hidden,
            num_hidden_layers=cfg.layers,
            num_attention_heads=cfg.heads,
            num_key_value_heads=cfg.heads,
            intermediate_size=cfg.ffn,
            tie_word_embeddings=True,
            max_position_embeddings=2048,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
            bos_token_id=None,
            eos_token_id=end_id,
            pad_token_id=pad_id,
            attn_implementation="sdpa",
        )
    )
    head_dim = cfg.hidden // cfg.heads
    half = head_dim // 2
    freq = ROPE_THETA ** (-torch.arange(half) / half)
    slow = (freq * REACH < 1.0).repeat(
        2
    )  # dimensions that RoPE hardly turns over the length of a policy
    with torch.no_grad():
        model.model.embed_tokens.weight.normal_(
            0, 0.1
        )  # as large as what layer 0 adds, or the token itself would drown
        for i, layer in enumerate(model.model.layers):
            attn = layer.self_attn
            if i == 0:
                # q is u rotated by -offset and k is u. Under RoPE the score is then
                # largest `offset` tokens back.
                for head, offset in zip(range(cfg.heads), (1, 1, 2, 2, 3, 4)):
                    rows = slice(head * head_dim, (head + 1) * head_dim)
                    attn.q_proj.weight[rows] *= 0.1
                    attn.k_proj.weight[rows] *= 0.1
                    attn.k_proj.bias[rows] = torch.cat(
                        [torch.full((half,), 6.0), torch.zeros(half)]
                    )
                    attn.q_proj.bias[rows] = 6.0 * torch.cat(
                        [torch.cos(offset * freq), -torch.sin(offset * freq)]
                    )
                attn.v_proj.weight.normal_(0, 1.0 / math.sqrt(cfg.hidden))
                attn.o_proj.weight.normal_(0, 0.07 / math.sqrt(cfg.hidden))
            else:
                weight = (
                    torch.randn(cfg.heads, head_dim, cfg.hidden)
                    * (slow * math.sqrt(head_dim / slow.sum()))[None, :, None]
                )
                attn.q_proj.weight.copy_(1.2 * weight.flatten(0, 1) / math.sqrt(cfg.hidden))
                attn.k_proj.weight.copy_(attn.q_proj.weight)
    return model


class Sampler:
    """Fresh batches: policy groups of `n_rules` rules and policy-free rows."""

    def __init__(self, cfg: TrainConfig, tokenizer, reserved: frozenset[str], seed: int):
        self.cfg, self.tok = cfg, tokenizer
        self.world = World(random.Random(seed), "train", reserved, cfg.invented)
        self.ids = {
            t: tokenizer.convert_tokens_to_ids(t) for t in (SYSTEM, USER, ASSISTANT, END, PAD)
        }

    def encode(self, text: str) -> list[int]:
        return self.tok(text, add_special_tokens=False).input_ids

    def exchange(self, case: Case) -> tuple[list[int], list[int]]:
        prompt = [self.ids[USER], *self.encode(case.request), self.ids[END], self.ids[ASSISTANT]]
        return prompt, [*self.encode(case.answer), self.ids[END]]

    def group(self, n_rules: int) -> tuple[WorldPolicy, list[Case]]:
        w, r = self.world, self.world.rng
        policy = w.policy(n_rules, framed=r.random() < 0.75)
        cases = []
        for _ in range(self.cfg.queries):
            x = r.random()
            if x < 0.46:
                cases.append(w.case(policy, "covered"))
            elif x < 0.94:
                kinds = (
                    "unrelated",
                    "twin",
                    "same_verb",
                    *("near",) * 4,
                    *("same_object",) * 3,
                    *("crossed",) * (4 if n_rules > 1 else 0),
                )
                cases.append(w.case(policy, r.choice(kinds)))
            else:
                cases.append(w.capability())
        return policy, cases

    def free(self) -> Case:
        w, x = self.world, self.world.rng.random()
        if x < 0.18:
            action = w.action()
            case = w.ask("no_policy", action)
            if w.rng.random() > NOISE:
                return case
            return Case("noise", case.request, w.answer(action, True), action)
        if x < 0.50:
            return w.capability(arithmetic=0.45)  # lookups are the harder half
        return (
            w.synthesis()
            if x < 0.64
            else w.twin_synthesis()
            if x < 0.78
            else w.neighbour_synthesis()
        )

    def pad(self, rows: list[list[int]], value: int) -> torch.Tensor:
        width = max(map(len, rows))
        return torch.tensor([row + [value] * (width - len(row)) for row in rows])

    def batch(self, n_rules: int):
        groups = [self.group(self.n_for(n_rules)) for _ in range(self.cfg.groups)]
        prefixes = [[self.ids[SYSTEM], *self.encode(p.text), self.ids[END]] for p, _ in groups]
        exchanges = [self.exchange(c) for _, cases in groups for c in cases]
        free = [self.exchange(self.free()) for _ in range(self.cfg.free)]
        covered = torch.tensor([c.kind == "covered" for _, cases in groups for c in cases])
        decided = torch.tensor([c.kind != "capability" for _, cases in groups for c in cases])
        return prefixes, exchanges, free, covered, decided

    def n_for(self, n_rules: int) -> int:
        """Mostly the current stage, sometimes fewer rules, so that earlier stages stay learned."""
        return n_rules if self.world.rng.random() < 0.6 else self.world.rng.randint(1, n_rules)


def suffix_tensors(sampler: Sampler, exchanges):
    ids_NS = sampler.pad([p + a for p, a in exchanges], sampler.ids[PAD])
    labels_NS = sampler.pad([[IGNORE] * len(p) + a for p, a in exchanges], IGNORE)
    return ids_NS, labels_NS


def answer_loss(
    model, hidden_NSD: torch.Tensor, labels_NS: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sum of the answers' cross-entropies, number of answer tokens, and their logits_MV."""
    h, y = hidden_NSD[:, :-1], labels_NS[:, 1:]
    keep = y != IGNORE
    logits_MV = model.lm_head(h[keep]).float()
    return F.cross_entropy(logits_MV, y[keep], reduction="sum"), keep.sum(), logits_MV.detach()


def forward_groups(model, sampler: Sampler, prefixes, exchanges, queries: int):
    """One forward pass over shared policy prefixes and their requests.

    Returns (sum of losses, tokens, logits_MV, labels_NS).
    """
    pad = sampler.ids[PAD]
    prefix_GP = sampler.pad(prefixes, pad)
    length_G = torch.tensor([len(p) for p in prefixes])
    mask_GP = torch.arange(prefix_GP.shape[1])[None] < length_G[:, None]
    cache = DynamicCache(config=model.config)
    model.model(
        input_ids=prefix_GP, attention_mask=mask_GP.long(), past_key_values=cache, use_cache=True
    )
    cache.batch_repeat_interleave(queries)
    ids_NS, labels_NS = suffix_tensors(sampler, exchanges)
    length_N = length_G.repeat_interleave(queries)
    mask = torch.cat(
        [mask_GP.repeat_interleave(queries, 0), torch.ones_like(ids_NS, dtype=torch.bool)], 1
    )
    position_ids = length_N[:, None] + torch.arange(ids_NS.shape[1])[None]
    hidden = model.model(
        input_ids=ids_NS,
        attention_mask=mask.long(),
        position_ids=position_ids,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return (*answer_loss(model, hidden, labels_NS), labels_NS)


def decision_accuracy(
    logits_MV: torch.Tensor,
    labels_NS: torch.Tensor,
    sentence_end: int,
    covered_N: torch.Tensor,
    refusal_starts: torch.Tensor,
    decided_N: torch.Tensor,
) -> tuple[float, float]:
    """Share of right decisions to refuse, among covered and among uncovered rows.

    The decision is the token after the answer's first full stop, which ends the repeated action. A
    row refuses where more than half of the probability is on tokens that start a refusal.
    """
    y = labels_NS[:, 1:]
    keep = y != IGNORE
    refusal = torch.zeros(y.shape)
    refusal[keep] = logits_MV.softmax(-1)[:, refusal_starts].sum(-1)
    decision_N = ((y == sentence_end) & keep).int().argmax(1) + 1
    refused = refusal.gather(1, decision_N[:, None].clamp(max=y.shape[1] - 1))[:, 0] > 0.5
    right = refused == covered_N
    covered, uncovered = (
        right[rows].float().mean().item() if rows.any() else 1.0
        for rows in (decided_N & covered_N, decided_N & ~covered_N)
    )
    return covered, uncovered


def train(
    cfg: TrainConfig,
    reserved: frozenset[str],
    out: Path,
    log=print,
    init: Path | None = None,
    n_rules: int | None = None,
) -> None:
    torch.manual_seed(cfg.seed)
    tok = (
        AutoTokenizer.from_pretrained(init)
        if init
        else train_tokenizer(reserved, cfg.vocab, cfg.seed)
    )
    sampler = Sampler(cfg, tok, reserved, cfg.seed)
    model = build_model(cfg, sampler.ids[PAD], sampler.ids[END])
    state = {"n_rules": 1, "step": 0, "tokens": 0}
    if init:
        model.load_state_dict(
            Qwen2ForCausalLM.from_pretrained(init, dtype=torch.float32).state_dict()
        )
        state.update(json.loads((init / "train_state.json").read_text()))
        state["n_rules"] = n_rules or state["n_rules"]
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    opts = [
        torch.optim.Muon(
            matrices, lr=cfg.muon_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=cfg.adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    base_lrs = [cfg.muon_lr, cfg.adam_lr]
    refusal_starts = torch.tensor(
        sorted({tok(" " + t).input_ids[0] for t in sampler.world.lex["refuse"]})
    )
    assert not set(refusal_starts.tolist()) & {
        tok(" " + t).input_ids[0] for t in sampler.world.lex["comply"]
    }
    sentence_end = tok(".").input_ids[0]
    log(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {cfg}")
    start, cov_ema, unc_ema, since, loss_ema = time.monotonic(), 0.5, 0.5, 0, None
    tokens0 = state["tokens"]
    while (elapsed := (time.monotonic() - start) / 60) < cfg.minutes:
        left = (cfg.minutes - elapsed) / cfg.minutes / cfg.decay_fraction
        scale = min(1.0, (since_start := state["step"] + 1) / cfg.warmup, max(left, 0.02))
        for opt, lr in zip(opts, base_lrs):
            for g in opt.param_groups:
                g["lr"] = lr * scale
        prefixes, exchanges, free, covered, decided = sampler.batch(state["n_rules"])
        # float32: on CPUs without AMX, bfloat16 is slower (measured: 0.6x)
        loss_g, n_g, logits_MV, labels = forward_groups(
            model, sampler, prefixes, exchanges, cfg.queries
        )
        ids_NS, labels_free = suffix_tensors(sampler, free)
        loss_f, n_f, _ = answer_loss(
            model, model.model(input_ids=ids_NS).last_hidden_state, labels_free
        )
        loss = (loss_g + loss_f) / (n_g + n_f)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        cov, unc = decision_accuracy(
            logits_MV, labels, sentence_end, covered, refusal_starts, decided
        )
        cov_ema, unc_ema = 0.95 * cov_ema + 0.05 * cov, 0.95 * unc_ema + 0.05 * unc
        loss_ema = loss.item() if loss_ema is None else 0.95 * loss_ema + 0.05 * loss.item()
        state["step"] = since_start
        state["tokens"] += sum(map(len, prefixes)) + sum(
            len(p) + len(a) for p, a in exchanges + free
        )
        since += 1
        if (
            since >= 30
            and min(cov_ema, unc_ema) > cfg.advance_at
            and state["n_rules"] < cfg.max_rules
        ):
            state["n_rules"] += 1
            since = 0
            log(f"-> {state['n_rules']} rules at step {state['step']}")
        if state["step"] % 20 == 0:
            speed = (state["tokens"] - tokens0) / (time.monotonic() - start)
            log(
                f"step {state['step']:5d}  {elapsed:5.1f} min  rules {state['n_rules']:2d}  "
                f"loss {loss_ema:.4f}  covered {cov_ema:.3f}  uncovered {unc_ema:.3f}  "
                f"{speed:,.0f} tok/s"
            )
        if state["step"] % 250 == 0:
            save(model, tok, out, state)
    save(model, tok, out, state)


def save(model, tok, out: Path, state: dict) -> None:
    """Writes bf16 safetensors, tokenizer and training state into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    copy = Qwen2ForCausalLM(model.config)
    copy.bfloat16()
    copy.load_state_dict(weights)
    copy.generation_config.eos_token_id, copy.generation_config.pad_token_id = (
        model.config.eos_token_id,
        model.config.pad_token_id,
    )
    copy.save_pretrained(out)
    tok.save_pretrained(out)
    (out / "train_state.json").write_text(json.dumps(state))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="continue from this folder")
    parser.add_argument("--n-rules", type=int, help="with --init: start the curriculum here")
    parser.add_argument(
        "--reserved", type=Path, help="file with one action a line that training must not use"
    )
    for name, value in asdict(TrainConfig()).items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    args = vars(parser.parse_args())
    out, init, reserved_file, n_rules = (
        args.pop("out"),
        args.pop("init"),
        args.pop("reserved"),
        args.pop("n_rules"),
    )
    reserved = (
        frozenset(reserved_file.read_text().split("\n")) - {""} if reserved_file else frozenset()
    )
    train(
        TrainConfig(**args),
        reserved,
        out,
        log=lambda m: print(m, flush=True),
        init=init,
        n_rules=n_rules,
    )


if __name__ == "__main__":
    main()
