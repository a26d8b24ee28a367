# The one front door. `make help` lists what there is.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help venv host run test test-quick lint format image bench lock clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

host: build/.host-ready ## install what the host lacks (Debian packages; asks sudo when not root)

build/.host-ready: scripts/host-setup
	@mkdir -p build
	@scripts/host-setup
	@touch $@

venv: $(VENV)/.ready ## make .venv from the hash-locked requirements

$(VENV)/.ready: requirements/dev.txt pyproject.toml scripts/make-venv build/.host-ready
	@scripts/make-venv $(VENV) $(PYTHON)
	@touch $@

image: venv ## build the development image (kernel and base system are cached)
	@$(BIN)/python -m image.debian

run: venv image ## boot a gateway in a pretend site and watch its data arrive in the cloud
	@$(BIN)/site run

test: venv lint image ## everything: lint, types, unit, golden, contract, network namespaces, end to end
	@$(BIN)/pytest $(ARGS)

test-quick: venv ## all tests that need no virtual machine
	@$(BIN)/pytest -m "not e2e" $(ARGS)

lint: venv ## ruff, mypy --strict, import-linter
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: venv ## let ruff rewrite the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: venv image ## measure everything, write docs/figures.json and docs/figures.md
	@$(BIN)/python -m bench all

lock: venv ## resolve pyproject.toml anew into requirements/*.txt (with hashes, without index addresses)
	@scripts/lock

clean: ## remove what was built here (the cache under ~/.cache/sallyport stays)
	rm -rf build $(VENV) .site *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
