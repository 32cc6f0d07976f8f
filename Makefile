# Every target sets up what it needs: Python 3.11 or later, make and git are enough.
SHELL := /bin/sh
PYTHON ?= python3
UV ?= $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
VENV := .venv
BIN := $(VENV)/bin

# uv trusts its own list of authorities; a machine with a certificate store may know more of them (a company's).
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem),)
export UV_SYSTEM_CERTS ?= true
endif

.DEFAULT_GOAL := help
.PHONY: help setup run test lint bench soak compat demo pictures clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## Make .venv with everything the project needs

# uv comes from PyPI into an environment of its own when the machine has none. Where the system's Python
# was packaged without ensurepip, pip installs it into a plain folder instead.
.uv/bin/uv:
	@echo "setup: fetching uv (once)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "setup: Python 3.11 or later is needed; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@( $(PYTHON) -m venv .uv >/dev/null 2>&1 && .uv/bin/python -m pip install --quiet --disable-pip-version-check uv ) \
	  || ( rm -rf .uv && $(PYTHON) -m pip install --quiet --disable-pip-version-check --target .uv uv )
	@test -x $@

$(VENV)/.ready: pyproject.toml uv.lock | $(filter .uv/bin/uv,$(UV))
	@echo "setup: installing the locked dependencies into $(VENV)"
	@env -u VIRTUAL_ENV $(UV) sync --quiet --frozen $(if $(wildcard $(VENV)/bin/python),,--python "$(PYTHON)")
	@touch $@

run: setup ## Letta, Postgres, four proven providers and the backend, from nothing
	@exec $(BIN)/isabella up --verify

test: setup ## All tests, on a real Letta and a real Postgres
	@$(BIN)/python -m pytest -n 2 --dist loadfile

lint: setup ## Format check, lint, strict types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

soak: setup ## The state machine at length, on a real Letta
	@$(BIN)/python -m pytest -m soak

compat: setup ## Every release of Letta, case by case; RELEASES="0.16.1 0.16.8" for some
	@$(BIN)/python -m compat $(RELEASES)

bench: setup ## The measured claims: prints a table, writes bench.json
	@$(BIN)/python -m bench

demo: setup ## The story of the bug, and of its cure, in one screen
	@$(BIN)/isabella demo

pictures: setup ## The pictures of the documentation, taken anew: commands, and every page of the console
	@$(BIN)/python docs/draw.py

clean: ## Remove the project's own environments and caches (never your data)
	@rm -rf $(VENV) .uv .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
