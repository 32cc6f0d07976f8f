# Every target sets up what it needs: Python 3.11 or later, make and git are enough.
SHELL := /bin/sh
PYTHON ?= python3
UV ?= $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
VENV := .venv
BIN := $(VENV)/bin
# podman has the command `compose` since 4.7; podman-compose is a program of its own.
COMPOSE ?= $(if $(shell command -v docker 2>/dev/null),docker compose,$(if $(shell command -v podman-compose 2>/dev/null),podman-compose,podman compose))
STACK_FILES := $(if $(filter docker%,$(COMPOSE)),,--file compose.yaml --file deploy/compose.podman.yaml)

# uv trusts its own list of authorities; a machine with a certificate store may know more of them (a company's).
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem),)
export UV_SYSTEM_CERTS ?= true
endif

# Images of Python often set it. Every process would compile Isabella and its libraries again: twice the time of a start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup run check test lint real browser views bench soak compat catalog clients demo pictures dist haproxy image image-base image-pin image-test stack manifests clean alerts

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## Create .venv with the locked dependencies

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

run: setup ## Start Letta, Postgres and the backend; verify the providers
	@exec $(BIN)/isabella up --verify

check: lint ## Run before every commit: lint and the unit tests
	@$(BIN)/python -m pytest -n 3 tests/unit

test: setup ## Run all tests on a real Letta and Postgres; measure coverage
	@$(MAKE) --no-print-directory haproxy || echo "test: the test of several backends is skipped" >&2
	@rm -f .coverage.txt; $(BIN)/python -m slipcover -m pytest -n 3 --dist loadfile --no-loadscope-reorder --max-worker-restart 0; code=$$?; \
	  awk 'END { print "test: coverage " $$NF "% of " $$2 " lines; at least 90% is required; .coverage.txt has the missing ones"; exit $$NF < 90 }' \
	    .coverage.txt && exit $$code

lint: setup ## Check format, lint rules, types and the layers of packages
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

real: setup ## Run the tests with a real model on llama.cpp's server, without the others
	@$(BIN)/python -m pytest tests/letta/test_real_model.py

browser: ## Install a headless Chromium with apt-get (Debian, Ubuntu), for the browser tests
	@command -v chromium-headless-shell >/dev/null && exit 0; \
	test "$$(id -u)" -eq 0 || sudo=sudo; \
	install() { $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$$1" >/dev/null; }; \
	if command -v apt-get >/dev/null; then \
	  $$sudo apt-get update -qq; \
	  if apt-cache show chromium-headless-shell >/dev/null 2>&1; then install chromium-headless-shell; exit; fi; \
	fi; \
	for name in chromium chromium-browser google-chrome google-chrome-stable; do \
	  command -v "$$name" >/dev/null && exit 0; \
	done; \
	command -v apt-get >/dev/null || { echo "browser: install Chromium and put it on the PATH" >&2; exit 1; }; \
	install chromium

# Its package comes with the libraries that are missing, unpacked into a folder of its own: nothing is installed, and no
# service starts. An old list of packages may name files that are gone, so it is read again then.
haproxy: ## Fetch HAProxy for the tests of several backends, if there is none (Debian, Ubuntu)
	@PATH="$$PATH:/usr/local/sbin:/usr/sbin"; command -v haproxy >/dev/null || test -x .tools/usr/sbin/haproxy || { \
	  command -v apt-get >/dev/null || { echo "haproxy: install HAProxy 2.6 or later and put it on the PATH" >&2; exit 1; }; \
	  mkdir -p .tools/packages/partial && cd .tools; \
	  fetch() { apt-get install -qq --download-only --no-install-recommends -o Debug::NoLocking=1 -o Dir::Cache::archives="$$PWD/packages" haproxy >/dev/null; }; \
	  fetch 2>/dev/null || { apt-get update -qq && fetch; } && \
	  for package in packages/*.deb; do dpkg -x "$$package" .; done && rm -r packages; }

views: setup ## Run the browser tests in each view: three widths, two themes; VIEWS="360-dark" for some
	@failed=; for view in $(or $(VIEWS),360-light 360-dark 768-light 768-dark 1440-light 1440-dark); do \
	  echo "views: $$view"; \
	  $(BIN)/python -m pytest -q -n 2 --dist loadfile --view $$view tests/browser || failed="$$failed $$view"; \
	done; test -z "$$failed" || { echo "views: failed in$$failed" >&2; exit 1; }

soak: setup ## Run the state machine on a real Letta, at length
	@$(BIN)/python -m pytest -m soak

compat: setup ## Test each release of Letta; RELEASES="0.16.1 0.16.8" for some
	@$(BIN)/python -m compat $(RELEASES)

clients: setup ## Drive the clients of docs/clients.md against a backend; update their table
	@$(BIN)/python -m tests.clients --write

catalog: setup ## Compare the catalog of vendors with what public packages say of their models
	@$(BIN)/python -m compat.catalog

bench: setup haproxy ## Run the benchmarks; print a table and write bench.json; QUICK=1 for the short form
	@$(BIN)/python -m bench $(if $(QUICK),--quick)

demo: setup ## Show the bug and its fix in one screen
	@$(BIN)/isabella demo

pictures: setup ## Draw the pictures in docs/images again
	@$(BIN)/python docs/draw.py

# promtool comes in Debian's package, unpacked into a folder of its own: nothing is installed.
alerts: setup ## Test the alert rules of deploy/prometheus with promtool, which is fetched if it is missing
	@command -v promtool >/dev/null || test -x .tools/usr/bin/promtool || { \
	  command -v apt-get >/dev/null || { echo "alerts: install promtool (Prometheus) and put it on the PATH" >&2; exit 1; }; \
	  mkdir -p .tools && cd .tools && apt-get download -qq prometheus 2>/dev/null && dpkg -x prometheus_*.deb . && rm prometheus_*.deb; }
	@$(BIN)/python -m pytest -q tests/unit/test_monitoring.py

dist: $(VENV)/.ready ## Build the wheel and the source distribution into dist/
	@rm -rf dist
	@$(UV) build --quiet --out-dir dist

image: ## Build the images with podman, buildah or docker
	@deploy/image.sh

image-base: ## Make a base image of Debian packages, for machines that reach no registry (root)
	@deploy/base.sh $${BASE:-localhost/isabella-base:bookworm}

image-pin: ## Pin the images of others to what their tags mean now
	@deploy/pin.sh

image-test: setup ## Build the images, and run the stack of compose.yaml from them without an engine (root)
	@$(BIN)/python -m pytest -m image tests/containers

# The engine that runs the images has to have them.
stack: export BUILDER := $(or $(BUILDER),$(if $(filter docker%,$(COMPOSE)),docker,podman))
stack: image ## Build the images, make the secrets once, and start the stack of compose.yaml
	@profile=$$($(PYTHON) deploy/make_secrets.py) && $(COMPOSE) $(STACK_FILES) $${profile:+--profile $$profile} up --detach --wait

manifests: setup ## Render and validate the manifests, the Containerfile and the systemd units
	@UV=$(UV) deploy/manifests.sh

clean: ## Remove environments, caches and builds; your data stays
	@rm -rf $(VENV) .uv .tools .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.* dist
