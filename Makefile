# `make demo` and `make test` each set up all they need on a fresh machine with Python 3.11 or later.
PYTHON ?= python3
SEED   ?= 0
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test setup lint types layers speed clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(STAMP)
	rm -rf demo
	$(BIN)/cryorbit demo -o demo --seed $(SEED)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses=8 --dist worksteal --cov --cov-report=term --durations=15

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/basedpyright --pythonpath $(BIN)/python

layers: $(STAMP)
	$(BIN)/lint-imports

speed: $(STAMP)
	$(BIN)/python -m pytest tests/speed -o addopts="" -s

clean:
	rm -rf $(VENV) demo
