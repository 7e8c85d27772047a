# `make help` lists the targets.
PYTHON ?= python3
# Mixture, launch configuration and further options of `make run-local`.
CONFIG ?= configs/quickstart.yaml
LAUNCH ?= cpu
ARGS ?=

BIN := .venv/bin

.PHONY: help run-local test drill quality style quickstart-data baselines dashboard

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-18s %s\n", $$1, $$2}'

.venv/.installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

run-local: .venv/.installed ## Train a mixture on this machine: CONFIG=configs/….yaml LAUNCH=cpu|single_gpu|multi_gpu ARGS="--key value"
	@$(BIN)/accelerate launch --quiet --config_file accelerate_configs/$(LAUNCH).yaml run_multitask.py --config $(CONFIG) $(ARGS)

test: .venv/.installed ## Run the tests; those on real data need MULTITASK_DATA_ROOT
	$(BIN)/python -m pytest

drill: .venv/.installed ## Kill runs, damage checkpoints and disturb uploads by the hundred, and print the counts
	MULTITASK_DRILL=1 $(BIN)/python -m pytest -m drill

quality: .venv/.installed ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

style: .venv/.installed ## Format the code and mend what lint can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

quickstart-data: .venv/.installed ## Write the quick start's data anew from its facts
	$(BIN)/python quickstart/make_data.py

baselines: .venv/.installed ## What a constant and a bag of words reach on the quick start
	$(BIN)/python quickstart/baselines.py

dashboard: .venv/.installed ## Publish the W&B workspace of a mixture: CONFIG=configs/….yaml
	@$(BIN)/python -m dashboards.workspace --config $(CONFIG) $(ARGS)
