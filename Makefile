# The two commands of the README (demo and test), and commands for contributors. VENV names another virtual
# environment, PYTHON the interpreter to create it with, WORKERS the number of test processes, which share the cores.
# pip's own settings apply: PIP_INDEX_URL, HTTPS_PROXY, pip.conf.
VENV ?= .venv
WORKERS ?= 2
PYTHON ?= python3
BIN := $(VENV)/bin
# Python compiles a module when it is first imported. pip would compile all of them, one after the other.
INSTALL = $(BIN)/pip install --quiet --no-compile -c constraints.txt

.PHONY: demo test quick faults compat lint docs wheel clean

ifneq ($(filter demo,$(or $(MAKECMDGOALS),demo)),)
$(info make demo: installs doratune into $(VENV) and downloads a model of 135M parameters (both once), trains LoRA and \
DoRA on three small tasks, and writes runs/demo/report.html: 2 to 5 minutes on two cores after the installation)
endif

demo: $(VENV)/.installed
	$(BIN)/doratune compare --preset demo --output runs/demo --overwrite

# Keep the collected order, with the commands' tests first: they are few and long, and last they would keep one worker busy.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

quick: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not slow'

# Kills, full disks, signals, thousands of steps; the results are in docs/reliability.md. Takes about an hour.
faults: $(VENV)/.installed-dev
	$(BIN)/python -m pytest tests/faults

# A part of the suite with the oldest and the newest PEFT, transformers and TRL that pyproject.toml allows, in virtual
# environments under build/compat: about 6 GB, and half an hour on two cores.
compat: $(VENV)/.installed-dev
	WORKERS=$(WORKERS) $(BIN)/python tests/compat

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

wheel: $(VENV)/.installed-dev
	$(BIN)/python -m build

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e '.[cli]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e '.[dev]'
	$(BIN)/python -m compileall -qq -j $(WORKERS) $(VENV)/lib || true  # the suite would see the compiler's warnings as errors
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e '.[docs]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) runs build dist site
