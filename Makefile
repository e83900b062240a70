# Two commands do everything on a fresh machine: `make laptop` and `make test`.

PYTHON ?= python3
BIN := .venv/bin
STORE ?= store

.PHONY: env laptop test lint parity bench dashboard

env: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

laptop: env
	$(BIN)/olmo2 run laptop --store $(STORE)

test: env
	$(BIN)/python -m pytest

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

parity: env
	$(BIN)/python -m pytest tests/parity -q -s -m parity

bench: env
	for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

dashboard: env
	$(BIN)/olmo2 dashboard
