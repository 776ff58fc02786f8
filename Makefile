# What people type. Each target sets up what it needs: `make demo` works in a fresh clone.
# Package indexes come from the user's own pip or uv configuration; none is named here.

VENV ?= .venv
PY := $(VENV)/bin/python
STATE_DIR := .dashgate
INSTALLED := $(VENV)/.installed
# The last 1.x of the vendor's SDK, which cannot live beside its 2.x: for the contract tests alone.
SDK1 := .venv-sdk1
SDK1_INSTALLED := $(SDK1)/.installed
SDK1_LOCK := tests/contract/sdk1.lock
MANY_WORKERS := 8
# Three for two cores: most of what a test does is waiting for servers and processes.
WORKERS ?= $(shell n=$$(( 3 * $$(nproc 2>/dev/null || echo 2) / 2 )); echo $$(( n > $(MANY_WORKERS) ? $(MANY_WORKERS) : n )))
TESTS := tests/unit tests/api tests/steps tests/house tests/journeys/test_first_image.py
UV := $(shell command -v uv 2>/dev/null)
COMPILE := uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

# Looked for when first used. Debian's Python without python3-venv lacks ensurepip and cannot make an environment.
NEW_ENOUGH := -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$python $(NEW_ENOUGH) 2>/dev/null && echo $$python && break; done)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup sdk1 demo test test-all check fix bench bench-engine migration clean lock

##@ Use it
help: ## list these targets
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## install into .venv

demo: $(INSTALLED) ## send one image request through the whole stack and watch it; ONCE=1 ends afterwards
	@$(VENV)/bin/dashgate demo $(if $(ONCE),--once)

##@ Change it
test: $(INSTALLED) ## unit, api, steps, house and one journey; T=path runs only that
	$(PY) -m pytest $(or $(T),$(TESTS)) -n $(if $(findstring ::,$(T)),0,$(WORKERS))

test-all: $(INSTALLED) $(SDK1_INSTALLED) ## all tests
	$(PY) -m pytest tests --ignore=tests/benchmarks -n $(WORKERS) --dist loadfile

check: $(INSTALLED) ## lint, format, types, layers, house rules
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports
	$(PY) -m pytest tests/house

sdk1: $(SDK1_INSTALLED) ## install the SDK's last 1.x for the contract tests into .venv-sdk1

fix: $(INSTALLED) ## repair what lint and format can repair
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(INSTALLED) ## measure
	$(PY) -m tests.benchmarks.bench

bench-engine: $(INSTALLED) ## measure how early ends are seen, beside the limit line; ARGS="--tasks 10000" takes longer
	$(PY) -m tests.benchmarks.engine $(ARGS)

##@ Look after it
migration: $(INSTALLED) ## begin a new migration: m="what changes"
	@test -n '$(m)' || { echo 'say what changes: make migration m="add a colour to teams"' >&2; exit 2; }
	$(PY) -m migrations.new '$(m)'

lock: ## pin all dependencies anew, with hashes (needs uv)
	@command -v uv >/dev/null || { echo 'make lock needs uv: https://docs.astral.sh/uv/' >&2; exit 2; }
	$(COMPILE) pyproject.toml --extra dev --output-file requirements.lock >/dev/null
	$(COMPILE) pyproject.toml --extra simulator --output-file docker/requirements.lock >/dev/null
	echo 'dashscope>=1,<2' | $(COMPILE) - --output-file $(SDK1_LOCK) >/dev/null

clean: ## remove the demo's and the tests' data, and all caches
	@$(if $(wildcard $(PY)),$(PY),$(PYTHON)) -m app.embedded clean $(STATE_DIR)
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	@find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

# Pinned packages from file $(2) into the new environment $(1). uv is fast but does not read pip's configuration: where it
# finds no index, pip has the last word.
define install
	@echo 'Installing into $(1) ...'
	@$(PYTHON) -m venv $(1)
	@$(if $(UV),uv pip install --quiet --python $(1)/bin/python --require-hashes -r $(2) ||) \
		$(1)/bin/python -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
			--require-hashes -r $(2)
endef

# Set-up, in one go and only when the pins or the project's metadata have changed.
$(INSTALLED): requirements.lock pyproject.toml
	@$(or $(PYTHON),false) $(NEW_ENOUGH) || { \
		echo 'Python 3.11 or newer with its venv module is needed (Debian: apt install python3-venv).' >&2; \
		echo 'Name it if it is elsewhere: make PYTHON=/path/to/python ...' >&2; exit 2; }
	$(call install,$(VENV),requirements.lock)
	@$(PY) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
		--no-deps --no-build-isolation --no-index --editable .
	@touch $@

$(SDK1_INSTALLED): $(SDK1_LOCK) | $(INSTALLED)
	$(call install,$(SDK1),$(SDK1_LOCK))
	@touch $@
