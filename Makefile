# `make demo` trains and evaluates the recipe quick. `make test` runs all checks. Both create .venv and can be repeated.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    := checkpoints/quick

.PHONY: demo test test-docs docs lint soak bench bench-gpu clean

demo: $(VENV)/.installed
	$(BIN)/fmcli data fetch fashion-mnist
	$(BIN)/fmcli train --recipe quick --output $(RUN) --resume
	$(BIN)/fmcli ensemble evaluate $(RUN)

test: $(VENV)/.installed-dev lint
	$(BIN)/fmcli data fetch fashion-mnist
	$(BIN)/python -m pytest -n auto --dist worksteal
	$(MAKE) docs

# Runs every command of the documentation as written. A second run continues after the last command that succeeded.
test-docs: $(VENV)/.installed-dev
	$(BIN)/fmcli data fetch fashion-mnist
	$(BIN)/fmcli train --recipe quick --output $(RUN) --resume
	$(BIN)/python -m pytest tests/docs --as-written

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/refresh.py --check
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --doctree-dir build/doctrees docs build/site

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

soak: $(VENV)/.installed-dev
	$(BIN)/python -m tests.soak all
	$(BIN)/python -m pip install --quiet --editable '.[soak]'
	$(BIN)/python -m tests.fuzz all

bench: $(VENV)/.installed-bench
	$(BIN)/fmcli data fetch fashion-mnist
	$(BIN)/python -m benchmarks.run

bench-gpu: $(VENV)/.installed
	$(BIN)/fmcli data fetch fashion-mnist
	$(BIN)/python -m benchmarks.run --device cuda --accuracy-recipes kernel-vote
	$(BIN)/python -m benchmarks.run --device cuda --sections accuracy --accuracy-recipes quick record \
		--accuracy-repeats 5 --output benchmarks/results/cuda-accuracy.json
	$(BIN)/python -m benchmarks.run --device cuda --sections accuracy --accuracy-recipes quick record kernel-vote \
		--at-once --output benchmarks/results/cuda-at-once.json
	$(BIN)/python -m benchmarks.profile m5 --device cuda

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "fmcli needs Python 3.11 or newer: make PYTHON=python3.12 …"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; } # Debian: apt-get install python3-venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
