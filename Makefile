# fcnfast: the first call makes .venv and installs into it, later calls are quick.
#
#   make demo PYTHON=python3.12              another Python (3.10 or newer)
#   make demo PIP_ARGS="--index-url ..."     further arguments for pip, such as another index
#   make test PYTEST_ARGS="-k upsample -x"   further arguments for pytest

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
VENV = .venv
INTEROP = .venv-interop

# The same examples on every run and machine; HYPOTHESIS_PROFILE=dev looks for new ones.
export HYPOTHESIS_PROFILE ?= ci

BIN = $(VENV)/bin
INSTALL = $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt $(PIP_ARGS)

# Rooms of the package that are shown beside its top level.
ROOMS = fcnfast.ops fcnfast.nn fcnfast.reference fcnfast.data fcnfast.models fcnfast.train \
    fcnfast.metrics fcnfast.theory

# Each stamp says that a step succeeded; an install is repeated when what it was made from changes.
MADE = $(VENV)/.made
CORE = $(VENV)/.core
TEST = $(VENV)/.test

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: demo test interop lint docs static venv clean help

demo: $(CORE)  ## segment the sample scene with the bundled weights, pictures in out/demo
	$(BIN)/fcnfast demo

# loadfile: what a file's tests share, such as a built wheel, is made once and not by each worker.
test: $(TEST)  ## run the test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile tests $(PYTEST_ARGS)

# One thread: the networks are small. test_lazy.py: once with the newest torch, too.
interop: $(INTEROP)/.made  ## try fuse on torchvision, transformers and others, in .venv-interop
	FCNFAST_INTEROP=1 OMP_NUM_THREADS=1 $(INTEROP)/bin/python -m pytest \
	    tests/interop tests/test_lazy.py tests/test_ops_library.py $(PYTEST_ARGS)

lint: $(TEST)  ## check style, types and imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy fcnfast
	$(BIN)/lint-imports --no-cache

docs: $(VENV)/.docs  ## the API as static pages in out/api, from the docstrings
	$(BIN)/pdoc --docformat google --output-directory out/api fcnfast $(ROOMS)

static: $(CORE)  ## compile the kernels for every GPU they are meant for, and judge the code
	$(BIN)/python bench/run.py --static

venv: $(TEST)  ## make .venv with fcnfast (editable) and the tools of test and lint

clean:  ## remove .venv and .venv-interop, the demo's pictures and what the tools left
	rm -rf $(VENV) $(INTEROP) out/demo out/api build dist fcnfast.egg-info
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find fcnfast kernels bench tests -name __pycache__ -prune -exec rm -rf {} +

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' Makefile

$(MADE):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "fcnfast needs Python 3.10 or newer, and '$(PYTHON)' is none;" \
	        "name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "'$(PYTHON)' cannot make a virtual environment: its venv module is not complete." \
	        "On Debian and Ubuntu install it with: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(CORE): $(MADE) pyproject.toml constraints.txt
	$(INSTALL) -e .
	@touch $@

# All that the core install gives comes with this one.
$(TEST): $(MADE) pyproject.toml constraints.txt
	$(INSTALL) -e '.[test,lint]'
	@touch $(CORE) $@

$(VENV)/.docs: $(CORE)
	$(INSTALL) -e '.[docs]'
	@touch $@

# PyPI's torchvision does not import beside a CPU build of torch: all of it comes from one index.
$(INTEROP)/.made: pyproject.toml constraints-interop.txt
	$(PYTHON) -m venv $(INTEROP)
	$(INTEROP)/bin/python -m pip --disable-pip-version-check install -c constraints-interop.txt \
	    $(PIP_ARGS) -e . torchvision transformers accelerate segmentation_models_pytorch timm \
	    torchmetrics pytest hypothesis
	@touch $@
