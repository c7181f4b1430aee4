# Everything runs from the repository's root and keeps to it: the environment in .venv, the demo's files in demo.
# Paths are relative on purpose, so that a folder with spaces in its name works.
PYTHON ?= python3
BIN := .venv/bin
DATA := $(or $(ATTNLSTM_TEST_DATA),../shared/data)
PRESET ?= reference
STUDY_SETS := $(wildcard $(DATA)/names $(DATA)/splice $(DATA)/sms_spam)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install test test-slow test-all demo bench growth study kills retrainkills outages damage lint clean constraints

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

install: .venv/installed ## Make .venv and install what a run needs

# A file's tests stay in one process, so that what the file makes once is made once.
SIDE_BY_SIDE := -n $(or $(PROCESSES),2) --dist loadfile

test: .venv/installed-test ## Run the tests but for the slow ones, side by side (some minutes; PROCESSES=2)
	@$(BIN)/python -m pytest -m 'not slow' $(SIDE_BY_SIDE)

test-slow: .venv/installed-test ## Run the slow tests: real workers, clusters, kills and waits
	@$(BIN)/python -m pytest -m slow

test-all: test test-slow ## Run all tests

demo: .venv/installed ## Sample real files, train on them, classify them (a few minutes on a CPU)
	@$(BIN)/attnlstm demo demo || { status=$$?; \
	  echo "The demo stopped; the message above says why." >&2; \
	  echo "'make demo' goes on from where it was; 'rm -r demo' first starts it afresh." >&2; \
	  exit $$status; }

bench: .venv/installed-bench ## Measure speed against other ways to do it (two hours or more); renews the READMEs' tables
	@$(BIN)/python tests/benchmarks/run.py --folder bench --results tests/benchmarks/results

growth: .venv/installed-bench ## Ten thousand to ten million rows: time and memory
	@$(BIN)/python tests/benchmarks/run.py --only growth --folder bench --results tests/benchmarks/results

study: .venv/installed-test ## Measure what attention is worth (some ten minutes, PRESET=reference); goes on when stopped
	@$(BIN)/attnlstm sample study/sample --rows 4000 --fragment-bytes 64
	@$(BIN)/python tests/benchmarks/study/run.py study/sample $(STUDY_SETS) --preset $(PRESET) --rows 2000 --epochs 12 --out study/out
	@mkdir -p tests/benchmarks/results && cp study/out/study*.* tests/benchmarks/results/

kills: .venv/installed-test ## Kill scoring a thousand times (some ten minutes on two cores)
	@ATTNLSTM_KILL_ROUNDS=1000 $(BIN)/python -m pytest -s tests/flows/test_kills.py -k 'scoring or fault'

retrainkills: .venv/installed-test ## Kill retraining a hundred times
	@ATTNLSTM_RETRAIN_KILLS=100 $(BIN)/python -m pytest -s tests/flows/test_kills.py -k training

outages: .venv/installed-test ## Prefect's server away, and its database locked, for a minute each
	@ATTNLSTM_OUTAGE_SECONDS=60 $(BIN)/python -m pytest -s tests/flows/test_stops.py

damage: .venv/installed-test ## Read a hundred thousand damaged files (some ten minutes)
	@ATTNLSTM_DAMAGED_FILES=100000 $(BIN)/python -m pytest -s tests/storage/test_damage.py

lint: .venv/installed-lint ## Check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean: ## Remove the demo, caches and builds (keeps .venv)
	rm -rf demo bench study build dist attnlstm.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find attnlstm storage flows tests -name __pycache__ -prune -exec rm -rf {} +

constraints: .venv/installed-test .venv/installed-lint ## Pin what .venv holds now, after an upgrade that passed
	@sed '/^[^#]/,$$d' constraints.txt > constraints.txt.new
	@$(BIN)/pip freeze --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//' | LC_ALL=C sort -f >> constraints.txt.new
	@mv constraints.txt.new constraints.txt

# The stamps make an unchanged environment cost nothing. pip is asked again when a version could have changed.
.venv/bin/python:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "No '$(PYTHON)' here. Install Python 3.11 or newer, or name one: make install PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; $(PYTHON) is $$("$(PYTHON)" -V 2>&1)." >&2; \
	  echo "Name a newer one: make install PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -m venv .venv || { \
	  rm -rf .venv; \
	  echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing into .venv (the first time takes a few minutes)"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/installed-test: .venv/installed
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

.venv/installed-bench: .venv/installed
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	@touch $@

.venv/installed-lint: .venv/installed
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[lint]'
	@touch $@
