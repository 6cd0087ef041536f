"""Coverage of red-team prompts: ceiling and control bound it, and each rule has its own."""

import json

import numpy as np
import pytest
from helpers import ROOT

from policyalign_assets.evaluation.red_team_coverage import red_team_coverage

TOPICS = ("forge", "copy", "hide", "sell", "leak", "burn")
# Two words of one topic each, so that topics share nothing
PROMPTS = [f"{t}{a} {t}{b}" for t in TOPICS for a in range(8) for b in range(a)]
HARMLESS = [f"Which soup goes with bread number {n}?" for n in range(30)]


def coverage(by_rule, harmless=HARMLESS, **more):
    return red_team_coverage("b", PROMPTS, by_rule, harmless, 1, **more)


def test_the_same_prompts_cover_all_and_strangers_cover_nothing():
    everything, near, far = coverage({"A": PROMPTS, "B": HARMLESS})
    assert (everything.rule_id, near.rule_id, far.rule_id) == (None, "A", "B")
    assert near.coverage == everything.coverage == 1.0
    assert far.coverage == far.control == 0.0 and far.between == 0.0
    assert near.ceiling > 0.9 and near.between == pytest.approx(1 / near.ceiling)
    assert near.prompts == len(PROMPTS) // 2 and near.instructions == len(PROMPTS)


def test_a_rule_covers_its_own_part():
    own = {topic: [p for p in PROMPTS if topic in p] for topic in TOPICS[:2]}
    everything, first, second = coverage(own)
    assert 0.1 < first.coverage < 0.6 and 0.1 < second.coverage < 0.6
    assert everything.coverage > max(first.coverage, second.coverage)


def test_without_instructions_harmless_prompts_or_enough_prompts():
    (everything,) = coverage({})
    assert everything.coverage == 0.0 and everything.instructions == 0
    assert coverage({"A": PROMPTS}, harmless=[])[0].between is None
    assert red_team_coverage("b", PROMPTS[:19], {"A": PROMPTS}, HARMLESS, 1) == []


def test_an_encoder_can_take_the_place_of_tf_idf():
    def letters(texts):
        counts = np.array(
            [[t.count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for t in texts], float
        )
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)

    figures = coverage({"A": PROMPTS}, encoder=letters)
    assert figures[0].method == "encoder" and figures[1].coverage > 0.95


def test_half_of_a_public_set_covers_the_other_half():
    file = ROOT.parent / "shared/data/trident/med_final.jsonl"
    if not file.exists():
        pytest.skip("the public benchmark files are not on this machine")
    prompts = [json.loads(line)["harmful_prompt"] for line in file.open(encoding="utf-8")]
    (figure,) = red_team_coverage("trident", prompts, {}, HARMLESS, 1)
    assert figure.ceiling > 0.9 and figure.control < 0.2 and figure.coverage == 0.0
