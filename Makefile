# Each target does all of its own set-up. Only Python 3.11 or newer (with venv and pip) and make are needed.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
# The newest python3.N on PATH that is at least 3.11; an interpreter of your choice: make test PYTHON=/path/to/python3.12
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$python && break; done)
READY := $(VENV)/.ready
PIP := $(PY) -m pip --disable-pip-version-check --no-input

# Words for the command behind a target: make demo ARGS="--events 5000 --seed 7", make test ARGS="tests/api -x"
ARGS ?=

.PHONY: help demo test chaos bench lint format lock setup clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

demo: $(READY) ## Start the whole stack, send lead events through it, show that none was lost
	@$(BIN)/leadstream demo $(ARGS)

test: $(READY) ## Run every test; the stack is started and stopped by them
	@$(PY) -m pytest $(ARGS)

chaos: $(READY) ## Run only the tests that kill processes, for long; again with the same choices: ARGS="--seed N"
	@$(PY) -m pytest -m chaos --chaos=full $(ARGS)

bench: $(READY) ## Measure against the references and write bench/latest.json
	@$(PY) -m bench $(ARGS)

lint: $(READY) ## Everything that can be checked without running the stack
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/leadstream schemas check
	$(PIP) check
	$(PY) -m pytest -q tests/contracts/test_layers.py tests/contracts/test_house.py tests/contracts/test_compose.py

format: $(READY) ## Apply what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Pins stay as they are unless pyproject.toml asks for something else; to move them: make lock ARGS=--upgrade
LOCK := $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --no-config --no-header \
	--no-annotate --no-emit-index-url --no-emit-find-links
lock: $(READY) ## Write requirements/*.txt anew from pyproject.toml
	$(PIP) install --quiet uv
	$(LOCK) --extra local --group dev --output-file requirements/dev.txt $(ARGS)
	$(LOCK) --extra local --constraint requirements/dev.txt --output-file requirements/local.txt
	$(LOCK) --constraint requirements/dev.txt --output-file requirements/runtime.txt

setup: $(READY) ## Only make the virtual environment

$(READY): requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "leadstream needs Python 3.11 or newer, and there is none on PATH (looked for" \
		"python3.11 to python3.14 and python3). Install one, or say: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11" >&2; exit 1; }
	@test -x $(PY) || { echo "making $(VENV) with $(PYTHON)" && $(PYTHON) -m venv $(VENV); } || { echo "$(PYTHON) cannot \
		make virtual environments: install its venv package (Debian: python3-venv)" >&2; rm -rf $(VENV); exit 1; }
	@echo "installing the locked requirements into $(VENV) (once; about a minute)"
	@$(PIP) install --quiet --requirement requirements/dev.txt
	@$(PIP) install --quiet --no-deps --editable .
	@touch $@

clean: ## Stop the stack, and remove the environment, all state and every cache
	@if [ -x $(BIN)/leadstream ] && [ -e .leadstream/stack.json ]; then $(BIN)/leadstream down; fi
	rm -rf $(VENV) .leadstream .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist ./*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
