# Thin names for plain commands; each prints what it runs.
.PHONY: install train train-quick sft reward chat generate test test-all test-cpus test-device coverage check docs bench clean
SHELL := /bin/bash

# A Python that Hydra 1.3 runs on: 3.11 to 3.13.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

# Linux wheels of torch bring several GB of CUDA. Without an NVIDIA card the CPU build does, where its index can be reached.
CPU_INDEX := https://download.pytorch.org/whl/cpu
define TORCH
if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null && $(BIN)/python -c \
	"import urllib.request; urllib.request.urlopen('$(CPU_INDEX)/torch/', timeout=3)" 2>/dev/null; \
then $(BIN)/pip install -q --index-url $(CPU_INDEX) torch==2.13.0; else $(BIN)/pip install -q torch==2.13.0; fi
endef

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "positron needs Python 3.11, 3.12 or 3.13 (Hydra 1.3 fails on 3.14)"; exit 2; }
	@echo "installing into .venv: torch first (about 200 MB on a CPU, several GB for CUDA), then the rest; minutes, once"
	$(PYTHON) -m venv .venv
	@$(TORCH)
	$(BIN)/pip install -q -c constraints.txt -e .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

train: install
	$(BIN)/positron train experiment=quickstart

train-quick: install
	$(BIN)/positron train model=debug optimizer=muon_embeddings optimizer.lr=2e-2 train.max_steps=100 train.batch_tokens=4096 schedule.warmup_steps=10 data.size_mb=2 name=quick

sft: install
	$(BIN)/positron sft init_from=quickstart experiment=story_instruct

reward: install
	$(BIN)/positron reinforce init_from=sft-story_instruct experiment=story_reward budget=5min

chat: install
	$(BIN)/positron chat

generate: install
	$(BIN)/positron generate "Once upon a time"

test: .venv/installed-dev
	$(BIN)/python -m pytest

test-all: .venv/installed-dev
	$(BIN)/python -m pytest -m "slow or not slow"

# Every process counts, those that tests start included; the share that must be reached is in pyproject.toml.
coverage: .venv/installed-dev
	$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered --cov-report=xml:build/coverage/coverage.xml

test-cpus: .venv/installed-dev
	$(BIN)/python -m scripts.run_on_cpus

# The device that test-device compares with the CPU: cuda, mps or cpu.
DEVICE ?= cuda

test-device: .venv/installed-dev
	$(BIN)/python -m pytest -n 0 -m slow tests/slow/test_device.py --device $(DEVICE)

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32
	$(BIN)/deptry .

docs: .venv/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: install
	$(BIN)/python -m scripts.bench.train

clean:
	$(or $(PYTHON),python3) scripts/clean.py
