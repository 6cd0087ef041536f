"""Which choice of a question is the right one, in every form that benchmarks state it."""

import json

import pytest
from test_benchmark_files import deep
from test_benchmarks import ours, write

from policyalign_assets.evaluation.benchmarks import NotRun, load
from policyalign_assets.evaluation.choices import NoSingleAnswer, named_choices, right_choice

CHOICES = [
    # how the choices and the answer are written, its form, the place of the right one
    (["1", "2", "3", "4"], 2, "index", 2),
    (["1", "2", "3", "4"], "2", "index", 2),
    (["1", "2", "3", "4"], 2.0, "index", 2),
    (["1", "2", "3", "4"], "2.0", "index", 2),
    (["1", "2", "3", "4"], "2", "text", 1),
    (["B", "C", "A"], "A", "letter", 0),
    (["B", "C", "A"], "(b)", "letter", 1),
    (["B", "C", "A"], "A", "text", 2),
    ({"A": "B", "B": "A"}, "B", "letter", 1),
    ({"A": "yes", "B": "no", "C": None}, 1, "index", 1),
    ("['ja', 'nein']", 1, "index", 1),
    ('["ja", "nein"]', "ja", "text", 0),
    ("{'A': 'ja', 'B': 'nein'}", "B", "letter", 1),
    (["x", "y", "", None], "B", "letter", 1),
    (["same", "same", "other"], 2, "index", 2),
    ([1, 2, 3], "2", "text", 1),
]


@pytest.mark.parametrize(("listed", "said", "form", "place"), CHOICES)
def test_the_right_choice_is_read_in_the_form_that_the_manifest_states(listed, said, form, place):
    choices = named_choices({"choices": listed}, ("choices",))
    assert right_choice(choices, said, form) == place


@pytest.mark.parametrize(
    ("listed", "said", "form"),
    [
        (["a", "b"], 2, "index"),
        (["a", "b"], -1, "index"),
        (["a", "b"], 1.5, "index"),
        (["a", "b"], True, "index"),
        (["a", "b"], None, "index"),
        (["a", "b"], float("nan"), "text"),
        (["a", "b"], "C", "letter"),
        (["a", "b"], "AB", "letter"),
        (["a", "b"], "c", "text"),
        (["a", "a"], 0, "index"),
        (["a", "a"], "a", "text"),
        (["a"], 0, "index"),
        ([], 0, "index"),
        (["a", None, "b"], 0, "index"),
        ({"A": "a", "C": "b"}, "A", "letter"),
        ("__import__('os').getcwd()", 0, "index"),
        ("['a', 'b'", 0, "index"),
        (deep(5_000), 0, "index"),
        ("-" * 5_000 + "1", 0, "index"),
        ("7", 0, "index"),
        (7, 0, "index"),
    ],
)
def test_a_row_without_a_single_right_choice_is_refused(listed, said, form):
    with pytest.raises(NoSingleAnswer):
        right_choice(named_choices({"choices": listed}, ("choices",)), said, form)


def test_columns_that_name_different_answers_are_refused(tmp_path):
    row = {"question": "q", "options": {"A": "x", "B": "y"}, "answer_idx": "A", "answer": "y"}
    write(tmp_path / "medqa/test.jsonl", [row])
    with pytest.raises(NotRun, match="answer_idx and answer name different choices"):
        load(ours("medqa"), tmp_path)


def test_the_letter_of_the_right_choice_goes_to_the_harness(tmp_path):
    from policyalign_assets.evaluation.lm_eval_harness import write_tasks

    write(
        tmp_path / "medmcqa/validation.parquet",
        [
            {
                "id": "1",
                "question": "q",
                "opa": "2",
                "opb": "1",
                "opc": "0",
                "opd": "3",
                "cop": 1,
                "subject_name": "s",
            }
        ],
    )
    write_tasks(load(ours("medmcqa"), tmp_path).cases, tmp_path)
    (line,) = (tmp_path / "medmcqa.jsonl").read_text().splitlines()
    assert json.loads(line)["gold"] == 1
