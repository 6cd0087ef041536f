"""The calibration command: what it counts, and its one clear error for a CSV with a mistake."""

import json
from pathlib import Path

import pytest
from fake_judge import Reply, fake_judge

from policyalign_assets.evaluation.calibrate import Calibration, agreement, main
from policyalign_assets.policy import parse_policy

ROOT = Path(__file__).parents[2]
RULES = [r.rule_id for r in parse_policy(ROOT / "policies", "general-conduct", "medical").rules]
A, B = RULES[:2]


@pytest.fixture()
def command(tmp_path, monkeypatch, capsys):
    """Runs the command on a CSV of these lines; gives what it printed and wrote, or the text of
    its error."""
    monkeypatch.chdir(ROOT)

    def run(text: str) -> tuple[str, dict | None]:
        (tmp_path / "golden.csv").write_text(text, encoding="utf-8")
        out = tmp_path / "out.json"
        try:
            main(
                [
                    "--golden",
                    str(tmp_path / "golden.csv"),
                    "--policy",
                    "general-conduct",
                    "--domain",
                    "medical",
                    "--json",
                    str(out),
                ]
            )
        except SystemExit as stop:
            return str(stop.code), None
        return capsys.readouterr().out, json.loads(out.read_text())

    return run


def test_kappa_with_its_interval():
    # Fleiss, Levin and Paik, Statistical Methods for Rates and Proportions: p_o = 0.8, p_e = 0.5
    result = agreement(
        "q",
        [(True, True)] * 40 + [(False, False)] * 40 + [(True, False)] * 10 + [(False, True)] * 10,
    )
    assert (result.n, result.people_yes, result.false_negatives, result.false_positives) == (
        100,
        50,
        10,
        10,
    )
    assert result.kappa == pytest.approx(0.6)
    assert (result.low, result.high) == pytest.approx(
        (0.6 - 1.96 * 0.08, 0.6 + 1.96 * 0.08), abs=1e-3
    )


@pytest.mark.parametrize("pairs", [[], [(True, True)] * 5])
def test_kappa_is_not_defined_where_all_cases_are_of_one_kind(pairs):
    assert agreement("q", pairs).kappa is None


@pytest.mark.slow
def test_the_command_counts_misses_and_false_alarms_per_rule(command, monkeypatch):
    people = {"a": A, "b": A, "c": "none", "d": "none", "e": B, "f": "none"}
    judged = {
        "a": [A],
        "b": [],
        "c": [A],
        "d": [],
        "e": [B],
        "f": None,
    }  # b missed, c a false alarm, f unreadable

    def reply(messages, _):
        case = messages[-1]["content"].splitlines()[1]
        broken = judged[case]
        return (
            Reply("?")
            if broken is None
            else Reply(
                json.dumps(
                    {
                        "rules": {r: "broken" if r in broken else "kept" for r in RULES},
                        "verdict": "breaks" if broken else "keeps",
                        "refused": False,
                        "helpful_alternative": False,
                    }
                )
            )
        )

    with fake_judge(reply) as server:
        for name, value in {
            "KIND": "policy",
            "BASE_URL": server.url,
            "MODEL": "a-judge",
            "REVISION": "r7",
        }.items():
            monkeypatch.setenv(f"POLICYALIGN_JUDGE__{name}", value)
        printed, result = command(
            "prompt,response,safe,violated\n"
            + "".join(
                f"{c},Certainly.,{'yes' if v == 'none' else 'no'},{v}\n" for c, v in people.items()
            )
        )
    by_question = {a["question"]: a for a in result["agreements"]}
    assert [
        (
            by_question[f"breaks {r}"]["false_negatives"],
            by_question[f"breaks {r}"]["false_positives"],
        )
        for r in (A, B)
    ] == [(1, 1), (0, 0)]
    assert (by_question["unsafe"]["n"], by_question["unsafe"]["false_negatives"]) == (5, 1)
    assert (
        result["unscored"] == {"the reply is no JSON object": 1}
        and "1 unscored" in printed
        and "policy/a-judge, revision r7" in printed
    )
    assert set(result) == set(Calibration.__dataclass_fields__)


def test_the_rule_based_judge_is_compared_on_refusals_alone(command):
    _, result = command(
        "prompt,response,safe,refused\nq,I cannot help with that: it is against the "
        "rules.,yes,yes\nq,Bananas.,no,no\n"
    )
    assert [(a["question"], a["n"]) for a in result["agreements"]] == [("refused", 1)]
    assert (
        sum(result["unscored"].values()) == 1
    )  # neither a refusal nor an answer that the bundled model gives
    assert result["judge"].startswith("rules/")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ["prompt, response is missing"]),
        ("prompt,answer,safe\nq,a,yes\n", ["response is missing"]),
        ("prompt,response\nq,a\n", ["no column holds labels"]),
        ("prompt,response,safe,who\nq,a,yes,me\n", ["unknown column 'who'"]),
        ("prompt,response,safe\n", ["holds no case"]),
        ("prompt,response,safe\nq,a,yes\nq,a,perhaps\n", ["line 3", "'perhaps'", "yes or no"]),
        ("prompt,response,safe\nq,a, b,yes\n", ["line 2", "double quotes"]),
        ("prompt,response,safe\n ,a,yes\n", ["line 2", "prompt is empty"]),
        ("prompt,response,violated\nq,a,Z9\n", ["line 2", "'Z9'", A]),
        (f"prompt,response,safe,violated\nq,a,yes,{A}\n", ["line 2", "contradict"]),
        ('prompt,response,safe\nq,"a,yes\n', ["cannot be read"]),
    ],
)
def test_a_csv_with_a_mistake_gives_one_error_that_says_where_and_how_to_fix_it(
    command, text, names
):
    error, result = command(text)
    assert result is None and "golden.csv" in error and "Fix: " in error and "\n" not in error
    assert all(name in error for name in names), error


def test_a_csv_with_a_byte_order_mark_is_read(command):
    _, result = command("\ufeffprompt,response,refused\nq,I cannot help with that.,No\n")
    assert [(a["false_positives"], a["n"]) for a in result["agreements"]] == [(1, 1)]


def test_misses_are_counted_by_group_and_whose_labels_they_are_is_kept(command):
    printed, result = command(
        "prompt,response,refused,group\n"
        "q,I cannot help with that.,yes,base\n"
        "q,Bananas are yellow.,yes,base\n"
        "q,I must decline this.,yes,aligned\n"
        "q,,yes,aligned\n"
        "q,Start with a short plan.,no,aligned\n"
    )
    assert result["groups"] == {
        "base": {"yes": 2, "missed": 1},
        "aligned": {"yes": 2, "missed": 1},  # what cannot be scored is a miss
    }
    assert result["labels"] == "labelled answers" and "refusals of base: 1 of 2 missed" in printed
