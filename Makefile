# Every target sets up what it needs. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
# a GPU node: any Python that has torch, numpy, pandas, pydantic and filelock. More arguments: python -m tests.gpu --help
NODE_PYTHON ?= $(PYTHON)
NODE_BUDGET_S ?= 1200
NODE_ARGUMENTS ?= --studies askewsgd
# processes that share the tests: twice as many as cores, for a test that starts others waits for them a good part of its time
TEST_PROCESSES ?= $(shell $(PYTHON) -c 'import os; print(2 * min(4, os.cpu_count() or 1))')
export MLFLOW_DISABLE_TELEMETRY = true
# nothing is compiled at installation, but each module at its first import; without that, every process would compile torch anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test slow lab ui studies bench docs gpu clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED)  ## virtual environment with the pinned versions

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "The venv module is missing. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Installing (a few minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[lab,graphs,llm,test]'
	@touch $@

demo: $(INSTALLED)  ## the tour: four families of methods in bytes, joules and seconds, claims checked (minutes)
	@$(BIN)/workbench study tour

test: $(INSTALLED)  ## the tests
	@$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile

slow: $(INSTALLED)  ## the tests that take minutes
	@$(BIN)/python -m pytest -m 'slow and not gpu'

lab: $(INSTALLED)  ## JupyterLab with the notebooks
	@$(BIN)/jupyter lab --notebook-dir=notebooks

ui: $(INSTALLED)  ## MLflow on 127.0.0.1, with the link to the runs
	@$(BIN)/workbench ui

studies: $(INSTALLED)  ## every study at its quick profile
	@for study in $$($(BIN)/workbench study --ids); do $(BIN)/workbench study $$study --profile quick || exit 1; done

bench: $(INSTALLED)  ## speed, as ratios measured side by side
	@$(BIN)/python -m tests.bench

docs: $(INSTALLED)  ## offline pages: executed studies, every method, how to add one, how to read the meters
	@$(BIN)/workbench docs

gpu:  ## on a CUDA machine: every method against the CPU, then full studies inside a time budget
	@$(NODE_PYTHON) -m tests.gpu --budget-s $(NODE_BUDGET_S) $(NODE_ARGUMENTS)

clean:  ## remove the virtual environment (runs stay)
	@rm -rf $(VENV)
