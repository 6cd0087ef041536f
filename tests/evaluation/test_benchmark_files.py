"""Files of benchmarks in every shape: published ones load, hostile ones say why they do not."""

import json
import zipfile
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import ROOT
from test_benchmarks import ours, write

from policyalign_assets.evaluation import benchmark_files
from policyalign_assets.evaluation.benchmarks import (
    Benchmark,
    NotRun,
    load,
    manifest,
)

SHARED = ROOT.parent / "shared" / "data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the public benchmark files are not on this machine"
)
QUESTION = {"question": "Which one?", "gold": 1}


def xlsx(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook()
    book.active.append(list(rows[0]))
    for row in rows:
        book.active.append(list(row.values()))
    book.save(file)


def text(file: Path, content: str | bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


# name, benchmark, {file: rows or content}, what comes out
PUBLISHED = [
    (
        "LEXam's spreadsheet",
        "lexam",
        {
            "lexam/data/MCQs_test.xlsx": [
                {
                    "Question": "Wer haftet?",
                    "choices": "['Die Mieterin', \"Der 'Vermieter'\"]",
                    "gold": 1,
                }
            ]
        },
        [("question", "Wer haftet?", "Der 'Vermieter'")],
    ),
    (
        "LEXam on the hub",
        "lexam",
        {
            "lexam/mcq_4_choices/mcq_4_choices-test.parquet": [
                {"question": "Qui?", "choices": ["oui", "non"], "gold": 0}
            ]
        },
        [("question", "Qui?", "oui")],
    ),
    (
        "GuardSet-X with Input and Output",
        "guardset-x",
        {
            "guardset-x/finance/Input/FINRA/data_safe.jsonl": [{"instance": "a", "category": "c"}],
            "guardset-x/finance/Input/FINRA/data_unsafe.jsonl": [
                {"instance": "b", "category": "c"}
            ],
            "guardset-x/law/Input/ABA/data_unsafe.jsonl": [{"instance": "d", "category": "c"}],
            "guardset-x/finance/Output/FINRA/data_safe.jsonl": [{"instance": "x", "category": "c"}],
            "guardset-x/finance/Output/FINRA/data_unsafe.jsonl": [
                {"instance": "y", "category": "c"}
            ],
        },
        [("benign", "a", None), ("harmful", "b", None), ("harmful", "d", None)],
    ),
    (
        "GuardSet-X of other domains",
        "guardset-x",
        {
            "guardset-x/hr/Adobe/data_safe.jsonl": [{"instance": "a", "category": "c"}],
            "guardset-x/hr/Adobe/data_unsafe.jsonl": [{"instance": "b", "category": "c"}],
        },
        [("benign", "a", None), ("harmful", "b", None)],
    ),
    (
        "MedSafetyBench's repository",
        "medsafetybench",
        {
            "medsafetybench/datasets/test/gpt4/med_safety_demonstrations_category_1.csv": [
                {"harmful_medical_request": "a", "safe_response": "no"}
            ],
            "medsafetybench/datasets/test/llama2/med_safety_demonstrations_category_9.csv": [
                {"harmful_medical_request": "b", "safe_response": "no"}
            ],
        },
        [("harmful", "a", None), ("harmful", "b", None)],
    ),
    (
        "MedQA, whose options look like letters",
        "medqa",
        {
            "medqa/test.jsonl": [
                {
                    "question": "q",
                    "options": {"A": "B", "B": "C", "C": "A"},
                    "answer_idx": "A",
                    "answer": "B",
                }
            ]
        },
        [("question", "q", "B")],
    ),
    (
        "MedQA as Parquet, where a row lacks a letter of others",
        "medqa",
        {
            "medqa/test.jsonl": [
                {"question": "q", "options": {"A": "x", "B": "y", "E": None}, "answer_idx": "b"}
            ]
        },
        [("question", "q", "y")],
    ),
    (
        "MedMCQA, whose options look like places",
        "medmcqa",
        {
            "medmcqa/validation.parquet": [
                {
                    "id": "1",
                    "question": "q",
                    "opa": "1",
                    "opb": "2",
                    "opc": "3",
                    "opd": "4",
                    "cop": 2,
                    "subject_name": "s",
                }
            ]
        },
        [("question", "q", "3")],
    ),
    (
        "MMLU-Pro, whose options look like places and letters",
        "mmlu-pro",
        {
            "mmlu-pro/test-00000-of-00001.parquet": [
                {
                    "question_id": 1,
                    "question": "q",
                    "options": ["D", "0", "A", "2"],
                    "answer": "D",
                    "answer_index": 3,
                    "category": "law",
                }
            ]
        },
        [("question", "q", "2")],
    ),
    (
        "GPQA, whose choices are letters",
        "gpqa-diamond",
        {
            "gpqa/gpqa_diamond.csv": [
                {
                    "Question": "q",
                    "Correct Answer": "C",
                    "Incorrect Answer 1": "A",
                    "Incorrect Answer 2": "B",
                    "Incorrect Answer 3": "0",
                }
            ]
        },
        [("question", "q", "C")],
    ),
    (
        "a CSV with a byte order mark",
        "advbench",
        {"advbench/harmful_behaviors.csv": b"\xef\xbb\xbfgoal,target\nOpen it,Sure\n"},
        [("harmful", "Open it", None)],
    ),
]


@pytest.mark.parametrize(
    ("name", "benchmark", "files", "cases"), PUBLISHED, ids=lambda v: str(v)[:40]
)
def test_published_files_load(tmp_path, name, benchmark, files, cases):
    for file, rows in files.items():
        if isinstance(rows, bytes):
            text(tmp_path / file, rows)
        else:
            (xlsx if file.endswith(".xlsx") else write)(tmp_path / file, rows)
    loaded = load(ours(benchmark), tmp_path)
    assert [(c.kind, c.prompt, c.answer) for c in loaded.cases] == cases
    for case in loaded.cases:
        if case.choices:
            assert case.choices[case.right] == case.answer


def test_medsafetybench_has_the_categories_of_its_files(tmp_path):
    files = next(files for _, benchmark, files, _ in PUBLISHED if benchmark == "medsafetybench")
    for file, rows in files.items():
        write(tmp_path / file, rows)
    assert [c.category for c in load(ours("medsafetybench"), tmp_path).cases] == ["1", "9"]


def test_a_fork_of_advbench_with_one_more_row_loads(tmp_path):
    entry = next(b for b in manifest() if b.id == "advbench")
    for rows, good in ((520, True), (521, True), (522, False)):
        write(
            tmp_path / "advbench/harmful_behaviors.csv",
            [{"goal": f"Open door {n}", "target": ""} for n in range(rows)],
        )
        if good:
            assert len(load(entry, tmp_path).cases) == rows
        else:
            with pytest.raises(NotRun, match="522 rows where the manifest expects 520 or 521"):
                load(entry, tmp_path)


@needs_shared
@pytest.mark.parametrize(
    ("benchmark", "cases"),
    [
        ("strongreject", 313),
        ("xstest", 450),
        ("math-500", 500),
        ("trident-medicine", 854),
        ("trident-law", 887),
        ("trident-finance", 911),
    ],
)
def test_whole_public_files_load(benchmark, cases):
    entry = next(b for b in manifest() if b.id == benchmark)
    loaded = load(entry, SHARED)
    assert len(loaded.cases) == cases == len({c.case_id for c in loaded.cases})


def deep(depth: int) -> str:
    return "[" * depth + "]" * depth


HOSTILE = {
    "a row that is a list.jsonl": ('["prompt"]\n', "row 1 of .* is no object"),
    "a row that is a number.jsonl": ('{"prompt": "p"}\n7\n', "row 2 of .* is no object"),
    "a row that is null.jsonl": ("null\n", "no object"),
    "nested.jsonl": (f'{{"prompt": {deep(100_000)}}}\n', "nested too deeply|RecursionError"),
    "nested.json": (deep(100_000), "nested too deeply|RecursionError"),
    "no list.json": ('{"a": 1}', "holds no list"),
    "two lists.json": ('{"a": [1], "b": [2]}', "holds no list"),
    "a list of numbers.json": ("[1, 2]", "row 1 of .* is no object"),
    "torn.jsonl": ('{"prompt": ', "cannot be read"),
    "not utf-8.jsonl": (b"\xff\xfe\x00", "cannot be read"),
    "latin-1.csv": ("prompt\nJos\xe9\n".encode("latin-1"), "cannot be read"),
    "ragged.csv": ("prompt,x\np,1,2\n", "row 1 of .* has not 2 columns"),
    "short.csv": ("prompt,x\np\n", "row 1 of .* has not 2 columns"),
    "columns twice.csv": ("prompt,prompt\np,q\n", "more than one column"),
    "open quote.csv": ('prompt\n"p\n', "cannot be read"),
    "huge field.csv": ("prompt\n" + "p" * 200_000 + "\n", "cannot be read"),
    "empty.csv": ("", "column prompt is missing"),
    "header alone.csv": ("prompt\n", "column prompt is missing"),
    "no parquet.parquet": (b"PAR1", "cannot be read"),
    "no zip.xlsx": (b"PK\x03\x04", "cannot be read"),
    "unknown.sqlite": (b"", "files are not read"),
    "a number as prompt.jsonl": ('{"prompt": 7}\n', "no text in prompt"),
    "an empty prompt.jsonl": ('{"prompt": "  "}\n', "no text in prompt"),
    "an empty conversation.jsonl": ('{"prompt": []}\n', "no text in prompt"),
    "two users.jsonl": (
        json.dumps({"prompt": [{"role": "user", "content": "a"}] * 2}),
        "do not take turns",
    ),
    "no content.jsonl": (json.dumps({"prompt": [{"role": "user"}]}), "no text in prompt"),
}


def one_file(name: str, **more) -> Benchmark:
    entry = {
        "id": "mine",
        "title": "Mine",
        "files": (name,),
        "prompts": ({"kind": "harmful", "column": ("prompt",)},),
        "metric": "refused",
    }
    return Benchmark(**entry | more)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_not_run_and_says_why_without_a_word_of_it(tmp_path, name):
    content, reason = HOSTILE[name]
    text(tmp_path / name, content)
    with pytest.raises(NotRun, match=reason) as caught:
        load(one_file(name), tmp_path)
    assert "José" not in str(caught.value) and len(str(caught.value)) < 200


def test_files_that_unpack_to_gigabytes_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_files, "MAX_BYTES", 2**20)
    big = "p" * 100_000
    pq.write_table(pa.table({"prompt": [big] * 400}), tmp_path / "repeated.parquet")
    pq.write_table(
        pa.table({"prompt": [big + str(i) for i in range(400)]}),
        tmp_path / "long.parquet",
        compression="zstd",
    )
    with zipfile.ZipFile(tmp_path / "bomb.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", "0" * 2**22)
    for name in ("repeated.parquet", "long.parquet", "bomb.xlsx"):
        assert (tmp_path / name).stat().st_size < 2**20
        with pytest.raises(NotRun, match="holds more than 1 MiB"):
            load(one_file(name), tmp_path)
    (tmp_path / "large.jsonl").write_text('{"prompt": "p"}\n' * 2**17)
    with pytest.raises(NotRun, match="larger than 1 MiB"):
        load(one_file("large.jsonl"), tmp_path)
    monkeypatch.setattr(benchmark_files, "MAX_ROWS", 10)
    (tmp_path / "many.jsonl").write_text('{"prompt": "p"}\n' * 11)
    with pytest.raises(NotRun, match="more than 10 rows"):
        load(one_file("many.jsonl"), tmp_path)
    monkeypatch.setattr(benchmark_files, "MAX_LINE", 100)
    (tmp_path / "line.jsonl").write_text(json.dumps({"prompt": "p" * 200}) + "\n")
    with pytest.raises(NotRun, match="a line of more than 100"):
        load(one_file("line.jsonl"), tmp_path)


@pytest.mark.parametrize(
    ("value", "turns"),
    [
        ("One request", [("One request", None)]),
        (["First", "Second"], [("First", None), ("Second", None)]),
        (
            [
                {"role": "user", "content": "First"},
                {"role": "assistant", "content": "No."},
                {"role": "user", "content": "Second"},
                {"role": "assistant", "content": "What some model said"},
            ],
            [("First", "No."), ("Second", None)],
        ),
    ],
)
def test_a_benchmark_can_hold_conversations(tmp_path, value, turns):
    write(tmp_path / "mine.jsonl", [{"prompt": value}])
    (case,) = load(one_file("mine.jsonl"), tmp_path).cases
    assert [(t.text, t.reply) for t in case.conversation.turns] == turns
