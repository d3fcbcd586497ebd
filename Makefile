# The two commands: `make train` and `make test`. Both first create their own Python environment in .venv.
#
#   make train            train on the bundled stories; afterwards: .venv/bin/python inference.py
#   make test             run the tests, in parallel
#   make test-all         run the slow tests as well, as .ci/run does
#   make lint             run the linter
#   make types            check the type hints of the public interfaces
#   make dist             build a source distribution and a wheel into dist/
#   make clean            remove .venv
#
# Variables: make train PYTHON=python3.12 EXTRAS=fast,mpi,cuda13 ARGS="--steps 500"
#            make test ARGS=tests/test_ops.py

PYTHON ?= python3
EXTRAS ?= fast,mpi,test
PY = .venv/bin/python
PIP = $(PY) -m pip install --quiet --disable-pip-version-check
TESTS = not slow and not long
PARALLEL = -n auto --maxprocesses 8 --dist worksteal
ALONE = $(if $(findstring tests/,$(ARGS)),,$(shell grep -l 'mark\.alone' tests/test_*.py))

train: .venv/installed
	$(PY) train_gpt2.py --seed 1337 $(ARGS)

# Tests marked `alone` have deadlines, so they run one at a time. Code 5: ARGS selects none of them.
test: .venv/installed
	$(PY) -m pytest -m "$(TESTS) and not alone" $(PARALLEL) $(ARGS) || [ $$? = 5 ]
	$(PY) -m pytest -m "$(TESTS) and alone" $(ALONE) $(ARGS) || [ $$? = 5 ]

test-all: TESTS = not long
test-all: test

lint: .venv/installed-dev
	$(PY) -m ruff check .

types: .venv/installed-dev
	$(PY) -m mypy

dist: .venv/installed-dev
	$(PY) -m build

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python setup.cfg
	$(PIP) -e ".[$(EXTRAS)]"
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) -e ".[dev]"
	touch $@

clean:
	rm -rf .venv

.PHONY: train test test-all lint types dist clean
