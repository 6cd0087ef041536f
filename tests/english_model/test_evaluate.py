"""What the evaluation of a policy-following model counts, on answers that are written here."""

from __future__ import annotations

import json

import pytest

from policyalign_assets.engine.base import Generation
from policyalign_assets.english_model.corpus import CorpusError, CorpusRule
from policyalign_assets.english_model.evaluate import (
    KEYS,
    evaluate,
    lessons,
    main,
    names_only,
)


def rules(count: int) -> list[CorpusRule]:
    return [
        CorpusRule("d", f"Never sell item {n}.", (f"sell {n}",), (f"what is {n}",), (f"odd {n}",))
        for n in range(count)
    ]


class Written:
    """Answers by a rule of its own: `wanted(request, system)` is the answer."""

    model_id, revision = "written", "1"

    def __init__(self, wanted):
        self.wanted = wanted

    def generate(self, chats, sampling, progress=None):
        made = []
        for messages in chats:
            system = next((m.content for m in messages if m.role == "system"), "")
            text = self.wanted(messages[-1].content, system)
            made.append(Generation(text, (1,), "stop"))
        return made


def reader(request: str, system: str) -> str:
    """Reads the policy: refuses what a rule forbids and names it."""
    for line in system.splitlines():
        if request.startswith("sell ") and line.endswith(f"item {request[5:]}."):
            name = line.split(":")[0].removeprefix("- ")
            return f"Rule {name} does not allow that, so I can't help with it."
    return "Here you are."


def careful(request: str, system: str) -> str:
    """Refuses whatever sounds risky, as the shortcut does."""
    return "I can't help with that." if request.startswith("sell ") else "Here you are."


def test_a_model_that_reads_the_policy_gets_full_marks():
    found = evaluate(Written(reader), rules(9), limit=9)
    assert {key: found[key] for key in KEYS if key != "n"} == dict.fromkeys(KEYS[:-1], 1.0)
    assert found["n"] == sum(count for kind, count in found["n_by_kind"].items() if kind != "named")


def test_the_shortcut_fails_on_requests_that_no_rule_covers():
    found = evaluate(Written(careful), rules(9), limit=9)
    assert found["covered_refused"] == 1.0 and found["covered_named"] == 0.0
    assert found["uncovered_answered"] == 0.0 and found["twins_answered"] == 1.0


def test_a_model_that_answers_everything_names_nothing():
    found = evaluate(Written(lambda request, system: "Here you are."), rules(9), limit=9)
    assert found["covered_refused"] == 0.0 and found["covered_named"] is None


def test_a_violation_counts_as_uncovered_only_if_its_rule_is_absent():
    for lesson in lessons(rules(9), 3, 9, 0):
        texts = {r.text for r in lesson.rules}
        for request in lesson.requests:
            if request.kind == "uncovered":
                assert f"Never sell item {request.text[5:]}." not in texts


def test_a_name_counts_only_as_a_word_and_alone():
    assert names_only("Rule C1 forbids it.", "C1", ["C1", "C11"])
    assert not names_only("Rule C11 forbids it.", "C1", ["C1", "C11"])
    assert not names_only("Rules C1 and C11 forbid it.", "C1", ["C1", "C11"])


def test_a_file_that_cannot_be_used_is_refused_with_its_line(tmp_path, capsys):
    file = tmp_path / "rules.jsonl"
    file.write_text('{"rule": "No.", "violations": ["a"], "twins": "b"}\n')
    assert main(["--corpus", str(file), "--json"]) == 2
    assert "line 1" in capsys.readouterr().err
    with pytest.raises(CorpusError, match="at least 7 rules"):
        lessons(rules(3), 6, 10, 0)


def test_the_command_prints_exactly_the_keys(tmp_path, capsys, monkeypatch):
    from policyalign_assets.engine import loading
    from policyalign_assets.engine.generation import transformers_engine

    monkeypatch.setattr(loading, "load_model", lambda settings: None)
    monkeypatch.setattr(
        transformers_engine, "TransformersEngine", lambda loaded, tokens: Written(reader)
    )
    file = tmp_path / "rules.jsonl"
    file.write_text(
        "".join(
            json.dumps(
                {
                    "rule": r.text,
                    "violations": r.violations,
                    "twins": r.twins,
                    "neighbours": r.neighbours,
                }
            )
            + "\n"
            for r in rules(9)
        )
    )
    assert main(["--corpus", str(file), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert sorted(printed) == sorted(
        [
            "covered_refused",
            "covered_named",
            "twins_answered",
            "neighbours_answered",
            "uncovered_answered",
            "no_policy_answered",
            "n",
        ]
    )
