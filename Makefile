# make demo   install what running needs, then train, sample and evaluate on digits
# make test   install what the tests need, then lint, types and the whole suite
# make slow   what takes minutes; make quality, make bench: the figures of docs/ (hours; resumable); make wheel: dist/*.whl
# make soak   hundreds of kills, each run compared with one that was left alone
SHELL := bash
.DEFAULT_GOAL := demo
.PHONY: venv demo test lint slow soak quality bench wheel clean
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
TORCH := torch==2.13.0
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
PIP := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt

venv: .venv/.tested

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gencli needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv

# An exact pin is what lets pip find the CPU build where an index offers one, so torch comes first.
.venv/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@set -euo pipefail; began=$$SECONDS; \
	$(PIP) $(TORCH) | tee .venv/install.log; \
	$(PIP) -e . | tee -a .venv/install.log; \
	fetched=$$(awk '$(SIZES)' .venv/install.log); \
	echo "install: $$((SECONDS - began)) s, $$fetched of packages fetched, $$(du -sh .venv | cut -f1) on disk" \
		| tee .venv/install.txt
	@touch $@

.venv/.tested: .venv/.installed
	$(PIP) -e '.[dev,peers,export,shards]'
	@touch $@

define SIZES
/Downloading|Using cached/ && match($$0, /\([0-9.]+ [kMG]?B\)/) { \
	split(substr($$0, RSTART + 1, RLENGTH - 2), part, " "); \
	scale["B"] = 1e-6; scale["kB"] = 1e-3; scale["MB"] = 1; scale["GB"] = 1e3; sum += part[1] * scale[part[2]] } \
/Processing .*\.whl/ { size = "wc -c <" $$2; size | getline bytes; close(size); sum += bytes / 1e6 } \
END { printf "%.0f MB", sum }
endef

demo: .venv/.installed
	@cat .venv/install.txt
	@set -e; began=$$SECONDS; $(BIN)/gencli demo; echo "demo: $$((SECONDS - began)) s, the install apart"

lint: .venv/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --durations 10

slow: .venv/.tested
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 -m slow --durations 0

soak: .venv/.tested
	$(ONE_THREAD) $(BIN)/python -m pytest -m slow --durations 0 tests/faults

quality: .venv/.tested
	for table in points digits bits matrix; do $(BIN)/python -m benchmarks.quality $$table; done
	for data in digits fashion-mnist; do $(BIN)/python -m benchmarks.pixels $$data; done
	for t in digits fashion-mnist whole seeds sprites; do $(BIN)/python -m benchmarks.latents $$t; done
	for t in points digits fashion-mnist sheet; do $(BIN)/python -m benchmarks.flows $$t; done
	for t in two_stage memorising restoring; do $(BIN)/python -m benchmarks.$$t; done
	$(BIN)/python -m benchmarks.quality page

bench: .venv/.tested
	$(BIN)/python -m benchmarks --json docs/bench.json

wheel: .venv/.tested
	rm -rf build
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
