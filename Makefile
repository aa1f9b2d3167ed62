# The text after ## is shown by make help.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    := checkpoints/quick

.PHONY: help demo test test-docs docs lint soak bench bench-gpu clean

help: ## list the targets (default)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## install fmcli, train three networks on Fashion-MNIST, show their vote
	@echo 'Step 1 of 4: install fmcli and PyTorch into $(VENV) (6 GB; about 2 minutes with a fast connection).'
	@$(MAKE) --no-print-directory $(VENV)/.installed
	@echo 'Step 2 of 4: find or download Fashion-MNIST (30 MB; some seconds).'
	@$(BIN)/fmcli data fetch fashion-mnist
	@echo 'Step 3 of 4: train three networks. You can press Ctrl-C: make demo continues later where it stopped.'
	@echo 'Estimated for this machine if it is idle:'
	@$(BIN)/fmcli train --recipe quick --output $(RUN) --resume --plan
	@$(BIN)/fmcli train --recipe quick --output $(RUN) --resume
	@echo 'Step 4 of 4: let them vote on the 10,000 test images (about 15 seconds).'
	@$(BIN)/fmcli ensemble evaluate $(RUN)
	@echo
	@echo 'Next, try:'
	@echo '  . $(BIN)/activate'
	@printf '  %-60s # %s\n' \
		'fmcli predict $(RUN) photo.jpg' 'replace photo.jpg with your photo of clothing' \
		'fmcli plot mistakes $(RUN) --output mistakes.png' 'the images that the vote gets wrong' \
		'fmcli data info folder:DIR' 'your own images: one subfolder per class'

test: $(VENV)/.installed-dev lint ## run all checks and tests, and build the documentation
	$(BIN)/fmcli data fetch fashion-mnist
	$(BIN)/python -m pytest -n auto --dist worksteal
	$(MAKE) docs

# A second run continues after the last command that succeeded.
test-docs: $(VENV)/.installed-dev ## run every command of the documentation as written (hours)
	$(BIN)/fmcli data fetch fashion-mnist
	$(BIN)/fmcli train --recipe quick --output $(RUN) --resume
	$(BIN)/python -m pytest tests/docs --as-written

docs: $(VENV)/.installed-dev ## build the documentation in build/site
	$(BIN)/python docs/refresh.py --check
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --doctree-dir build/doctrees docs build/site

lint: $(VENV)/.installed-dev ## check format, style and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

soak: $(VENV)/.installed-dev ## kill, stop and race trainings, and mutate input files (hours)
	$(BIN)/python -m tests.soak all
	$(BIN)/python -m pip install --quiet --editable '.[soak]'
	$(BIN)/python -m tests.fuzz all

bench: $(VENV)/.installed-bench ## compare speed with Keras and PyTorch (hours)
	$(BIN)/fmcli data fetch fashion-mnist
	$(BIN)/python -m benchmarks.run

bench-gpu: $(VENV)/.installed ## measure speed and accuracy on an NVIDIA GPU
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
	$(BIN)/python -m pip install --editable . # not --quiet: it downloads for minutes
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

clean: ## remove the environment, caches and builds
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
