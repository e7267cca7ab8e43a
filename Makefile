# Everything from a fresh clone: `make help` lists it. Each target sets up what it needs first.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

VENV := .venv
PYTHON := $(VENV)/bin/python
# The interpreter that makes the environment; `make setup BASE_PYTHON=/path/to/python3.11` names another.
BASE_PYTHON ?= $(shell for p in python3.11 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && command -v "$$p" && break; done)
REQUIREMENTS := requirements.txt requirements-dev.txt constraints.txt
INSTALLED := $(VENV)/.installed

export RAY_USAGE_STATS_ENABLED ?= 0

.PHONY: help setup setup-gpu demo test test-unit test-ray check format lint types imports docs bench faults local-cluster monitor submit constraints clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 16

setup: $(INSTALLED) ## make .venv with everything pinned

setup-gpu: $(INSTALLED) ## after setup, on a machine with CUDA: the GPU-only extras
	$(PYTHON) -m pip uninstall --quiet --yes faiss-cpu
	$(PYTHON) -m pip install --quiet -r requirements-gpu.txt -c constraints.txt

$(PYTHON):
	@if [[ -z "$(BASE_PYTHON)" ]]; then \
		echo "make: Python 3.11 was not found (looked for python3.11, python3, python)." >&2; \
		echo "      Install it, or name it: make setup BASE_PYTHON=/path/to/python3.11" >&2; exit 2; fi
	$(BASE_PYTHON) -m venv $(VENV)

$(INSTALLED): $(REQUIREMENTS) | $(PYTHON)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "make: $(VENV) is not Python 3.11; remove it (make clean-venv) and run make setup again." >&2; exit 2; }
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt -c constraints.txt
	@# The commands toolformer and toolformer-tools, from this checkout.
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: $(INSTALLED) ## the whole method on the embedded world (FORCE=1 redoes finished steps)
	$(PYTHON) -m pipeline demo --recipe demo $(if $(FORCE),--force)

test: test-unit test-ray ## all tests

test-unit: $(INSTALLED) ## no Ray, some minutes
	$(PYTHON) -m pytest -q -m unit -n 2

test-ray: $(INSTALLED) ## real local clusters; gpu tests where there is one
	$(PYTHON) -m pytest -q -m "ray or gpu"

check: format lint types imports test ## what CI runs

format: $(INSTALLED)
	$(PYTHON) -m ruff format --check .

lint: $(INSTALLED)
	$(PYTHON) -m ruff check .

types: $(INSTALLED)
	$(PYTHON) -m mypy

imports: $(INSTALLED) ## which package may import which (.importlinter)
	$(VENV)/bin/lint-imports

docs: $(INSTALLED) ## the documentation as a site, in site/ (open site/index.html)
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --quiet

bench: demo ## every measurement of bench/, one after the other (after the demo, which some of them look at)
	@for file in $(sort $(shell grep -l __main__ bench/*.py bench/*/__main__.py)); do \
		module=$${file%.py}; module=$${module%/__main__}; echo "== $${module//\//.}"; $(PYTHON) -m "$${module//\//.}"; done

# Rounds of `make faults`; python -m bench.faults --help has the rest.
ROUNDS ?= 20
SEED ?= 0

faults: $(INSTALLED) ## disturb annotate, merge and finetune, and compare what they leave [ROUNDS=20] [SEED=0]
	$(PYTHON) -m bench.faults --rounds $(ROUNDS) --seed $(SEED)

NODES ?= cpus=2 cpus=2,gpus=1

local-cluster: $(INSTALLED) ## a Ray cluster of several nodes on this machine [NODES='cpus=2 cpus=2,gpus=1'] [ARGS='--autoscale cpus=2,gpus=1']
	$(PYTHON) -m cluster.local --nodes $(NODES) $(ARGS)

monitor: $(INSTALLED) ## Prometheus and, where installed, Grafana beside a run on this machine [ARGS='--address HOST:PORT']
	$(PYTHON) -m cluster.monitor $(ARGS)

# What `make submit` runs: python -m pipeline STEP --recipe RECIPE ARGS. `python -m cluster.submit` runs anything.
STEP ?= annotate
RECIPE ?= paper

submit: $(INSTALLED) ## run a step on a cluster: ADDRESS=http://... [STEP=annotate] [RECIPE=paper] [ARGS='...']
	@if [[ -z "$(ADDRESS)" ]]; then \
		echo "make: name the cluster's dashboard: make submit ADDRESS=http://127.0.0.1:8265" >&2; exit 2; fi
	$(PYTHON) -m cluster.submit --address "$(ADDRESS)" -- python -m pipeline $(STEP) --recipe $(RECIPE) $(ARGS)

constraints: $(INSTALLED) ## write the installed versions into constraints.txt (after `make setup`, without setup-gpu)
	@{ sed -n '/^#/p' constraints.txt; \
	$(PYTHON) -m pip freeze --all --exclude pip --exclude toolformer-on-ray | sed 's/+.*//'; } > constraints.new
	@mv constraints.new constraints.txt

clean: ## remove runs/, site/, what builds leave and the caches, not .venv
	rm -rf runs site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

.PHONY: clean-venv
clean-venv: ## remove .venv as well
	rm -rf $(VENV)
