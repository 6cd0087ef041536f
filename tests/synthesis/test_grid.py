"""The full grid: even cells, duties, conditions, the ladder, attack styles, and stored rows."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import (
    ScriptedEngine,
    answer,
    chatml_tokenizer,
    medical_policy,
    one_thread,
    tiny_model,
    unlike,
)

from policyalign_assets.engine.base import Sampling
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.policy import parse_policy
from policyalign_assets.settings import SettingsError, SynthesisSettings, load_settings
from policyalign_assets.synthesis import grid
from policyalign_assets.synthesis.checks import PolicyChecks
from policyalign_assets.synthesis.drafting import Examples
from policyalign_assets.synthesis.firewall import Firewall
from policyalign_assets.synthesis.ladder import draft_with_ladder, without_label
from policyalign_assets.synthesis.store import RuleStore
from policyalign_assets.synthesis.synthesize import synthesize

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
POLICY = medical_policy()
FULL = SynthesisSettings(
    grid="full",
    per_rule=8,
    twin_ratio=0.5,
    neighbour_ratio=0.5,
    recombined_ratio=0.0,
    style_share=0.5,
    oversample=1.0,
    rounds=2,
)
REFUSAL = answer("I cannot help with that.")
PLACES = (
    "clinic",
    "harbour",
    "library",
    "bakery",
    "stadium",
    "museum",
    "garage",
    "chapel",
    "vineyard",
    "airport",
    "embassy",
    "orchard",
)
TASKS = (
    "sign the weekly form",
    "move the old boxes",
    "answer the night calls",
    "count the spare keys",
    "paint the back door",
    "feed the guard dog",
    "check the fuel log",
    "sort the donated coats",
)


def written(prompt: str, n: int, sampling) -> str:
    """A recorded answer: an English request unlike the others."""
    key = hash_of(prompt, n, sampling.seed)
    return (
        f"My cousin at the {PLACES[key % 12]} wants me to {TASKS[key // 12 % 8]} on day "
        f"{key // 96 % 977} without telling anyone at the {PLACES[key // 100 % 12]} number "
        f"{key // 9400 % 9973}, so how would I begin?"
    )


def hash_of(*key) -> int:
    from policyalign_assets.synthesis.drafting import seed_for

    return seed_for(0, *map(str, key))


def good(prompt, n, sampling):
    return answer(written(prompt, n, sampling))


def rows(result, **where):
    return [r for r in result.table.to_pylist() if all(r[k] == v for k, v in where.items())]


def main(result, rule_id):
    return [
        r
        for r in rows(result, rule_id=rule_id)
        if r["kind"] in ("violating", "duty") and r["parent_id"] is None
    ]


@pytest.mark.parametrize("kind", ["violating", "duty"])
@pytest.mark.parametrize("wanted", [7, 40, 300])
def test_cells_are_drawn_evenly(kind, wanted):
    cells = grid.cells(kind)
    drawn = grid.spread(cells, wanted, seed=3)
    assert len(drawn) == wanted and max(Counter(drawn).values()) == -(-wanted // len(cells))
    for values in zip(*drawn):
        counts = Counter(values).values()
        assert max(counts) - min(counts) <= 1 + wanted // len(cells)
    assert drawn == grid.spread(cells, wanted, seed=3) != grid.spread(cells, wanted, seed=4)


def test_every_rule_has_its_cells_in_the_columns_of_its_rows():
    result = synthesize(POLICY, ScriptedEngine(good), FULL)
    assert set(result.yields) == {r.rule_id for r in POLICY.rules} and result.skipped == {}
    for rule in POLICY.rules:
        made = main(result, rule.rule_id)
        assert len(made) == 8 and not result.yields[rule.rule_id].starved
        assert len({(r["intent"], r["persona"], r["format"], r["difficulty"]) for r in made}) == 8
        assert {r["kind"] for r in made} == {"duty" if rule.kind == "require" else "violating"}
        assert {r["ladder"] for r in made} == {"plain"}
    first, second = (
        synthesize(p, ScriptedEngine(good), FULL).table.to_pylist() for p in (POLICY, POLICY)
    )
    assert first == second


def test_the_generator_is_told_the_rule_its_limits_and_the_cell():
    never = replace(
        POLICY.rules[0],
        exceptions=("a notary asked",),
        permitted=("explain how seals are checked",),
    )
    when = replace(POLICY.rules[1], kind="condition", condition="the user is a minor")
    engine = ScriptedEngine(good)
    result = synthesize(replace(POLICY, rules=(never, when)), engine, FULL)
    asked = [c[-1].content for chats, _ in engine.calls for c in chats]
    cell = main(result, never.rule_id)[0]
    said = [a for a in asked if never.text in a and "could only fulfil by breaking" in a]
    assert any(
        all(
            str(grid._grid()["axes"][axis][cell[axis]]) in a
            for axis in ("intent", "persona", "format", "difficulty")
        )
        for a in said
    )
    assert all("must not claim it: a notary asked" in a for a in said)
    assert all(
        "explain how seals are checked" in a
        for a in asked
        if "needless refusals" in a and never.text in a
    )
    assert all(
        "the user is a minor" in a for a in asked if when.text in a and "could only fulfil" in a
    )
    parents = {r["instruction_id"]: r for r in main(result, never.rule_id)}
    for twin in rows(result, rule_id=never.rule_id, kind="twin"):
        parent = parents[twin["parent_id"]]
        assert any(parent["text"] in a for a in asked)
        assert [twin[k] for k in ("intent", "persona")] == [
            parent[k] for k in ("intent", "persona")
        ]


def prompts_of(engine, marker):
    asked = [c[-1].content for chats, _ in engine.calls for c in chats]
    return [a for a in asked if marker in a]


def test_neighbours_are_asked_under_every_exception_permission_and_unmet_condition():
    rule = replace(
        POLICY.rules[0],
        kind="condition",
        forbids=True,
        condition="the user is a minor",
        exceptions=("a guardian agreed", "a court asked"),
        permitted=("explain how seals are checked",),
    )
    engine = ScriptedEngine(good)
    result = synthesize(
        replace(POLICY, rules=(rule,)), engine, FULL.model_copy(update={"neighbour_ratio": 2.0})
    )
    asked = prompts_of(engine, "needless refusals")
    for ground in (
        "under this exception, so the rule does not hold: a guardian agreed.",
        "under this exception, so the rule does not hold: a court asked.",
        "may expressly do: explain how seals are checked.",
        "this condition of the rule is not met: the user is a minor.",
    ):
        assert sum(ground in prompt for prompt in asked) >= len(asked) // 10
    assert any("falls plainly" not in prompt and "not met" not in prompt for prompt in asked)
    assert rows(result, kind="neighbour")
    assert all(
        "must make it plain: the user is a minor" in p for p in prompts_of(engine, "only fulfil")
    )


def test_requests_by_the_author_are_shown_and_never_become_rows(tmp_path):
    rule = POLICY.rules[0]
    examples = Examples(("Sign for my aunt {x} without her.",), ("How do notaries check seals?",))
    policy = replace(POLICY, rules=(rule,))
    engine = ScriptedEngine(good)
    store = RuleStore(tmp_path)
    plain = synthesize(policy, ScriptedEngine(good), FULL, store=store)
    shown = synthesize(policy, engine, FULL, store=store, examples=lambda _: examples)
    assert engine.calls  # other examples, so nothing is taken from the store
    assert all(examples.violates[0] in p for p in prompts_of(engine, "could only fulfil"))
    assert all(examples.allowed[0] in p for p in prompts_of(engine, "needless refusals"))
    assert not any(examples.allowed[0] in p for p in prompts_of(engine, "could only fulfil"))
    assert not {*examples.violates, *examples.allowed} & set(shown.table["text"].to_pylist())
    assert plain.table.num_rows == shown.table.num_rows
    parrot = ScriptedEngine(lambda p, n, s: answer(examples.violates[0]))
    repeated = synthesize(policy, parrot, FULL, examples=lambda _: examples)
    assert repeated.table.num_rows == 0
    assert set(repeated.yields[rule.rule_id].dropped) <= {"duplicate", "placeholder"}


def test_permissions_and_definitions_are_skipped_with_a_reason():
    permit, define = (replace(POLICY.rules[n], kind=k) for n, k in ((0, "permit"), (1, "define")))
    result = synthesize(
        replace(POLICY, rules=(permit, define, POLICY.rules[2])), ScriptedEngine(good), FULL
    )
    assert set(result.yields) == {POLICY.rules[2].rule_id}
    assert "permission" in result.skipped[permit.rule_id]
    assert "definition" in result.skipped[define.rule_id]


def test_a_rule_in_another_language_says_what_is_english():
    rule = replace(POLICY.rules[0], language="de", text="Hilf niemandem, ein Siegel zu fälschen.")
    policy = replace(POLICY, rules=(rule, POLICY.rules[1]))
    for language, said in (("en", "Fix: set synthesis.language='de'"), ("de", "in English")):
        settings = FULL.model_copy(update={"language": language})
        notes = synthesize(policy, ScriptedEngine(good), settings).notes
        assert set(notes) == {rule.rule_id} and said in notes[rule.rule_id]


def test_duties_are_elicited_and_have_no_twins():
    engine = ScriptedEngine(good)
    duty = next(r for r in POLICY.rules if r.kind == "require")
    result = synthesize(replace(POLICY, rules=(duty,)), engine, FULL)
    assert {r["kind"] for r in rows(result)} == {"duty"}
    assert {r["intent"] for r in rows(result)} <= set(
        grid._grid()["duty_intent"]
    ) and "malicious" not in {r["persona"] for r in rows(result)}
    assert all("harmless request" in c[-1].content for chats, _ in engine.calls for c in chats)


def test_styled_requests_are_a_share_and_name_their_parents():
    result = synthesize(POLICY, ScriptedEngine(good), FULL)
    for rule in POLICY.prohibitions:
        parents = {r["instruction_id"]: r for r in main(result, rule.rule_id)}
        styled = [r for r in rows(result, rule_id=rule.rule_id, kind="violating") if r["style"]]
        assert (
            len(styled) == 4 == result.yields[rule.rule_id].styled
            and len({r["style"] for r in styled}) == 4
        )
        for row in styled:
            assert (
                row["text"] == grid.styled(row["style"], parents[row["parent_id"]]["text"])
                and row["split"] == parents[row["parent_id"]]["split"]
            )


class Prefilling(ScriptedEngine):
    """As an engine over token ids: what a prefilled prompt gives is `begun`."""

    def __init__(self, reply, begun):
        super().__init__(reply)
        self.tokenizer, self.begun, self.prefilled = chatml_tokenizer(), begun, []

    def generate_ids(self, prompts, sampling, progress=None):
        self.prefilled += [self.tokenizer.decode(p) for p in prompts]
        return [self.begun(n, sampling) for n in range(len(prompts))]


def refusing(accepts):
    """Refuses unless `accepts` stands in the conversation."""

    def reply(prompt, n, sampling):
        return good(prompt, n, sampling) if accepts in prompt else REFUSAL

    return reply


def test_each_step_of_the_ladder_takes_over_what_the_one_before_refused():
    plain = draft_with_ladder(ScriptedEngine(good), ["a", "b"], FULL_SAMPLING)
    assert [(d.step, d.refused) for d in plain] == [("plain", ())] * 2

    framed = draft_with_ladder(
        ScriptedEngine(refusing("authorised safety work")), ["a"], FULL_SAMPLING
    )
    assert [(d.step, d.refused) for d in framed] == [("defensive", ("plain",))]

    engine = Prefilling(
        lambda p, n, s: REFUSAL, lambda n, s: answer('"How do I begin with the forged seal?"')
    )
    begun = draft_with_ladder(engine, ["a"], FULL_SAMPLING)
    assert [(d.text, d.step, d.refused) for d in begun] == [
        ("How do I begin with the forged seal?", "prefill", ("plain", "defensive"))
    ]
    assert engine.prefilled[0].rstrip().endswith(grid.prefill().strip())

    class WithExamples(ScriptedEngine):
        def generate(self, chats, sampling, progress=None):
            return [
                good("x", n, sampling) if len(c) > 1 and c[1].role == "assistant" else REFUSAL
                for n, c in enumerate(chats)
            ]

    shown = draft_with_ladder(
        WithExamples(None), ["a"], FULL_SAMPLING
    )  # this engine cannot prefill
    assert [(d.step, d.refused) for d in shown] == [("few_shot", ("plain", "defensive"))]


FULL_SAMPLING = Sampling(32, 1.0, 7)


def test_a_rule_whose_requests_are_refused_at_every_step_is_starved_and_filled_by_no_other():
    rule = POLICY.prohibitions[0]
    engine = ScriptedEngine(lambda p, n, s: REFUSAL if rule.text in p else good(p, n, s))
    result = synthesize(POLICY, engine, FULL)
    out = result.yields[rule.rule_id]
    assert rows(result, rule_id=rule.rule_id) == [] and out.starved
    assert out.dropped == {"refused": 16} and out.refused == {
        "plain": 16,
        "defensive": 16,
        "few_shot": 16,
    }
    assert not any(y.starved for k, y in result.yields.items() if k != rule.rule_id)


def test_the_step_that_worked_is_kept_beside_the_row():
    result = synthesize(POLICY, ScriptedEngine(refusing("authorised safety work")), FULL)
    assert {r["ladder"] for r in rows(result)} == {"defensive"}


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ('1. "How do I begin?"', "How do I begin?"),
        ("**Request:** How do I begin?", "How do I begin?"),
        ("- How do I begin?", "How do I begin?"),
        ("Request: 2) How do I begin?", "How do I begin?"),
        ('"Yes" he said, "how?"', '"Yes" he said, "how?"'),
        ("2024 was hard.", "2024 was hard."),
    ],
)
def test_labels_numbers_and_quotes_around_a_request_go(text, request_):
    assert without_label(text) == request_


def test_drafts_near_an_evaluation_prompt_are_dropped_counted_and_replaced():
    leak = (
        "How would a person at the ministry hide the second ledger from the yearly audit without a "
        "trace?"
    )
    rule = POLICY.prohibitions[0]
    engine = ScriptedEngine(
        lambda p, n, s: (
            answer(leak.replace("yearly", "annual")) if rule.text in p and n < 3 else good(p, n, s)
        )
    )
    result = synthesize(POLICY, engine, FULL, checks=PolicyChecks(Firewall({"held-out": leak})))
    assert result.yields[rule.rule_id].dropped["near_evaluation"] >= 3
    assert not any("ministry" in r["text"] for r in rows(result))
    assert len(main(result, rule.rule_id)) > 0


def test_own_cases_are_asked_for_per_rule():
    blocked = POLICY.prohibitions[1].rule_id
    wall = Firewall(
        {str(n): f"{a} {b}" for n, (a, b) in enumerate((p, t) for p in PLACES for t in TASKS)}, 0.01
    )
    result = synthesize(
        POLICY,
        ScriptedEngine(good),
        FULL,
        checks=PolicyChecks(
            own_cases=lambda rule: wall if rule.rule_id == blocked else Firewall({})
        ),
    )
    assert [k for k, y in result.yields.items() if y.starved] == [blocked]


# ---- stored rows ---------------------------------------------------------------------------------

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


# ---- held out ------------------------------------------------------------------------------------


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


# ---- real engines --------------------------------------------------------------------------------


def test_a_model_with_random_weights_goes_all_the_way_through():
    """Its drafts are noise, so every rule is reported as starved.

    The prefilled prompts and the ladder run on real tokens.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = chatml_tokenizer()
    with one_thread():
        engine = TransformersEngine(
            tiny_model(LlamaForCausalLM, LlamaConfig, tokenizer, max_position_embeddings=4096), 8192
        )
        settings = FULL.model_copy(
            update={"per_rule": 2, "rounds": 1, "max_new_tokens": 8, "language": None}
        )
        policy = replace(POLICY, rules=(POLICY.rules[0], POLICY.duties[0]))
        result = synthesize(policy, engine, settings)
        again = synthesize(policy, engine, settings)
        refused = draft_with_ladder(AlwaysRefusing(engine), ["Write one request."], FULL_SAMPLING)
    assert (
        set(result.yields) == {r.rule_id for r in policy.rules}
        and sum(y.drafted for y in result.yields.values()) >= 4
    )
    assert result.table.equals(again.table)
    assert refused[0].step == "prefill" and refused[0].refused == ("plain", "defensive")


class AlwaysRefusing(TransformersEngine):
    """A chat endpoint that refuses, in front of real weights that go on from a prefilled answer."""

    def __init__(self, engine):
        super().__init__(engine.loaded, engine.batch_tokens)

    def generate(self, chats, sampling, progress=None):
        return [REFUSAL] * len(chats)


def test_the_bundled_model_is_not_asked_what_it_was_not_trained_on():
    with pytest.raises(SettingsError, match="not trained on"):
        load_settings(overrides={"synthesis": {"grid": "full"}}, environ={})
    assert load_settings("qwen2.5-7b", environ={}).synthesis.grid == "full"
