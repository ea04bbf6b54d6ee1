# Each target sets up what it needs in .venv, once, and then does its job.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
LAB := .venv/.stamp-package .venv/.stamp-lab
DEV := $(LAB) .venv/.stamp-dev .venv/.stamp-docs
TESTS ?= 2

.PHONY: help compare test quick check format lint types native docs lock clean
.NOTPARALLEL: # two runs of pip in one .venv get in each other's way

help: ## Shows this list.
	@grep -hE '^[a-z]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 10

compare: $(LAB) ## Compares five norms at two batch sizes on the digits of scikit-learn (two to four minutes).
	$(BIN)/normwise compare digits --norm batch --norm instance --norm group:4 --norm layer --norm none \
	  --batch-size 8 --batch-size 64 --budget 220s --out runs/digits

test: $(DEV) ## Runs every test, every example in the docstrings, the README and the docs.
	bash tools/debian.sh chromium dataset-fashion-mnist
	$(BIN)/pytest --numprocesses $(TESTS) --dist worksteal

quick: format lint types ## The checks that take less than a minute.
	$(BIN)/pytest --numprocesses $(TESTS) --dist worksteal -m "not slow"

check: format lint types native docs test ## All that CI checks.

format: $(DEV) ## Is everything formatted?
	$(BIN)/ruff format --check

lint: $(DEV) ## Ruff.
	$(BIN)/ruff check

types: $(DEV) ## Pyright.
	$(BIN)/pyright

native: $(DEV) ## Were the kernels built?
	$(BIN)/python -c "import normwise as nw; assert nw.backend() == 'native', 'the kernels were not built'"

docs: $(DEV) ## Builds the site into site/; a broken link or reference is an error.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lock: $(DEV) ## Writes constraints.txt anew from what .venv holds.
	sed -n '/^#/p' constraints.txt > .venv/constraints.txt
	$(BIN)/python -m pip freeze --all --exclude-editable | grep -vE '^pip==' | sed 's/+cpu$$//' >> .venv/constraints.txt
	mv .venv/constraints.txt constraints.txt

clean: ## Removes what was built, .venv too; runs/ stays.
	rm -rf .venv site build src/*.egg-info src/normwise/*.so .pytest_cache .ruff_cache .hypothesis

# PyTorch first and alone: the kernels are built against it, which an isolated build would not see.
.venv/.stamp-torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make: Python 3.11 or newer is needed; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch setuptools
	touch $@

.venv/.stamp-package: pyproject.toml $(wildcard setup.py csrc/*) | .venv/.stamp-torch
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

# What the extras depend on, without building the package again.
.venv/.stamp-lab .venv/.stamp-dev .venv/.stamp-docs: .venv/.stamp-%: pyproject.toml constraints.txt tools/extras.py | .venv/.stamp-package
	$(BIN)/python tools/extras.py $* > .venv/$*.txt
	$(PIP) --requirement .venv/$*.txt
	touch $@
