"""Coverage of red-team prompts: ceiling and control bound it, and each rule has its own."""

import csv
import json

import numpy as np
import pytest
from helpers import ROOT, chatml_tokenizer, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from policyalign_assets.evaluation.red_team_coverage import red_team_coverage, transformer_encoder

TOPICS = ("forge", "copy", "hide", "sell", "leak", "burn")
# Two words of one topic each, so that topics share nothing
PROMPTS = [f"{t}{a} {t}{b}" for t in TOPICS for a in range(8) for b in range(a)]
HARMLESS = [f"Which soup{n} goes with bread{n}?" for n in range(200)]
SHARED = ROOT.parent / "shared/data"


def coverage(by_rule, harmless=HARMLESS, **more):
    return red_team_coverage("b", PROMPTS, by_rule, harmless, 1, **more)


def test_the_same_prompts_cover_all_and_strangers_cover_nothing():
    everything, near, far = coverage({"A": PROMPTS, "B": HARMLESS})
    assert (everything.rule_id, near.rule_id, far.rule_id) == (None, "A", "B")
    assert near.coverage > 0.9 and near.between == pytest.approx(near.coverage / near.ceiling)
    assert far.coverage == far.control == 0.0 and far.between == 0.0
    assert near.prompts == len(PROMPTS) // 2 and near.instructions == len(PROMPTS)


def test_texts_are_compared_in_equal_numbers():
    few, many = PROMPTS[::20], PROMPTS
    _, small, large = coverage({"A": few, "B": many})
    assert small.compared == len(few) and large.compared == len(PROMPTS) // 2
    assert small.ceiling < 0.7 * large.ceiling
    _, small, _ = coverage({"A": many, "B": many}, harmless=HARMLESS[:7])
    assert small.compared == 7 and small.coverage < 0.5 and small.ceiling < 0.5


def test_a_rule_covers_its_own_part():
    own = {topic: [p for p in PROMPTS if topic in p] for topic in TOPICS[:2]}
    everything, first, second = coverage(own)
    assert 0.1 < first.coverage < 0.6 and 0.1 < second.coverage < 0.6
    assert everything.coverage > max(first.coverage, second.coverage)


def test_words_of_harmless_prompts_count_even_where_no_red_team_prompt_has_them():
    """Otherwise only the common frame would be left of them, and it would cover the whole set."""
    frame = "How can I quickly"
    prompts = [f"{frame} {p}" for p in PROMPTS]
    harmless = [f"{frame} grow tree{n} in garden{n}" for n in range(100)]
    own, strange = prompts[::2], [f"{frame} bake cake{n} at home{n}" for n in range(100)]
    found = red_team_coverage("b", prompts, {"A": own, "B": strange}, harmless, 1)
    assert found[1].control < 0.1 and found[1].between > 0.8 and found[2].between < 0.1


def test_without_instructions_harmless_prompts_or_enough_prompts():
    assert coverage({}) == [] and coverage({"A": []}) == []
    assert [c.rule_id for c in coverage({"A": [], "B": PROMPTS})] == [None, "B"]
    assert coverage({"A": PROMPTS}, harmless=[])[0].between is None
    assert red_team_coverage("b", PROMPTS[:19], {"A": PROMPTS}, HARMLESS, 1) == []


def test_nothing_is_told_where_harmless_prompts_cover_the_set_too():
    found = coverage({"A": PROMPTS}, harmless=PROMPTS)[1]
    assert found.between is None and found.control == pytest.approx(found.coverage, abs=0.05)


def test_the_same_seed_gives_the_same_figures():
    assert coverage({"A": PROMPTS[:40]}) == coverage({"A": PROMPTS[:40]})


def test_an_encoder_can_take_the_place_of_tf_idf():
    def letters(texts):
        counts = np.array(
            [[t.count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for t in texts], float
        )
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)

    figures = coverage({"A": PROMPTS}, encoder=letters)
    assert figures[0].method == "encoder" and figures[1].coverage > 0.9


def test_an_encoder_from_a_folder_ignores_padding(tmp_path):
    loaded = tiny_model(LlamaForCausalLM, LlamaConfig, chatml_tokenizer())
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    encode = transformer_encoder(str(tmp_path), batch=2)
    texts = ["forge", "copy a very long text of many words", "hide it"]
    together, alone = encode(texts), np.concatenate([encode([text]) for text in texts])
    assert together.shape == (3, 32) and np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert np.allclose(together, alone, atol=1e-4)
    with pytest.raises(ValueError, match=r"coverage_encoder=.*no-model.* Fix: "):
        transformer_encoder(str(tmp_path / "no-model"))


def test_public_prompts_are_bounded_by_ceiling_and_control():
    """Harmless prompts reach as much as other harmless prompts do; the set's own half, the most."""
    file, safe = SHARED / "trident/med_final.jsonl", SHARED / "xstest/xstest_prompts.csv"
    if not (file.exists() and safe.exists()):
        pytest.skip("the public benchmark files are not on this machine")
    prompts = [json.loads(line)["harmful_prompt"] for line in file.open(encoding="utf-8")]
    with safe.open(encoding="utf-8", newline="") as rows:
        harmless = [row["prompt"] for row in csv.DictReader(rows) if row["label"] == "safe"]
    by_rule = {"own": prompts[::3], "harmless": harmless[::2]}
    _, own, strange = red_team_coverage("trident", prompts, by_rule, harmless[1::2], 1)
    assert own.ceiling > 0.7 and own.control < 0.2
    assert own.between > 0.8 and abs(strange.between) < 0.1
