# Needs GNU make and Python 3.11 or newer, nothing else. `make help` lists what there is.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --require-virtualenv
# One version everywhere, so that an old pip's habits play no part.
PIP_VERSION := 26.3

HOST ?=
PORT ?=
TESTS ?=
# The whole suite in several processes; what TESTS names runs in one.
IN_PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadgroup

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install install-dev models serve test check format lock clean

help:  ## Show this list
	@sed -n 's/^\([a-z]*\): .*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do \
		printf '  make %-9s %s\n' "$$target" "$$text"; done

install: $(VENV)/.installed  ## Create .venv and install the gateway with its pinned dependencies

models: install  ## Fetch the models ahead of time, so that serving starts at once
	@$(BIN)/gateway pull

serve: install  ## Serve on 127.0.0.1:8000, or on HOST and PORT
	@exec $(BIN)/gateway serve $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT))

test: install-dev  ## Fetch what the tests need and run them; TESTS="tests/batching -x" goes to pytest
	@$(BIN)/gateway pull --tests
	@$(BIN)/python -m pytest $(or $(TESTS),$(IN_PARALLEL))

check: install-dev  ## Check formatting, lint and types
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy

format: install-dev  ## Format the code and repair what the linter can
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

# Local versions such as 2.13.0+cpu name a build of the same release; which one to take is the index's matter.
lock:  ## Resolve pyproject.toml anew into requirements.lock and requirements-dev.lock
	@set -eu; venv=$$(mktemp -d); trap 'rm -rf "$$venv"' EXIT; \
	$(PYTHON) -m venv "$$venv"; pip="$$venv/bin/python -m pip --disable-pip-version-check"; \
	$$pip install --quiet pip==$(PIP_VERSION); \
	$$pip install .; $$pip freeze > "$$venv/requirements"; \
	$$pip install --group dev hatchling editables; $$pip freeze > "$$venv/requirements-dev"; \
	if grep -Ei '^nvidia|^triton|cuda' "$$venv/requirements-dev"; then \
		echo "make: this index gave a CUDA build of torch; lock against one that has the CPU build"; exit 1; fi; \
	for set in requirements requirements-dev; do \
		{ echo "# Written by make lock; docs/contributing.md says how it is used."; \
		sed -E -e '/^openai-inference-gateway/d' -e 's/\+[a-z0-9.]+$$//' "$$venv/$$set"; } > $$set.lock; done

clean:  ## Remove .venv and everything that tools have left behind; fetched models stay
	rm -rf $(VENV) .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: requirements.lock requirements-dev.lock pyproject.toml | $(VENV)/.created
	$(PIP) install -r requirements.lock
	$(PIP) install --no-deps --build-constraint requirements-dev.lock --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -r requirements-dev.lock
	@touch $@

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { \
		echo "make: there is no $(PYTHON) here; install Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: $$($(PYTHON) --version 2>&1) is too old; name 3.11 or newer: make install PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "make: $(PYTHON) cannot make environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet pip==$(PIP_VERSION)
	@touch $@
