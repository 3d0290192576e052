# `make` alone explains itself. Every target sets up .venv first, once; nothing outside this folder is touched.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test check format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## ask the shipped model, train and compare three models on this machine, write runs/demo/report.html
	@$(BIN)/vision-remember demo

test: $(READY) ## run the tests (CPU, no network, minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

check: $(READY) ## format, lint, types, import rules
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_architecture.py

format: $(READY) ## rewrite the sources the way `check` wants them
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format .

clean: ## remove .venv and caches; runs/ stays
	@rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache

$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) (once; torch and transformers, a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
