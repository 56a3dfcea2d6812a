# Each target does all of its own set-up. Only Python 3.11 or newer (with venv and pip) and make are needed.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
# The first of these interpreters on PATH that is at least 3.11. To use another one: make test PYTHON=/path/to/python3.12
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$python && break; done)
READY := $(VENV)/.ready
PIP := $(PY) -m pip --disable-pip-version-check --no-input

# Arguments of the command behind a target: make demo ARGS="--events 5000 --seed 7", make test ARGS="tests/api -x"
ARGS ?=

.PHONY: help demo test chaos bench bench-memory lint format lock setup clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

demo: $(READY) ## Start the stack, send lead events through it and check that none was lost
	@$(BIN)/leadstream demo $(ARGS)

test: $(READY) ## Run all tests; they start and stop the stack
	@$(PY) -m pytest $(ARGS)

chaos: $(READY) ## Run only the tests that kill processes, at full length; to repeat a run: ARGS="--seed N"
	@$(PY) -m pytest -m chaos --chaos=full $(ARGS)

bench: $(READY) ## Compare the throughput with references and write bench/latest.json
	@$(PY) -m bench $(ARGS)

bench-memory: $(READY) ## Drain large backlogs with a limit of 512 MB for each process, and print their peak memory
	@$(PY) -m bench.memory $(ARGS)

lint: $(READY) ## Run all checks that need no stack
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/leadstream schemas check
	$(PIP) check
	$(PY) -m pytest -q tests/contracts/test_layers.py tests/contracts/test_house.py tests/contracts/test_compose.py

format: $(READY) ## Apply what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Keeps the pinned versions unless pyproject.toml requires others; to update them: make lock ARGS=--upgrade
LOCK := $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --no-config --no-header \
	--no-annotate --no-emit-index-url --no-emit-find-links
lock: $(READY) ## Regenerate requirements/*.txt from pyproject.toml
	$(PIP) install --quiet uv
	$(LOCK) --extra local --group dev --output-file requirements/dev.txt $(ARGS)
	$(LOCK) --extra local --constraint requirements/dev.txt --output-file requirements/local.txt
	$(LOCK) --constraint requirements/dev.txt --output-file requirements/runtime.txt

setup: $(READY) ## Create the virtual environment

$(READY): requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "leadstream needs Python 3.11 or newer, and PATH has none (python3.11 to" \
		"python3.14, python3). Install one, or run: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11" >&2; exit 1; }
	@test -x $(PY) || { echo "creating $(VENV) with $(PYTHON)" && '$(PYTHON)' -m venv $(VENV); } || { echo "$(PYTHON) cannot \
		create virtual environments: install its venv package (Debian: python3-venv)" >&2; rm -rf $(VENV); exit 1; }
	@echo "installing the locked requirements into $(VENV) (only now; takes about a minute)"
	@$(PIP) install --quiet --requirement requirements/dev.txt
	@$(PIP) install --quiet --no-deps --editable .
	@touch $@

clean: ## Stop the stack, and delete the environment, all state and all caches
	@if [ -x $(BIN)/leadstream ] && [ -e .leadstream/stack.json ]; then $(BIN)/leadstream down; fi
	rm -rf $(VENV) .leadstream .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist ./*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
