"""Rows are stored by rule: an edit, another domain, and what is held out for evaluation."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import (
    ScriptedEngine,
    answer,
    unlike,
)
from test_grid import FULL, PLACES, POLICY, good, main, rows, written

from policyalign_assets.policy import parse_policy
from policyalign_assets.synthesis.checks import PolicyChecks
from policyalign_assets.synthesis.firewall import Firewall
from policyalign_assets.synthesis.store import RuleStore
from policyalign_assets.synthesis.synthesize import synthesize

pytestmark = pytest.mark.slow


ROOT = Path(__file__).parents[2]


REDUCED = FULL.model_copy(
    update={"grid": "reduced", "recombined_ratio": 1.0, "language": None, "oversample": 2.0}
)


def with_actions(prompt, n, sampling):
    """Requests that name the action, so that they can be recombined."""
    action = prompt.partition("Never help anyone ")[2].rstrip(".")
    return answer(f"{PLACES[n % 12]}: {written(prompt, n, sampling)} How do I {action}?")


def edited(policy, rule_id, text="Never help anyone invent a blood test."):
    return replace(
        policy,
        rules=tuple(
            replace(r, text=text, action="invent a blood test") if r.rule_id == rule_id else r
            for r in policy.rules
        ),
    )


def asked_rules(engine):
    return {c[-1].content for chats, _ in engine.calls for c in chats}


@pytest.mark.parametrize("settings", [FULL, REDUCED], ids=["full", "reduced"])
def test_an_edit_costs_the_edited_rule_and_no_other(tmp_path, settings):
    reply = with_actions if settings is REDUCED else good
    store = RuleStore(tmp_path)
    first = synthesize(POLICY, ScriptedEngine(reply), settings, store=store)
    again = ScriptedEngine(reply)
    assert (
        synthesize(POLICY, again, settings, store=store).table.equals(first.table)
        and again.calls == []
    )

    changed = edited(POLICY, "M2")
    engine = ScriptedEngine(reply)
    second = synthesize(changed, engine, settings, store=store)
    others = {r.text for r in changed.rules if r.rule_id != "M2"}
    assert engine.calls and not any(
        text in prompt for prompt in asked_rules(engine) for text in others
    )
    assert second.table.equals(
        synthesize(changed, ScriptedEngine(reply), settings).table
    )  # the same as without anything kept


def test_an_edit_leaves_every_row_of_other_rules_that_did_not_use_the_edited_one():
    def of_others(policy):
        table = synthesize(policy, ScriptedEngine(with_actions), REDUCED).table.drop_columns(
            ["policy_hash"]
        )
        return {json.dumps(r, sort_keys=True) for r in table.to_pylist() if r["rule_id"] != "M2"}

    old, changed = next(r for r in POLICY.rules if r.rule_id == "M2"), edited(POLICY, "M2")
    new = next(r for r in changed.rules if r.rule_id == "M2")
    before, after = of_others(POLICY), of_others(changed)
    used = {r for r in before if json.loads(r)["partner_hash"] == old.content_hash}
    assert used and before - after >= used  # the rows that used it are gone
    # Rows that use another rule replace them, and the rows that now rank the edited rule first.
    assert len(before & after) > 0.75 * len(before)
    assert all(json.loads(r)["partner_hash"] for r in before ^ after)
    assert all(
        json.loads(r)["partner_hash"] == new.content_hash
        or any(json.loads(u)["parent_id"] == json.loads(r)["parent_id"] for u in used)
        for r in after - before
    )


def test_domains_share_the_rows_of_a_shared_rule(tmp_path):
    shutil.copytree(ROOT / "policies", tmp_path / "policies")
    legal = parse_policy(tmp_path / "policies", "general-conduct", "legal")
    store = RuleStore(tmp_path / "rows")
    medical_rows = synthesize(POLICY, ScriptedEngine(good), FULL, store=store)
    engine = ScriptedEngine(good)
    legal_rows = synthesize(legal, engine, FULL, store=store)
    shared = [r.rule_id for r in POLICY.rules if r.source == "shared"]
    assert shared and not any(
        r.text in p for r in POLICY.rules if r.source == "shared" for p in asked_rules(engine)
    )
    for rule_id in shared:
        texts = [
            [r["text"] for r in main(result, rule_id)] for result in (medical_rows, legal_rows)
        ]
        assert texts[0] == texts[1] != []


def test_other_settings_generators_and_firewalls_draft_anew(tmp_path):
    store = RuleStore(tmp_path)
    synthesize(POLICY, ScriptedEngine(good), FULL, store=store)
    other = ScriptedEngine(good)
    other.revision = "r2"
    for engine, settings, wall in (
        (ScriptedEngine(good), FULL.model_copy(update={"temperature": 0.5}), None),
        (other, FULL, None),
        (ScriptedEngine(good), FULL, Firewall({"x": "a new benchmark"})),
    ):
        synthesize(POLICY, engine, settings, checks=PolicyChecks(wall), store=store)
        assert engine.calls
    kept = ScriptedEngine(good)
    synthesize(POLICY, kept, FULL.model_copy(update={"heldout": 0.3}), store=store)
    assert kept.calls == []


def test_a_tenth_is_held_out_by_whole_clusters_with_all_that_was_made_from_it():
    def reply(prompt, n, sampling):
        """Each request comes in three forms that are alike."""
        action = prompt.partition("Never help anyone ")[2].rstrip(".")
        return answer(f"{unlike(prompt, n // 3, sampling.seed)}{'!' * (n % 3)} How do I {action}?")

    settings = REDUCED.model_copy(
        update={"per_rule": 40, "near_duplicate": 1.0, "neighbour_ratio": 0.2}
    )
    result = synthesize(POLICY, ScriptedEngine(reply), settings)
    for rule in POLICY.prohibitions:
        made = rows(result, rule_id=rule.rule_id)
        held = {r["cluster"] for r in made if r["split"] == "heldout"}
        assert held and not held & {r["cluster"] for r in made if r["split"] == "train"}
        plain = main(result, rule.rule_id)
        assert 0 < sum(r["split"] == "heldout" for r in plain) <= 4
        assert Counter(r["cluster"] for r in plain).most_common(1)[0][1] == 3
        by_id = {r["instruction_id"]: r for r in made}
        assert all(r["split"] == by_id[r["parent_id"]]["split"] for r in made if r["parent_id"])
        assert result.yields[rule.rule_id].heldout == sum(r["split"] == "heldout" for r in made)


def test_nothing_is_held_out_where_the_share_is_zero():
    result = synthesize(POLICY, ScriptedEngine(good), FULL.model_copy(update={"heldout": 0.0}))
    assert {r["split"] for r in rows(result)} == {"train"}
