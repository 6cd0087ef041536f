"""Benchmarks of one's own: manifests in the folder of the benchmarks, and mistakes in them."""

import pytest
from test_benchmark_files import QUESTION, text
from test_benchmarks import write

from policyalign_assets.evaluation.benchmarks import ManifestError, files_of, load, manifest

OWN = """
benchmarks:
  - id: harmbench
    title: HarmBench
    files: [harmbench/*.csv]
    prompts: [{kind: harmful, column: [Behavior]}]
    category: SemanticCategory
    metric: share refused
  - id: our-exam
    title: Our exam
    domains: [medical]
    files: [exam.jsonl]
    prompts: [{kind: question, column: [question]}]
    answer: gold
    answer_form: index
    choices: [a, b]
    scoring: likelihood
    metric: accuracy
"""


def test_benchmarks_of_ones_own_come_from_manifests_in_the_folder(tmp_path):
    text(tmp_path / "ours.yaml", OWN)
    write(tmp_path / "harmbench/x.csv", [{"Behavior": "Open it", "SemanticCategory": "doors"}])
    write(tmp_path / "exam.jsonl", [QUESTION | {"a": "1", "b": "0"}])
    listed = {b.id: b for b in manifest(tmp_path)}
    assert len(listed) == len(manifest()) + 2
    (case,) = load(listed["harmbench"], tmp_path).cases
    assert (case.prompt, case.category) == ("Open it", "doors")
    (case,) = load(listed["our-exam"], tmp_path).cases
    assert case.answer == "0"
    assert listed["harmbench"].domains == ("medical", "legal", "financial", "general")
    assert files_of(listed["harmbench"], tmp_path) == [tmp_path / "harmbench/x.csv"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("benchmarks: [", "is no YAML"),
        ("[1, 2]", "has no list `benchmarks`"),
        (OWN.replace("harmbench/*.csv", "../x.csv"), "leaves the benchmarks folder"),
        (OWN.replace("harmbench/*.csv", "/etc/passwd"), "leaves the benchmarks folder"),
        (OWN.replace("id: harmbench", "id: xstest"), "is listed twice"),
        (OWN.replace("kind: harmful", "kind: evil"), "entry 0.prompts.0.kind"),
        (OWN.replace("    answer_form: index\n", ""), "answer_form"),
        (OWN.replace("    scoring: likelihood\n", ""), "belong together"),
        (OWN.replace("    metric: accuracy\n", ""), "entry 1.metric"),
        (OWN.replace("[medical]", "[kitchen]"), "domain 'kitchen' does not exist"),
        (OWN.replace("category: Sem", "category_from_file: '('\n    category: Sem"), "expression"),
        (b"\xff\xfe", "cannot be read"),
        ("a" * (2**20 + 1), "is larger than"),
    ],
)
def test_a_manifest_with_a_mistake_names_the_file_and_the_entry(tmp_path, content, message):
    text(tmp_path / "ours.yaml", content)
    with pytest.raises(ManifestError, match=message):
        manifest(tmp_path)
