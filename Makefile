# The two commands of the README, and what a contributor runs. VENV may name another virtual environment,
# WORKERS another number of processes that share the tests and the cores.
VENV ?= .venv
WORKERS ?= 2
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: demo test quick faults lint clean

demo: $(VENV)/.installed
	$(BIN)/doratune compare --preset demo --output runs/demo --overwrite

# In the order of collection, the commands' tests first: they are few and long, and would be left to one worker.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

quick: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not slow'

# Kills, full disks, signals, thousands of steps: docs/reliability.md has what came out. About an hour.
faults: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/faults

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) runs build dist
