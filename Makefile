# make demo | test | ui | bench [ONLY=name] | test-slow | test-faults | test-distros | test-image | fuzz | licences | sbom | lock | clean
#
# PYTHON       the interpreter .venv is made from (else python3, or the newest beside it that docml supports)
# TORCH_INDEX  a package index with CPU builds of torch, which save some gigabytes of CUDA on Linux:
#              make demo TORCH_INDEX=<URL of the index>

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
            $$name -c '$(SUPPORTED)' 2>/dev/null && { command -v $$name; break; }; done)
TORCH_INDEX ?=

DEMO := EXP-1-state-of-the-union
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
# What the lock names, by its hashes; then torch, and what comes with it of CUDA, from whichever index, under pip's own bars; then docml
# itself, from this folder.
TORCH := $(shell sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
INSTALL = set -o pipefail; \
          $(PIP) --require-hashes --no-deps --only-binary :all: --requirement requirements/$(1).txt | $(COUNTED) && \
          echo '  $(TORCH):' && $(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $(TORCH) && \
          $(PIP) --quiet --no-deps --no-build-isolation --editable .
# pip's lines as a count: one line that changes on a terminal, and every twentieth package elsewhere.
COUNTED = { count=0; of=$$(grep -c '==' requirements/$(1).txt); while read -r first second third name rest; do \
            case $$first in Collecting | Ignoring) name=$${second%:};; Requirement) ;; \
              Installing) echo "  installing them …"; continue;; *) continue;; esac; \
            count=$$((count + 1)); line="  $$count of $$of packages: $$name"; \
            if [ -n "$(MAKE_TERMOUT)" ]; then printf '\r\033[K%s' "$$line"; [ $$count -lt $$of ] || echo; \
            elif [ $$((count % 20)) = 0 ] || [ $$count = $$of ]; then echo "$$line"; fi; done; }
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo -n)

.PHONY: help demo test test-slow test-faults test-distros test-image fuzz licences sbom lock ui bench clean

help:
	@echo 'make demo   run the bundled experiment end to end, on this machine alone'
	@echo 'make ui     open the Dagster UI on the runs of this folder (PORT=3001 for another port)'
	@echo 'make test   set everything up and run all tests'
	@echo 'make test-slow   the tests that take minutes each'
	@echo 'make test-faults   kill and damage whole runs, for hours (SCHEDULES=200:folder keeps what has passed)'
	@echo 'make test-distros   set up and run the demo on bare machines of other distributions (root, debootstrap)'
	@echo 'make test-image   build the images and run every job in containers (root; Docker, or podman and debootstrap)'
	@echo 'make fuzz [EXAMPLES=10000]   give every reader of untrusted input so many generated inputs'
	@echo 'make licences   list the licences of everything that is installed'
	@echo 'make sbom   write sbom.json (CycloneDX) of everything that is installed'
	@echo 'make lock [UPGRADE=yes]   write requirements/*.txt, pins with hashes, from pyproject.toml'
	@echo 'make bench [ONLY=name]   run the benchmarks, write bench/results.json'
	@echo 'make clean  remove .venv, ./storage and ./.dagster_home'

demo: $(VENV)/.demo
	$(BIN)/docml run $(DEMO)
	$(BIN)/docml report $(DEMO) 1

ui: $(VENV)/.demo
	$(BIN)/python -m docml_assets.cli.home $(if $(PORT),--port $(PORT))

test: $(VENV)/.dev $(VENV)/.system
	$(BIN)/python -m pytest -n 4 --dist loadfile

test-slow: $(VENV)/.dev $(VENV)/.system
	$(BIN)/python -m pytest -m slow

test-faults: $(VENV)/.dev
	DOCML_SCHEDULES=$(or $(SCHEDULES),200) $(BIN)/python -m pytest -m 'faults or not faults' tests/faults

test-distros: $(VENV)/.dev
	@{ command -v debootstrap && command -v ip; } >/dev/null || { command -v apt-get >/dev/null && \
	  echo 'Installing debootstrap with apt-get …' && $(SUDO) apt-get update -qq && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq debootstrap debian-archive-keyring iproute2 >/dev/null; } || true
	TORCH_INDEX=$(TORCH_INDEX) $(BIN)/python -m pytest -m distros -rP --durations 0 tests/distros

# Images are kept in DOCML_IMAGE_CACHE (~/.cache/docml/images, some 6 GB).
test-image: $(VENV)/.dev
	@{ command -v debootstrap && { docker info || { command -v podman && command -v runc; }; }; } >/dev/null 2>&1 || \
	  { command -v apt-get >/dev/null && echo 'Installing debootstrap and podman with apt-get …' && $(SUDO) apt-get update -qq && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	    debootstrap debian-archive-keyring podman runc >/dev/null; } || true
	TORCH_INDEX=$(TORCH_INDEX) $(BIN)/python -m pytest -m 'image or not image' -rP --durations 0 tests/image

bench: $(VENV)/.dev
	$(BIN)/python -m bench $(ONLY)

EXAMPLES ?= 10000
fuzz: $(VENV)/.dev
	DOCML_FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest tests/fuzz --timeout 14400 --durations 0

licences: $(VENV)/.demo
	@$(BIN)/python deploy/dependencies.py licences

sbom: $(VENV)/.demo
	@$(BIN)/python deploy/dependencies.py sbom > sbom.json && echo 'wrote sbom.json'

# One lock serves all Python versions and platforms. What is pinned stays, unless UPGRADE is set.
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-package torch \
       --custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade) --output-file requirements/$(1).txt
SAME := --constraint requirements/dev.txt
lock: $(VENV)/.dev
	$(call LOCK,dev) pyproject.toml --extra dev
	$(call LOCK,demo) pyproject.toml --extra build --extra demo $(SAME)
	$(call LOCK,orchestrator) pyproject.toml --extra aws --extra build $(SAME)
	echo $(TORCH) | $(call LOCK,trainer) trainer_image/requirements.txt - $(SAME)
	$(BIN)/python -m tests.distros.pins

clean:
	rm -rf $(VENV) storage .dagster_home test-output

# Stamps: each says which extras .venv holds, made again when the requirements change.
$(VENV)/.python:
	@[ -n "$(PYTHON)" ] || { echo "docml needs Python 3.11 to 3.13: found $$(python3 --version 2>/dev/null || echo no python3); install one" \
	  "(Debian, Ubuntu: apt-get install python3 python3-venv) or name one with make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c '$(SUPPORTED)' || \
	  { echo "docml needs Python 3.11 to 3.13: $(PYTHON) is $$($(PYTHON) --version 2>&1); name another with make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo '$(PYTHON) could not make a virtual environment (Debian, Ubuntu: apt-get install python3-venv)' >&2; exit 1; }
	@touch $@

$(VENV)/.demo: $(VENV)/.python pyproject.toml requirements/demo.txt
	@echo 'Installing docml and what the demo needs into $(VENV) (some minutes at the first time) …'
	@$(call INSTALL,$(if $(wildcard $(VENV)/.dev),dev,demo))
	@touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml requirements/dev.txt
	@echo 'Installing docml and what its tests need into $(VENV) (some minutes at the first time) …'
	@$(call INSTALL,dev)
	@touch $@

# The browser tests drive Debian's Chromium.
$(VENV)/.system: $(VENV)/.python
	@command -v chromium >/dev/null || { command -v apt-get >/dev/null && \
	  echo 'Installing chromium with apt-get …' && $(SUDO) apt-get update -qq && \
	  $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || true
	@if command -v chromium >/dev/null; then touch $@; else \
	  printf '\n*** chromium is missing and could not be installed: THE BROWSER TESTS WILL FAIL. ***\n\n' >&2; fi
