"""Public benchmarks: the manifest, the loaders, and a run whose every figure can be counted.

All texts here are ours.
"""

import csv
import json
import os
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from policyalign_assets.evaluation.benchmarks import Benchmark, NotRun, load, manifest, version_of
from policyalign_assets.settings import EvaluationSettings
from policyalign_assets.stages.shaping import benchmarks_version

BY_ID = {b.id: b for b in manifest()}
NAMED_IN_THE_PAPER_AND_ITS_DOMAINS = {
    "strongreject",
    "advbench",
    "wildjailbreak",
    "fortress",
    "xstest",
    "or-bench-hard",
    "mmlu-pro",
    "gpqa-diamond",
    "math-500",
    "medsafetybench",
    "cares",
    "trident-medicine",
    "trident-law",
    "trident-finance",
    "guardset-x",
    "medqa",
    "medmcqa",
    "lexam",
    "financebench",
}
SHARED = Path(os.environ.get("POLICYALIGN_SHARED_DATA", "/nowhere"))
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(),
    reason="POLICYALIGN_SHARED_DATA names no folder with public benchmark files",
)
needs_math = pytest.mark.skipif(
    find_spec("math_verify") is None, reason="math-verify is not installed (extra `eval`)"
)


def write(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    elif file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        with file.open("w", encoding="utf-8", newline="") as out:
            writer = csv.DictWriter(out, rows[0], delimiter="\t" if file.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)


def xstest_rows(n: int = 4) -> list[dict]:
    return [
        {
            "id": i + 1,
            "prompt": f"How do I open door number {i}?",
            "type": "homonyms",
            "label": "safe" if i % 2 == 0 else "unsafe",
            "focus": f"door {i // 2}",
            "note": "",
        }
        for i in range(n)
    ]


# rows of our own in the columns of each benchmark, where its file lies, and how many cases of each
# kind come out
FIXTURES = {
    "strongreject": (
        "strongreject/strongreject_dataset.csv",
        [{"category": "c", "source": "s", "meli_query": 'Open the door, "now",\nplease'}],
        {"harmful": 1},
    ),
    "advbench": (
        "advbench/harmful_behaviors.csv",
        [{"goal": "Open it", "target": "Sure"}],
        {"harmful": 1},
    ),
    "wildjailbreak": (
        "wildjailbreak/eval.tsv",
        [
            {"adversarial": "NA", "label": 1, "data_type": "adversarial_harmful"},
            {"adversarial": "b", "label": 0, "data_type": "adversarial_benign"},
        ],
        {"harmful": 1, "benign": 1},
    ),
    "fortress": (
        "fortress/train.parquet",
        [
            {
                "ID": 1,
                "adversarial_prompt": "a",
                "rubric": ["x"],
                "risk_domain": "d",
                "risk_subdomain": "e",
                "benign_prompt": "b",
            }
        ],
        {"harmful": 1, "benign": 1},
    ),
    "xstest": ("xstest/xstest_prompts.csv", xstest_rows(), {"benign": 2, "harmful": 2}),
    "or-bench-hard": (
        "or-bench/or-bench-hard-1k.csv",
        [{"prompt": "p", "category": "c"}],
        {"benign": 1},
    ),
    "mmlu-pro": (
        "mmlu-pro/test-00000-of-00001.parquet",
        [
            {
                "question_id": 1,
                "question": "q",
                "options": ["a", "b"],
                "answer": "A",
                "answer_index": 0,
                "cot_content": "",
                "category": "law",
                "src": "s",
            }
        ],
        {"question": 1},
    ),
    "gpqa-diamond": (
        "gpqa/gpqa_diamond.csv",
        [
            {
                "Question": "q",
                "Correct Answer": "a",
                "Incorrect Answer 1": "b",
                "Incorrect Answer 2": "c",
                "Incorrect Answer 3": "d",
            }
        ],
        {"question": 1},
    ),
    "math-500": (
        "math500/test.jsonl",
        [
            {
                "problem": "What is 1 + 1?",
                "solution": "2",
                "answer": "2",
                "subject": "s",
                "level": 1,
                "unique_id": "u/1",
            }
        ],
        {"question": 1},
    ),
    "cares": (
        "cares/test.jsonl",
        [
            {
                "principle_index": 1,
                "harmful_level": h,
                "method": "m",
                "generation_model": "g",
                "base_prompt": "b",
                "prompt": f"p{h}",
            }
            for h in range(4)
        ],
        {"benign": 1, "harmful": 3},
    ),
    "trident-law": (
        "trident/law_final.jsonl",
        [
            {
                "domain": "law",
                "ethical_refs": ["Rule 1", "Rule 2"],
                "harmful_prompt": "p",
                "id": "i",
                "risk_type": "t",
                "safe_reply": "no",
            }
        ],
        {"harmful": 1},
    ),
    "guardset-x": (
        "guardset-x/unsafe.jsonl",
        [{"instance": "p", "category": "c", "rule": "r"}],
        {"harmful": 1},
    ),
    "medmcqa": (
        "medmcqa/validation.parquet",
        [
            {
                "id": "i",
                "question": "q",
                "opa": "a",
                "opb": "b",
                "opc": "c",
                "opd": "d",
                "cop": 2,
                "subject_name": "s",
            }
        ],
        {"question": 1},
    ),
    "financebench": (
        "financebench/financebench_open_source.jsonl",
        [{"financebench_id": "f", "question_type": "t", "question": "q", "answer": "$1"}],
        {"question": 1},
    ),
}


def ours(benchmark: str, **changes) -> Benchmark:
    """The entry of the manifest, for a file of ours: other bytes, other number of rows."""
    return BY_ID[benchmark].model_copy(update={"sha256": None, "rows": ()} | changes)


def why_not(benchmark: Benchmark, folder: Path | None, **kwargs) -> str:
    with pytest.raises(NotRun) as caught:
        load(benchmark, folder, **kwargs)
    return str(caught.value)


def test_the_manifest_lists_every_benchmark_with_home_licence_and_metric():
    assert set(BY_ID) == NAMED_IN_THE_PAPER_AND_ITS_DOMAINS
    assert all(b.home.startswith("https://") and b.licence and b.metric for b in manifest())
    assert {d for b in manifest() for d in b.domains} == {
        "medical",
        "legal",
        "financial",
        "general",
    }


@pytest.mark.parametrize("benchmark", FIXTURES)
def test_each_loader_reads_rows_in_the_columns_of_its_benchmark(tmp_path, benchmark):
    name, rows, kinds = FIXTURES[benchmark]
    write(tmp_path / name, rows)
    loaded = load(ours(benchmark), tmp_path)
    counted = [c.kind for c in loaded.cases]
    assert {k: counted.count(k) for k in set(counted)} == kinds
    assert len({c.case_id for c in loaded.cases}) == len(loaded.cases)
    assert all(c.prompt in [str(v) for r in rows for v in r.values()] for c in loaded.cases)
    assert all((c.answer is not None) == (c.kind == "question") for c in loaded.cases)
    assert (loaded.version, loaded.source) == (version_of([tmp_path / name]), "local")


def test_categories_and_clusters_come_with_the_cases(tmp_path):
    write(tmp_path / FIXTURES["trident-law"][0], FIXTURES["trident-law"][1])
    write(tmp_path / FIXTURES["cares"][0], FIXTURES["cares"][1])
    assert load(ours("trident-law"), tmp_path).cases[0].category == "Rule 1, Rule 2"
    assert {c.cluster for c in load(ours("cares"), tmp_path).cases} == {"b"}


def test_a_file_that_is_not_the_one_of_the_manifest_is_not_run(tmp_path):
    write(tmp_path / "xstest/xstest_prompts.csv", xstest_rows())
    assert "sha256" in why_not(BY_ID["xstest"], tmp_path)
    assert "4 rows where the manifest expects 450" in why_not(ours("xstest", rows=(450,)), tmp_path)
    right = version_of([tmp_path / "xstest/xstest_prompts.csv"])
    assert len(load(ours("xstest", sha256=right), tmp_path).cases) == 4


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"id": 1, "prompt": "p", "type": "t", "focus": "f"}], "column label is missing"),
        (
            [{"id": 1, "prompt": " ", "type": "t", "label": "safe", "focus": "f"}],
            "row 1 has no text in prompt",
        ),
        (
            [{"id": 1, "prompt": "p", "type": "t", "label": "maybe", "focus": "f"}],
            "row 1 is of a kind",
        ),
    ],
)
def test_a_file_with_wrong_columns_or_rows_is_not_run_and_says_why(tmp_path, rows, reason):
    write(tmp_path / "xstest/xstest_prompts.csv", rows)
    assert reason in why_not(ours("xstest"), tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("math500/test.jsonl", b'{"problem": '),
        ("math500/test.jsonl", b"\xff\xfe"),
        ("fortress/a.parquet", b"PAR1"),
        ("xstest/xstest_prompts.csv", b'id,prompt\n1,"open'),
    ],
)
def test_a_damaged_file_is_not_run(tmp_path, name, content):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(content)
    benchmark = next(b for b in manifest() if b.files[0].split("/")[0] == name.split("/")[0])
    assert "cannot be read" in why_not(ours(benchmark.id), tmp_path)


def test_what_is_not_there_says_where_it_would_come_from(tmp_path):
    assert "evaluation.benchmarks_dir is not set" in why_not(BY_ID["xstest"], None)
    assert "terms" in why_not(
        BY_ID["wildjailbreak"], tmp_path
    ) and "benchmarks_from_hub is off" in why_not(BY_ID["wildjailbreak"], tmp_path)
    assert "pins no hub revision" in why_not(BY_ID["or-bench-hard"], tmp_path, from_hub=True)


def test_the_hub_is_asked_for_the_pinned_revision_and_its_refusal_is_a_reason(
    tmp_path, monkeypatch
):
    asked = []

    def download(repo, **kwargs):
        asked.append((repo, kwargs["revision"], kwargs["repo_type"]))
        if len(asked) == 2:
            raise OSError("gated")
        write(
            tmp_path / "data/train.parquet", [{k: r[k] for k in r} for r in FIXTURES["fortress"][1]]
        )
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    loaded = load(ours("fortress"), None, from_hub=True)
    assert (
        len(loaded.cases) == 2
        and loaded.source == f"hub ScaleAI/fortress_public@{BY_ID['fortress'].hub.revision}"
    )
    assert "did not give ScaleAI/fortress_public" in why_not(ours("fortress"), None, from_hub=True)
    assert set(asked) == {("ScaleAI/fortress_public", BY_ID["fortress"].hub.revision, "dataset")}


def test_a_changed_file_makes_reports_out_of_date_and_a_moved_folder_does_not(tmp_path):
    def version(folder: str) -> str:
        return benchmarks_version(EvaluationSettings(benchmarks_dir=str(tmp_path / folder)))

    for folder in ("a", "b"):
        write(tmp_path / folder / "xstest/xstest_prompts.csv", xstest_rows())
    before = version("a")
    assert version("b") == before != benchmarks_version(EvaluationSettings())
    write(tmp_path / "a/xstest/xstest_prompts.csv", xstest_rows(5))
    assert version("a") != before
    write(tmp_path / "b/advbench/harmful_behaviors.csv", FIXTURES["advbench"][1])
    assert version("b") != before
