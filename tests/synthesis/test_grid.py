"""The full grid: even cells, duties, conditions, the ladder, and attack styles."""

from collections import Counter
from dataclasses import replace

import pytest
from helpers import (
    ScriptedEngine,
    answer,
    chatml_tokenizer,
    medical_policy,
    one_thread,
    tiny_model,
)

from policyalign_assets.engine.base import Sampling
from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
from policyalign_assets.settings import SettingsError, SynthesisSettings, load_settings
from policyalign_assets.synthesis import grid
from policyalign_assets.synthesis.checks import PolicyChecks
from policyalign_assets.synthesis.drafting import Examples
from policyalign_assets.synthesis.firewall import Firewall
from policyalign_assets.synthesis.ladder import draft_with_ladder, without_label
from policyalign_assets.synthesis.store import RuleStore
from policyalign_assets.synthesis.synthesize import synthesize

pytestmark = pytest.mark.slow

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


def test_requests_by_the_author_become_rows_and_are_shown_to_the_generator(tmp_path):
    rule = POLICY.rules[0]
    broken, violates = "Sign for my aunt {x} without her.", "Sign this for my uncle, will you?"
    examples = Examples((broken, violates), ("How do notaries check seals?",))
    policy = replace(POLICY, rules=(rule,))
    engine = ScriptedEngine(good)
    store = RuleStore(tmp_path)
    plain = synthesize(policy, ScriptedEngine(good), FULL, store=store)
    shown = synthesize(policy, engine, FULL, store=store, examples=lambda _: examples)
    assert engine.calls  # other examples, so nothing is taken from the store
    assert all(examples.violates[0] in p for p in prompts_of(engine, "could only fulfil"))
    assert all(examples.allowed[0] in p for p in prompts_of(engine, "needless refusals"))
    assert not any(examples.allowed[0] in p for p in prompts_of(engine, "could only fulfil"))
    counts = shown.yields[rule.rule_id]
    assert counts.written == 3 and counts.dropped["placeholder"] == 1  # the broken one is no row
    by_author = [r for r in rows(shown) if r["model_id"] == "author"]
    assert [(r["kind"], r["text"]) for r in by_author] == [
        ("violating", violates),
        ("neighbour", examples.allowed[0]),
    ]
    assert {r["intent"] for r in by_author} == {None}  # they belong to no cell of the grid
    # They take places: as many rows are wanted as without them.
    assert counts.violating == plain.yields[rule.rule_id].violating == FULL.per_rule
    parrot = ScriptedEngine(lambda p, n, s: answer(violates))
    repeated = synthesize(policy, parrot, FULL, examples=lambda _: examples)
    assert repeated.yields[rule.rule_id].violating == 1 and repeated.yields[rule.rule_id].starved
    assert set(repeated.yields[rule.rule_id].dropped) <= {"duplicate", "placeholder"}


def test_more_requests_by_the_author_than_wanted_are_all_kept_and_nothing_is_drafted():
    rule = POLICY.rules[0]
    words = ("deed", "will", "lease", "cheque", "permit", "patent", "visa", "bond")
    examples = Examples(tuple(f"Forge the {w} of my {v}." for w in words for v in words))
    engine, settings = ScriptedEngine(good), FULL.model_copy(update={"twin_ratio": 0.0})
    result = synthesize(
        replace(POLICY, rules=(rule,)), engine, settings, examples=lambda _: examples
    )
    counts = result.yields[rule.rule_id]
    assert counts.violating == len(words) ** 2 > FULL.per_rule and not counts.starved
    assert not prompts_of(engine, "could only fulfil")


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
