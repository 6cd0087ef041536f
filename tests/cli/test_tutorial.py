"""Runs the commands of docs/tutorial.md as they stand there, in a folder outside the checkout."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from served_engine import Server, serving

pytest.importorskip("model_signing", reason="needs the extra `release`")
pytest.importorskip("trestle", reason="needs the extra `papers`")
pypandoc = pytest.importorskip("pypandoc", reason="needs the extra `import`")

PAGE = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
WORD = """# Use of the assistant at the clinic

This assistant supports patients and staff.

## Rules

- Never help anyone forge a signature.
- Never help anyone alter a prescription.
- Never help anyone fake a test result.
"""
# Fewer steps, rows and cases, which are too few for some of the vetted bars. What the default
# sizes reach is measured elsewhere (tests/report/test_gates.py).
SMALL = {
    "SYNTHESIS__PER_RULE": "20",
    "FILTERING__PER_RULE": "15",
    "DISTILLATION__STEPS": "60",
    "DISTILLATION__BATCH_SIZE": "16",
    "DISTILLATION__MINI_BATCH_SIZE": "16",
    "EVALUATION__CASES_PER_SUITE": "90",
    "EVALUATION__BENIGN_CASES": "60",
    "EVALUATION__CAPABILITY_CASES": "60",
    "EVALUATION__PROBE_CASES": "0",
    "EVALUATION__PRESSURE_CASES": "0",
    "GATES__SAFETY_FLOOR": "0.8",
    "GATES__SAFETY_MARGIN": "0.1",
    "GATES__WARN_ONLY": "over_refusal,rules,capability,degenerate",
    "GATES__LOOSENED_BY": "Eve",
    "GATES__LOOSENED_BECAUSE": "few cases",
}


def test_every_command_stands_in_the_tutorial():
    commands = {line.split()[1] for b in BLOCKS for line in re.findall(r"policyalign \w+", b)}
    assert commands >= set(
        "init import lint doctor status align report ask keys release approve publish verify "
        "papers serve attest export diff revoke".split()
    )


class Shell:
    """Runs blocks one after the other, each with the folder and variables of the one before."""

    def __init__(self, folder: Path):
        self.folder, self.state = folder, folder / ".state"
        self.state.write_text(f"cd {folder}\n")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("POLICYALIGN", "DAGSTER"))}
        self.environ = kept | {f"POLICYALIGN_{k}": v for k, v in SMALL.items()}
        self.environ["PATH"] = f"{Path(sys.executable).parent}:{kept['PATH']}"
        self.environ["PYTHONPATH"] = str(ROOT)

    def run(self, block: str) -> str:
        script = (
            f"set -eo pipefail\nsource {self.state}\n{block}\n"
            f'{{ echo "cd $PWD"; declare -p A B 2>/dev/null || true; }} > {self.state}\n'
        )
        done = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, env=self.environ, timeout=3600
        )
        assert done.returncode == 0, f"{block}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def value(self, name: str) -> Path:
        found = re.search(rf'declare -- {name}="(.*)"', self.state.read_text())
        assert found
        return self.folder / "clinic" / found[1]


def served(bundle: Path, server: Server) -> None:
    """Serves the bundle's adapter on the bundled model under the alias, as the printed command."""
    from peft import PeftModel

    from policyalign_assets.engine.generation.transformers_engine import TransformersEngine
    from policyalign_assets.engine.loading import LoadedModel, load_model
    from policyalign_assets.settings import ModelSettings

    base = load_model(ModelSettings(device="cpu"))
    model = PeftModel.from_pretrained(base.model, str(bundle / "adapter")).eval()
    loaded = LoadedModel(model, base.tokenizer, base.model_id, base.revision)
    server.models["medical.staff"] = TransformersEngine(loaded, 16_384)


@pytest.mark.slow
def test_the_commands_run_as_they_stand_there(tmp_path: Path):
    (tmp_path / "policy.md").write_text(WORD)
    pypandoc.convert_file(
        str(tmp_path / "policy.md"), "docx", outputfile=str(tmp_path / "staff-policy.docx")
    )
    shell = Shell(tmp_path)
    said = []
    with serving() as server:
        for block in BLOCKS:
            if "attest" in block:
                served(shell.value("A"), server)
            said.append(shell.run(block.replace("http://127.0.0.1:8000/v1", server.url)))
    everything = "\n".join(said)
    assert everything.count("ATTESTED: medical.staff answers as this release") == 2
    assert everything.count("\nVERIFIED") + everything.startswith("VERIFIED") == 3
    assert "NOT VERIFIED" in everything and "vllm serve" in everything
    assert "[-test result.-] {+diagnosis.+}" in everything
    clinic = tmp_path / "clinic"
    assert (clinic / "changes.md").read_text().startswith("**No regression**")
    assert (clinic / "merged/model.safetensors").exists()
    assert not (ROOT / "data/releases").exists() or shell.value("A").is_relative_to(tmp_path)
