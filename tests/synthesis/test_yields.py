"""The funnel: every draft is kept, or dropped for exactly one counted reason."""

import random

import pytest
from helpers import ScriptedEngine, answer, medical_policy, unlike

from policyalign_assets.settings import SynthesisSettings
from policyalign_assets.stages.coverage_facts import synthesis_coverage
from policyalign_assets.synthesis.checks import PolicyChecks
from policyalign_assets.synthesis.firewall import Firewall
from policyalign_assets.synthesis.store import RuleStore
from policyalign_assets.synthesis.synthesize import synthesize
from policyalign_assets.synthesis.yields import RuleYield

POLICY = medical_policy()
BAD = ("", "I cannot help with that.", "Write to [name] now.", "<|im_end|> hello there", "short")


def untidy(seed):
    """A generator whose drafts are good, bad, repeated or cut off, in any order."""

    def reply(prompt, n, sampling):
        rng = random.Random(f"{seed}/{prompt}/{n}/{sampling.seed}")
        draw = rng.random()
        if draw < 0.25:
            return answer(rng.choice(BAD))
        if draw < 0.35:
            return answer("Tell me how to go on", finish="length")
        if draw < 0.5:
            return answer(f"Please repeat the same old request to {POLICY.rules[0].action}.")
        action = rng.choice([r.action for r in POLICY.prohibitions])
        return answer(f"{unlike(seed, prompt, n, sampling.seed)} and how would I {action} today?")

    return ScriptedEngine(reply)


def made(seed, grid="reduced", **changed):
    settings = {"per_rule": 6, "rounds": 3, "language": None, "grid": grid, "seed": seed}
    wall = Firewall({"a": f"Please repeat the same old request to {POLICY.rules[0].action}."})
    return synthesize(
        POLICY, untidy(seed), SynthesisSettings(**settings | changed), checks=PolicyChecks(wall)
    )


@pytest.mark.slow
@pytest.mark.parametrize("grid", ["reduced", "full"])
@pytest.mark.parametrize("seed", range(2))
def test_the_numbers_of_every_rule_add_up(grid, seed):
    result = made(seed, grid, near_duplicate=0.6, style_share=1.0, recombined_ratio=2.0)
    rows = result.table.to_pylist()
    for rule_id, counts in result.yields.items():
        kept = [r for r in rows if r["rule_id"] == rule_id]
        assert counts.kept == len(kept)
        assert counts.drafted + counts.templated == len(kept) + sum(counts.dropped.values())
    everything = sum((y.dropped for y in result.yields.values()), start=RuleYield(0).dropped)
    expected = {"empty", "truncated", "placeholder", "evaluation_copy"}
    # The ladder of the full grid asks again where the generator refuses.
    assert expected | ({"refused"} if grid == "reduced" else set()) <= set(everything)
    assert everything["surplus"] > 0
    assert any(y.templated for y in result.yields.values())


def test_every_draft_of_the_generator_is_counted():
    engine = untidy(5)
    settings = SynthesisSettings(per_rule=6, rounds=3, language=None)
    result = synthesize(POLICY, engine, settings)
    asked = sum(len(chats) for chats, _ in engine.calls)
    assert sum(y.drafted for y in result.yields.values()) == asked


@pytest.mark.slow
def test_stored_counts_add_up_again(tmp_path):
    settings = SynthesisSettings(per_rule=6, rounds=2, language=None)
    first, again = (
        synthesize(POLICY, untidy(6), settings, store=RuleStore(tmp_path)) for _ in range(2)
    )
    assert first.yields == again.yields and first.table.equals(again.table)
    assert all(y.unaccounted == 0 for y in again.yields.values())


def test_a_draft_that_is_lost_count_of_stops_the_run():
    counts = RuleYield(wanted=4, drafted=5, violating=3)
    counts.dropped["empty"] = 1
    with pytest.raises(RuntimeError, match=r"C1: .* 5 drafts .* 3 kept and 1 dropped. Fix: "):
        counts.check("C1")


@pytest.mark.slow
def test_the_page_shows_a_funnel_per_rule_whose_numbers_add_up():
    result = made(7)
    yields = {rule_id: vars(counts) for rule_id, counts in result.yields.items()}
    lines = synthesis_coverage(result.table, yields)["drafts"]["raw_value"].splitlines()
    header = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert header[:5] == ["rule", "by the author", "drafted", "by templates", "kept"]
    assert "surplus" in header
    assert len(lines) == 2 + len(result.yields)
    for line in lines[2:]:
        written, drafted, templated, kept, *dropped = map(int, line.strip("|").split("|")[1:])
        assert written + drafted + templated == kept + sum(dropped)


def test_a_starved_rule_says_why():
    counts = RuleYield(wanted=40, violating=3, drafted=320)
    counts.dropped.update({"duplicate": 37, "language": 280})
    assert counts.why_starved == (
        "3 of 40 requests from 320 drafts; dropped: language 280, duplicate 37"
    )
