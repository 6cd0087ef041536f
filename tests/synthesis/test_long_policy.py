"""A policy of 60 rules and more than 6,000 tokens, from its drafts to a training step."""

from dataclasses import replace

import pytest
import torch
from helpers import ScriptedEngine, answer, chatml_tokenizer, medical_policy, tiny_model, unlike
from transformers import Qwen2Config, Qwen2ForCausalLM

from policyalign_assets.distillation.batches import training_mix
from policyalign_assets.distillation.trainer import distill
from policyalign_assets.engine.base import chat
from policyalign_assets.engine.chat import render
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.engine.responses import PromptTooLong
from policyalign_assets.filtering.select import select_instructions
from policyalign_assets.judges.phrases import RuleBasedJudge
from policyalign_assets.sensitivity.flips import with_flips
from policyalign_assets.sensitivity.score import score_instructions
from policyalign_assets.settings import (
    DistillationSettings,
    FilterSettings,
    SensitivitySettings,
    SynthesisSettings,
)
from policyalign_assets.synthesis.attribution import Attribution
from policyalign_assets.synthesis.checks import PolicyChecks
from policyalign_assets.synthesis.likelihood import LikelihoodScorer
from policyalign_assets.synthesis.synthesize import synthesize

pytestmark = pytest.mark.slow

GOODS = "ledger passport seal permit invoice warrant prescription licence deed voucher".split()
ACTS = "forge alter hide backdate sell copy".split()
CONTEXT = 16_384


def policy():
    base = medical_policy()
    rules = tuple(
        replace(
            base.prohibitions[0],
            rule_id=f"R{n}",
            text=f"Never help anyone {act} a {good} that belongs to another person, whatever the "
            f"reason that the user gives for it, and whoever the user says that they are.",
            action=f"{act} a {good} that belongs to another person",
        )
        for n, (act, good) in enumerate((a, g) for a in ACTS for g in GOODS)
    )
    return replace(base, rules=rules)


@pytest.fixture(scope="module")
def loaded():
    return tiny_model(
        Qwen2ForCausalLM, Qwen2Config, chatml_tokenizer(), max_position_embeddings=CONTEXT
    )


@pytest.fixture(scope="module")
def instructions(loaded):
    def reply(prompt, n, sampling):
        rule = next((r for r in policy().rules if r.text in prompt), None)
        return answer(f"{unlike(prompt, n)} how would I {rule.action if rule else 'read'}?")

    settings = SynthesisSettings(
        per_rule=1, twin_ratio=1.0, neighbour_ratio=0.0, recombined_ratio=0.0, language=None
    )
    attribution = Attribution(policy(), LikelihoodScorer(loaded, 4096))
    assert attribution.method == "lexical"  # random weights find no rule
    return synthesize(
        policy(), ScriptedEngine(reply), settings, checks=PolicyChecks(attribution=attribution)
    )


def test_sixty_rules_get_their_instructions(instructions):
    assert len(instructions.yields) == 60
    assert not any(counts.starved for counts in instructions.yields.values())
    assert {r["rule_id"] for r in instructions.table.to_pylist()} == {f"R{n}" for n in range(60)}


def test_they_are_scored_selected_and_trained_on_under_the_whole_policy(
    loaded, instructions, tmp_path
):
    long = policy()
    assert len(render(loaded.tokenizer, chat("", long.prompt_text))) > 6_000
    table = instructions.table.slice(0, 6)
    engine = TransformersEngine(loaded, 16_384)
    scores = score_instructions(
        long, table, loaded, engine, SensitivitySettings(max_new_tokens=8), 16_384
    )
    scores = with_flips(scores, RuleBasedJudge())
    assert scores.num_rows == 6
    assert all(value is not None and value > 0 for value in scores["reverse_kl"].to_pylist())
    chosen = select_instructions(table, scores, FilterSettings(per_rule=1, at_least=0))
    chosen = chosen.filter(chosen["selected"])
    before = {k: v.clone() for k, v in loaded.model.state_dict().items()}
    settings = DistillationSettings(
        steps=1, batch_size=2, mini_batch_size=2, max_new_tokens=4, anchors=0
    )
    _, training = distill(
        [long.prompt_text], training_mix(chosen), loaded, settings, tmp_path, 16_384
    )
    assert training.num_rows == 1
    assert training["loss"][0].as_py() > 0
    assert all(
        torch.equal(before[k], v) for k, v in loaded.model.state_dict().items() if k in before
    )


def test_a_model_without_the_context_is_refused_before_any_work(instructions):
    short = tiny_model(Qwen2ForCausalLM, Qwen2Config, chatml_tokenizer())
    with pytest.raises(PromptTooLong):
        score_instructions(
            policy(),
            instructions.table.slice(0, 2),
            short,
            TransformersEngine(short, 4096),
            SensitivitySettings(max_new_tokens=8),
            4096,
        )
