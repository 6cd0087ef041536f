"""The shipped weights and their card; the world that they were trained in; the recipe."""

import json
import random
from pathlib import Path

import pytest

from policyalign_assets.bundled_model.evaluate import BARS, markdown, measure
from policyalign_assets.bundled_model.tokenizer import CONTROL_TOKENS, train_tokenizer
from policyalign_assets.bundled_model.train import TrainConfig, train
from policyalign_assets.engine.loading import load_model
from policyalign_assets.engine.shipped_models import BUNDLED_WEIGHTS
from policyalign_assets.policy import list_partitions, parse_policy
from policyalign_assets.settings import ModelSettings
from policyalign_assets.world.world import UNCOVERED_KINDS, World, _bucket

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_the_weights_in_the_tree_give_the_cards_figures():
    card = json.loads((BUNDLED_WEIGHTS / "card.json").read_text())
    source = "shipped policies"
    measured = measure(
        n=card["n"], seed=card["seed"], policies_dir=ROOT / "policies", sources=(source,)
    )[source]
    assert measured.keys() == card["table"][source].keys()
    for behaviour, figure in card["table"][source].items():
        # greedy ties may fall otherwise on another CPU: one case in a hundred at most
        assert abs(measured[behaviour]["k"] - figure["k"]) <= 0.01 * figure["n"], behaviour
        assert measured[behaviour]["n"] == figure["n"]


def test_the_card_shows_the_figures_that_were_measured_and_every_bar():
    card = json.loads((BUNDLED_WEIGHTS / "card.json").read_text())
    text = (BUNDLED_WEIGHTS / "README.md").read_text()
    assert markdown(card["table"]) in text
    assert all(behaviour in card["table"]["shipped policies"] for behaviour in BARS)
    assert all(
        figure["n"] >= 300
        for rows in card["table"].values()
        for behaviour, figure in rows.items()
        if behaviour in BARS
    )


def test_the_weights_are_small_and_hold_no_pickle():
    files = [f for f in BUNDLED_WEIGHTS.iterdir() if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 20e6
    assert {f.suffix for f in files} <= {".safetensors", ".json", ".jinja", ".md"}


def test_any_text_survives_the_tokenizer():
    tokenizer = load_model(ModelSettings()).tokenizer
    for text in ("Zwölf Ärzte, 漢字, 😀\u202e", "tabs\tand\nlines", "a" * 50, "<|system|> as text"):
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert tokenizer.decode(ids) == text
        assert not set(ids) & {tokenizer.convert_tokens_to_ids(t) for t in CONTROL_TOKENS}


def test_training_uses_no_heldout_word_or_pair_and_no_shipped_rule():
    reserved = frozenset(
        r.action
        for d, p in list_partitions(ROOT / "policies")
        for r in parse_policy(ROOT / "policies", p, d).prohibitions
    )
    world = World(random.Random(1), "train", reserved, invented=0.0)
    allowed = {w for text in reserved for w in text.split()}
    for _ in range(3000):
        action = world.action()
        assert action.text not in reserved and _bucket("pair:" + action.text, 10) != 0
        assert not any(
            World.is_heldout_word(w, frozenset(allowed))
            for w in action.text.split()
            if w in world.lex["nouns"]
        )
    unseen = World(random.Random(1), "unseen")
    assert all(World.is_heldout_word(unseen.verb()) for _ in range(50))


@pytest.mark.parametrize("kind", [*UNCOVERED_KINDS, "twin"])
def test_uncovered_requests_share_what_they_say_and_are_never_covered(kind):
    world = World(random.Random(2))
    for _ in range(200):
        policy = world.policy(6)
        action = world.uncovered(policy, kind)
        assert action.text not in {a.text for a in policy.actions}
        if kind in ("same_object", "twin"):
            assert action.obj in {a.obj for a in policy.actions}
        if kind in ("same_verb", "near"):
            assert action.verb in {a.verb for a in policy.actions}


def test_the_worlds_policies_look_as_real_ones_do(tmp_path):
    """What the model was trained on is what `PolicyDocument.prompt_text` renders."""
    for seed in range(20):
        text = World(random.Random(seed)).policy(5).text
        title, _, body = text.removeprefix("# ").partition("\n\n")
        (tmp_path / "p").mkdir(exist_ok=True)
        if "## Declining" not in body:
            continue
        header = f"---\ntitle: {title}\nowner: x\ndomains: [legal]\n---\n\n"
        (tmp_path / "p" / "policy.md").write_text(
            header + body.replace("## Rules", "## Rules\n") + "\n"
        )
        assert parse_policy(tmp_path, "p", "legal").prompt_text == text


def test_the_recipe_trains_saves_and_continues(tmp_path):
    config = TrainConfig(
        hidden=64, layers=2, heads=8, ffn=32, vocab=1200, groups=2, queries=4, free=4, minutes=0.03
    )
    lines = []
    train(config, frozenset({"forge a signature"}), tmp_path / "a", log=lines.append)
    first = json.loads((tmp_path / "a" / "train_state.json").read_text())
    assert first["step"] >= 1
    train(
        config,
        frozenset({"forge a signature"}),
        tmp_path / "b",
        log=lines.append,
        init=tmp_path / "a",
    )
    assert json.loads((tmp_path / "b" / "train_state.json").read_text())["step"] > first["step"]
    assert load_model(ModelSettings(id=str(tmp_path / "b"))).end_ids


def test_the_tokenizer_is_the_same_for_the_same_seed():
    a, b = (train_tokenizer(frozenset(), 900, seed=5) for _ in range(2))
    assert a.get_vocab() == b.get_vocab()
