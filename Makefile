# Every target sets itself up: plain python3 -m venv and pip, nothing else is needed.
PYTHON ?= python3
BIN := .venv/bin
# Tests run in two processes; one OpenMP thread each keeps them from fighting over two cores.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 HF_HUB_OFFLINE=1

.PHONY: setup demo test check docs bench torture notebooks format clean

setup: .venv/ready

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[cpu,encode,decoders,report,dev]"
	touch $@

demo: setup
	$(BIN)/embridge demo

test: setup
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(MAKE) docs
	$(MAKE) test

# Kills, mutations, races and full disks, about an hour on one core: make torture TORTURE="kills --count 500"
torture: setup
	$(ONE_THREAD) $(BIN)/python -m tests.torture $(TORTURE)

docs: setup
	$(BIN)/zensical build --strict --clean

bench: setup
	$(BIN)/python -m tests.benchmarks $(BENCH)

# Every notebook in full, in place of the figures and tables that are committed; needs ../shared/data, about an hour on one core.
notebooks: setup
	$(ONE_THREAD) $(BIN)/jupyter-execute --timeout=7200 notebooks/*.ipynb

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist embridge-demo
