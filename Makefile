PYTHON ?= python3
BIN := .venv/bin
PARTITION ?= medical|general-conduct
# its warnings are about its own command line
DAGSTER := PYTHONWARNINGS=ignore $(BIN)/dagster

.PHONY: demo realign test ui bench lint clean

demo: .venv/installed
	$(DAGSTER) asset materialize -m policyalign_assets.definitions --select policy_catalog
	$(DAGSTER) asset materialize -m policyalign_assets.definitions --select '*' --partition '$(PARTITION)'
	$(BIN)/python -m policyalign_assets.report.show '$(PARTITION)'

# edits an addendum in a copy and times what happens until the new report
realign: .venv/installed
	$(BIN)/python benchmarks/edit_to_report.py

test: .venv/installed
	$(BIN)/python -m pytest

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

clean:
	rm -rf .venv .dagster data
