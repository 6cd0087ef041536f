"""Multiple-choice questions through lm-eval, in a process of its own, offline, with a task file of ours and local data.

lm-eval asks and scores; its per-question log is read back, so that arms can be compared question by question like everything
else in the report. The accuracy is the one that its command line prints.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import yaml

from policyalign_assets.evaluation.benchmarks import LETTERS, BenchmarkCase
from policyalign_assets.files import replacing_file

HOURS = 12


class HarnessFailed(RuntimeError):
    """lm-eval ended with an error; the message holds its last lines."""


@dataclass(frozen=True)
class Weights:
    """What a harness of its own loads: a folder or hub id, and the folder of a PEFT adapter."""

    pretrained: str
    dtype: str
    device: str
    revision: str | None = None
    adapter: Path | None = None


def texts() -> object:
    """The task file, parsed, for fingerprints."""
    return yaml.safe_load(_template())


def installed() -> bool:
    return find_spec("lm_eval") is not None


def installed_version() -> str | None:
    """Another version of lm-eval may ask or score in another way."""
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        return None


def answered_correctly(
    identity: str, weights: Weights, cases: Sequence[BenchmarkCase], store: Path | None = None
) -> list[bool]:
    """Per case, did the model give the likeliest letter to the right choice? Kept in `store` like answers.

    `identity`: of the model, see `answers.Model`. Raises HarnessFailed.
    """
    key = hashlib.sha256(
        json.dumps([identity, [_document(c) for c in cases], texts(), installed_version()]).encode()
    ).hexdigest()[:32]
    file = store / f"{key}.choices.json" if store else None
    if file and file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    correct = _ask(weights, cases)
    if file:
        with replacing_file(file) as aside:
            aside.write_text(json.dumps(correct), encoding="utf-8")
    return correct


def write_tasks(cases: Sequence[BenchmarkCase], folder: Path) -> list[str]:
    """One data file and one task file per benchmark, for `lm-eval --include_path folder`; gives the names of the tasks."""
    names = []
    for benchmark in dict.fromkeys(c.benchmark for c in cases):
        lines = "".join(json.dumps(_document(c)) + "\n" for c in cases if c.benchmark == benchmark)
        data = folder / f"{benchmark}.jsonl"
        data.write_text(lines, encoding="utf-8")
        name = benchmark.replace("-", "_")
        task = (
            _template()
            .replace("{id}", name)
            .replace("{file}", str(data))
            .replace("{version}", hashlib.sha256(lines.encode()).hexdigest()[:12])
        )
        (folder / f"{name}.yaml").write_text(task, encoding="utf-8")
        names.append(f"policyalign_{name}")
    return names


def command(weights: Weights, tasks: Sequence[str], folder: Path) -> list[str]:
    """The command line, which can be repeated by hand."""
    model = {"pretrained": weights.pretrained, "dtype": weights.dtype, "trust_remote_code": False}
    model |= {"revision": weights.revision} if weights.revision else {}
    model |= {"peft": str(weights.adapter)} if weights.adapter else {}
    return [
        sys.executable,
        "-m",
        "lm_eval",
        "run",
        "--model",
        "hf",
        "--model_args",
        ",".join(f"{k}={v}" for k, v in model.items()),
        "--tasks",
        ",".join(tasks),
        "--include_path",
        str(folder),
        "--device",
        weights.device,
        "--batch_size",
        "16",
        "--apply_chat_template",
        "--log_samples",
        "--output_path",
        str(folder / "out"),
    ]


def _ask(weights: Weights, cases: Sequence[BenchmarkCase]) -> list[bool]:
    with tempfile.TemporaryDirectory(prefix="policyalign-lm-eval-") as name:
        folder = Path(name)
        tasks = write_tasks(cases, folder)
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(folder / "cache"),
            "HF_DATASETS_OFFLINE": "1",
        }
        done = subprocess.run(
            command(weights, tasks, folder),
            capture_output=True,
            text=True,
            env=environment,
            timeout=HOURS * 3600,
        )
        if done.returncode:
            raise HarnessFailed(
                "lm-eval failed: "
                + " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
            )
        correct = {}
        for log in folder.glob("out/**/samples_*.jsonl"):
            for line in log.read_text(encoding="utf-8").splitlines():
                sample = json.loads(line)
                correct[sample["doc"]["case_id"]] = sample["acc"] == 1.0
    if missing := [c.case_id for c in cases if c.case_id not in correct]:
        raise HarnessFailed(f"lm-eval logged no answer to {len(missing)} of {len(cases)} questions")
    return [correct[c.case_id] for c in cases]


def _document(case: BenchmarkCase) -> dict:
    letters = list(LETTERS[: len(case.choices)])
    options = "\n".join(
        f"{letter}. {choice}" for letter, choice in zip(letters, case.choices, strict=True)
    )
    return {
        "case_id": case.case_id,
        "text": f"{case.prompt}\n{options}\nAnswer with the letter alone.\nAnswer:",
        "letters": letters,
        "gold": case.choices.index(case.answer),
    }


def _template() -> str:
    return resources.files(__package__).joinpath("capability.yaml").read_text(encoding="utf-8")
