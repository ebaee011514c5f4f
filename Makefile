# Two commands do everything on a fresh machine: `make run` and `make test`. Each sets up first what is missing.
# An active virtual environment is used as it is; otherwise one is made in .venv.
VENV := $(if $(VIRTUAL_ENV),$(VIRTUAL_ENV),.venv)
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.certdef-ready
ARGS ?=

.PHONY: help run test slow coverage lint docs setup
.DEFAULT_GOAL := help

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make the virtual environment and install certdef with its pinned dependencies

$(READY): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[test,dev,docs]'
	touch $(READY)

run: $(READY)  ## the main job on the digits that ship with scikit-learn; options in ARGS, e.g. ARGS="--seed 1"
	$(BIN)/certdef run $(ARGS)

test: $(READY)  ## the tests; more of pytest's options in ARGS, e.g. ARGS="-m slow"
	OMP_WAIT_POLICY=PASSIVE MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(if $(filter -m%,$(ARGS)),,-m "not slow") $(ARGS)

slow: $(READY)  ## the tests that take minutes and that CI leaves to a weekly run
	$(MAKE) test ARGS="-m 'slow and not acceptance' $(ARGS)"

coverage: $(READY)  ## the tests of CI, and the share of the lines that they run; it fails below the floor of setup.cfg
	$(MAKE) test ARGS="-m 'not slow or acceptance' --cov $(ARGS)"

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)  ## the documentation as a site, in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
