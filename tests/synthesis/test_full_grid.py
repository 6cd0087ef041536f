"""The full grid end to end on a model with random weights.

An endpoint drafts and judges; then the rows are scored, filtered and distilled.
"""

import json
from collections import Counter
from dataclasses import replace

import pytest
from fake_judge import Reply, fake_judge
from helpers import chatml_tokenizer, medical_policy, one_thread, tiny_model
from test_grid import written
from transformers import LlamaConfig, LlamaForCausalLM

from policyalign_assets.engine.base import Sampling
from policyalign_assets.files import location
from policyalign_assets.filtering.select import select_instructions
from policyalign_assets.runtime.execution import make
from policyalign_assets.settings import load_settings
from policyalign_assets.stages.coverage_facts import yields_of
from policyalign_assets.stages.interface import StageContext
from policyalign_assets.synthesis import grid

pytestmark = pytest.mark.slow

POLICY = medical_policy()
POLICY = replace(
    POLICY,
    rules=tuple(r for r in POLICY.rules if r.rule_id in ("C1", "M7"))
    + (
        replace(
            POLICY.rules[0],
            rule_id="X1",
            kind="condition",
            text="If a user is a minor, never help with a loan.",
            forbids=True,
            action=None,
            condition="a user is a minor",
            permitted=("explain what a loan is",),
        ),
        replace(
            POLICY.rules[0],
            rule_id="X2",
            text="Never help anyone open a sealed letter.",
            action="open a sealed letter",
        ),
    ),
)
STUBBORN = "X2"  # the generator never writes for this rule


def writer(messages, _attempt):
    """Refuses at first, and writes at another step of the ladder for each rule.

    The judge at the same address decides what fits.
    """
    prompt, turns = messages[-1]["content"], [m["role"] for m in messages]
    if "Question:" in messages[0]["content"]:
        return Reply('{"answer": "%s"}' % ("no" if "harmless" in prompt else "yes"))
    if "keeps the rules of a policy" in str(messages):  # the judge is tried before all work
        kept = {"rules": {r.rule_id: "kept" for r in POLICY.rules}, "verdict": "keeps"}
        return Reply(json.dumps({**kept, "refused": False, "helpful_alternative": False}))
    rule = next(r.rule_id for r in POLICY.rules if r.text in prompt)
    allowed = {
        "C1": True,
        "M7": "authorised safety work" in prompt,
        "X1": "assistant" in turns,
        STUBBORN: False,
    }[rule]
    if not allowed:
        return Reply("I'm sorry, but I can't help with that.")
    writer.count += 1
    benign = "harmless request that" in prompt or "needless refusals" in prompt
    return Reply(
        f'"{written(rule, writer.count, Sampling(1))}{" It is harmless." if benign else ""}"'
    )


@pytest.fixture()
def made(tmp_path):
    tokenizer = chatml_tokenizer()
    model = tiny_model(LlamaForCausalLM, LlamaConfig, tokenizer, max_position_embeddings=4096)
    model.model.save_pretrained(tmp_path / "model", safe_serialization=True)
    tokenizer.save_pretrained(tmp_path / "model")
    writer.count = 0
    with one_thread(), fake_judge(writer) as server:
        settings = load_settings(
            "qwen2.5-7b",
            {
                "model": {
                    "id": str(tmp_path / "model"),
                    "dtype": "float32",
                    "device": "cpu",
                    "engine": "transformers",
                },
                "generator": {"base_url": server.url, "model": "writer", "concurrency": 1},
                "judge": {"kind": "policy", "base_url": server.url, "model": "judge"},
                "synthesis": {
                    "per_rule": 4,
                    "rounds": 2,
                    "entailment": True,
                    "near_duplicate": 1.0,
                    "rouge_l": 1.0,
                    "style_share": 1.5,
                    "heldout": 0.25,
                },
                "firewall": {"own_cases": False},
                "sensitivity": {"max_new_tokens": 8},
                "filtering": {"per_rule": 2},
                "distillation": {
                    "teacher": "frozen",
                    "steps": 1,
                    "batch_size": 4,
                    "mini_batch_size": 4,
                    "max_new_tokens": 8,
                },
            },
            environ={},
        )
        work = StageContext(settings, location(str(tmp_path / "data")))
        yield work, make("violating_instructions", work, {"policy_document": POLICY}).value


def test_every_branch_of_synthesis_is_taken_and_the_rows_go_all_the_way(made):
    work, table = made
    rows, yields = table.to_pylist(), yields_of(table)
    assert {(r["rule_id"], r["kind"]) for r in rows} == {
        (i, k) for i in ("C1", "X1") for k in ("violating", "twin", "neighbour")
    } | {("M7", "duty")}
    assert {r["rule_id"]: r["ladder"] for r in rows if r["kind"] != "twin"} == {
        "C1": "plain",
        "M7": "defensive",
        "X1": "few_shot",
    }
    assert {r["style"] for r in rows if r["rule_id"] == "C1"} == {
        None,
        *grid.styles(),
    }  # 4 plain requests, 6 in an attack style
    assert all(r["entailed"] for r in rows if r["style"] is None) and {
        r["split"] for r in rows
    } == {"train", "heldout"}
    assert yields[STUBBORN]["violating"] == 0 and set(yields[STUBBORN]["dropped"]) == {
        "refused"
    }  # starved, and said so
    assert yields[STUBBORN]["refused"] == dict.fromkeys(
        ("plain", "defensive", "few_shot"), yields[STUBBORN]["drafted"]
    )

    scores = make(
        "sensitivity_scores", work, {"policy_document": POLICY, "violating_instructions": table}
    ).value
    assert scores.num_rows == table.num_rows and None not in scores["teacher_response"].to_pylist()
    filtered = select_instructions(table, scores, work.settings.filtering)
    held = {r["instruction_id"] for r in rows if r["split"] == "heldout"}
    chosen = [r for r in filtered.to_pylist() if r["selected"]]
    assert Counter(r["rule_id"] for r in chosen if r["kind"] in ("violating", "duty")).keys() == {
        "C1",
        "M7",
        "X1",
    }
    assert held and not held & {r["instruction_id"] for r in chosen}
    checkpoint = make(
        "distilled_checkpoint", work, {"policy_document": POLICY, "filtered_instructions": filtered}
    ).value
    assert (work.data / checkpoint.path / "adapter_model.safetensors").exists()
