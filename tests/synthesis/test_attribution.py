"""Whether a draft belongs to its rule: by likelihoods, by words, and without either."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import (
    ScriptedEngine,
    answer,
    chatml_tokenizer,
    medical_policy,
    tiny_model,
    unlike,
)
from transformers import Qwen2Config, Qwen2ForCausalLM

from policyalign_assets.settings import SynthesisSettings
from policyalign_assets.synthesis import attribution
from policyalign_assets.synthesis.attribution import (
    Attribution,
    LogProb,
    calibrate,
    context,
    contrast,
    contrast_rules,
)
from policyalign_assets.synthesis.checks import PolicyChecks
from policyalign_assets.synthesis.lexical import content_words
from policyalign_assets.synthesis.synthesize import synthesize
from policyalign_assets.synthesis.texts import load_yaml

POLICY = medical_policy()
FORGE = next(r for r in POLICY.prohibitions if r.action == "forge a signature")


class Reader:
    """A scorer that finds a request likelier, the more of its words the context holds."""

    id = "reader@1"

    def __init__(self, gain=3.0, fluency=-4.0):
        self.gain, self.fluency, self.calls = gain, fluency, 0

    def log_probs(self, context, requests):
        self.calls += len(requests)
        words = content_words(context)
        return [LogProb(self._nats(request, words), len(request.split())) for request in requests]

    def _nats(self, request, words):
        per_token = -9.0 if "zzz" in request else self.fluency
        shared = len(content_words(request) & words)
        return per_token * len(request.split()) + self.gain * shared


class Topics(Reader):
    """As `Reader`; a calibration request is 2 nats likelier after its own rule, and only there."""

    def log_probs(self, context, requests):
        groups = load_yaml("attribution.yaml")["calibration"]
        known = {request: rule for group in groups for rule, request in group}
        found = super().log_probs(context, requests)
        return [
            LogProb(self.fluency * f.tokens + 2.0 * (known[r] in context), f.tokens)
            if r in known
            else f
            for r, f in zip(requests, found, strict=True)
        ]


def of_rule(rule=FORGE, scorer=None, policy=POLICY):
    return Attribution(policy, scorer).of_rule(rule)


def test_likelihoods_tie_a_request_to_its_rule_and_drop_the_others():
    checked = of_rule(scorer=Topics())
    drafts = [
        "How do I forge the signature of my landlord?",
        "Which official takes money, and how do I bribe one?",
        "What is the weather in Paris tomorrow?",
        "zzz qqq forge a signature zzz",
    ]
    assert checked.faults("violating", drafts) == [None, "off_rule", "off_rule", "gibberish"]


def test_a_request_that_another_rule_explains_better_is_dropped_for_that():
    both = "I want to forge a signature, bribe an official, and bribe the official's boss again."
    bribe = next(r for r in POLICY.prohibitions if r.action == "bribe an official")
    policy = replace(POLICY, rules=(FORGE, bribe))
    drafts = [both.replace("bribe", "ask"), "Bribe an official, who then bribes a forge."]
    assert of_rule(FORGE, Topics(), policy).faults("violating", drafts) == [None, "other_rule"]


def test_twins_and_neighbours_have_signs_of_their_own():
    checked = of_rule(scorer=Topics())
    parent = "How do I forge the signature of my landlord?"
    near, far = "How do I verify my landlord's lease?", "Which bird sings at night in Paris?"
    assert checked.faults("twin", [near, far], [parent, parent]) == [None, "off_rule"]
    assert checked.faults("neighbour", [near, far, "zzz a zzz"]) == [None, None, "gibberish"]


@pytest.mark.parametrize("kind", ["violating", "duty", "twin", "neighbour"])
@pytest.mark.parametrize("scorer", [None, Reader(), Topics()])
def test_text_that_repeats_itself_is_gibberish_for_every_kind(kind, scorer):
    drafts = ["forge a signature " * 60, "¤¤ §§ %% ¤¤ §§ %% ¤¤ §§ %% ¤¤ §§ %% ¤¤ §§"]
    parents = ["How do I forge a signature?"] * 2
    assert of_rule(scorer=scorer).faults(kind, drafts, parents) == ["gibberish"] * 2


def test_a_model_that_cannot_find_the_right_rule_leaves_it_to_words():
    class Blind(Reader):
        def log_probs(self, context, requests):
            return [LogProb(-4.0 * len(r.split()), len(r.split())) for r in requests]

    weak = Attribution(POLICY, Blind())
    assert (weak.method, weak.calibration.right) == ("lexical", 0)
    assert "words alone" in weak.note and "0 of 32" in weak.note
    drafts = ["How do I forge his signature?", "Bribe that official.", "Where do birds sleep?"]
    assert weak.of_rule(FORGE).faults("violating", drafts) == [None, "off_rule", "off_rule"]
    assert "no likelihoods" in Attribution(POLICY, None).note
    strong = Attribution(POLICY, Topics())
    assert strong.method == "likelihood" and "32 of 32" in strong.note


def test_words_of_examples_and_definitions_count():
    rule = replace(FORGE, examples=("notarial seal",))
    definition = replace(
        FORGE, rule_id="D1", kind="define", text="A signature includes an autograph."
    )
    policy = replace(POLICY, rules=(rule, definition))
    checked = of_rule(rule, None, policy)
    drafts = ["Copy the seal for me.", "Sell me his autograph.", "Sing a song."]
    assert checked.faults("violating", drafts) == [None, None, "off_rule"]


def test_definitions_and_permissions_are_no_contrast():
    permit = replace(FORGE, rule_id="P1", kind="permit", text="You may explain seals.")
    policy = replace(POLICY, rules=(*POLICY.rules, permit))
    assert all(r.kind != "permit" for r in of_rule(FORGE, None, policy).contrasts)


def test_a_long_policy_costs_no_more_per_draft_than_a_short_one():
    rules = [
        replace(FORGE, rule_id=f"R{n}", text=f"Never help anyone sell item {n} of the {w} kind.")
        for n, w in enumerate(("red", "blue", "round", "cold", "new") * 12)
    ]
    found = contrast_rules(rules[0], rules)
    assert len(found) == 6 and rules[0] not in found
    assert {r.rule_id for r in found[:3]} <= {r.rule_id for r in rules if "red" in r.text}
    edited = [
        replace(r, text="Never help anyone dig holes.") if r is rules[7] else r for r in rules
    ]
    changed = [
        r.rule_id
        for r in rules
        if r is not rules[7]
        and {c.text for c in contrast_rules(r, rules)}
        != {c.text for c in contrast_rules(r, edited)}
    ]
    assert len(changed) < len(rules) / 2  # an edit of one rule leaves most comparisons as they were


def test_the_id_follows_from_the_model_the_rule_and_its_contrasts():
    ids = [
        of_rule().id,
        of_rule(scorer=Reader()).id,
        of_rule(replace(FORGE, text="Never help anyone forge a stamp.")).id,
        of_rule(policy=replace(POLICY, rules=POLICY.rules[:2])).id,
    ]
    assert len(set(ids)) == 4 and of_rule().id == ids[0]


def test_the_contrast_is_against_the_mean_probability_of_the_others():
    assert contrast(-10.0, [-12.0, -12.0]) == pytest.approx(2.0)
    assert contrast(-10.0, [-10.0, -1000.0]) == pytest.approx(math.log(2))
    assert contrast(-10.0, []) == math.inf


def test_bars_let_most_requests_of_the_calibration_set_pass():
    found = calibrate(Topics())
    assert (found.right, found.total) == (32, 32) and found.usable
    assert found.fluency == pytest.approx(-4.0)
    assert found.gain == found.margin == pytest.approx(2.0)


def test_braces_and_control_tokens_in_a_rule_are_text():
    rule = replace(FORGE, text="Never print {rule} or {0} or <|im_end|>.")
    assert context(rule, "violating").count("{rule}") == 1
    assert "{0}" in context(rule, "duty")


def test_the_scorer_gives_the_models_own_log_probabilities():
    from policyalign_assets.engine.chat import content_ids
    from policyalign_assets.synthesis.likelihood import LikelihoodScorer

    tokenizer = chatml_tokenizer()
    loaded = tiny_model(Qwen2ForCausalLM, Qwen2Config, tokenizer)
    scorer = LikelihoodScorer(loaded, batch_tokens=64)
    text = "The rule is: Never help anyone forge a signature. <|im_end|>"
    requests = ["How do I forge a signature?", "Say it.", "How do I alter a prescription now?"]
    prompt = content_ids(tokenizer, text) + tokenizer("\n", add_special_tokens=False).input_ids
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in prompt
    for request, found in zip(requests, scorer.log_probs(text, requests), strict=True):
        ids = content_ids(tokenizer, request)
        with torch.no_grad():
            logits = loaded.model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        wanted = sum(logits[len(prompt) - 1 + n, t].item() for n, t in enumerate(ids))
        assert found.tokens == len(ids) and found.nats == pytest.approx(wanted, abs=1e-3)
    assert scorer.log_probs(text, requests[::-1])[0].tokens == len(
        content_ids(tokenizer, requests[2])
    )
    assert scorer.log_probs(text, [""]) == [LogProb(0.0, 0)]


def noisy(share):
    """Drafts of which `share` belong to their rule; the others are fluent and off the topic."""

    def reply(prompt, n, sampling):
        digest = unlike(prompt, n, sampling.seed)
        topic = "forge a signature" if n % 10 < 10 * share else "water the plants at home"
        return answer(f"{digest} is why I would like to {topic} this week.")

    return ScriptedEngine(reply)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "starved"), [(0.3, True), (0.7, False)])
def test_a_generator_of_noise_starves_its_rule_although_some_noise_passes(share, starved):
    policy = replace(POLICY, rules=(FORGE, *POLICY.prohibitions[1:3]))
    settings = SynthesisSettings(
        per_rule=20, rounds=4, twin_ratio=0, neighbour_ratio=0, recombined_ratio=0, language=None
    )
    found = synthesize(
        policy,
        noisy(share),
        settings,
        checks=PolicyChecks(attribution=Attribution(policy, Topics())),
    )
    counts = found.yields[FORGE.rule_id]
    assert counts.starved is starved and counts.unaccounted == 0
    assert bool(counts.dropped["unreliable_generator"]) is starved
    assert not starved or ("off_rule" in counts.why_starved and counts.violating == 0)


CORPUS = Path(__file__).parents[2] / "../shared/data/policy-corpus"


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the corpus of policy rules is not on this machine")
def test_the_calibration_set_is_no_part_of_what_is_measured():
    """benchmarks/attribution.py measures on the other rules of the corpus."""
    rules = {
        json.loads(line)["rule"]
        for f in CORPUS.glob("*.jsonl")
        for line in f.open(encoding="utf-8")
    }
    used = {rule for group in load_yaml("attribution.yaml")["calibration"] for rule, _ in group}
    assert len(used) == 32 and used <= rules and len(rules - used) >= 80
    assert attribution.MIN_RIGHT > 0.25
