# The two commands: `make train` and `make test`. Both make their own Python environment in .venv first.
#
#   make train            train the bundled stories, then: .venv/bin/python inference.py
#   make test             run the tests
#   make lint             run the linter
#   make clean            remove .venv
#
# PYTHON and EXTRAS may be given: make train PYTHON=python3.12 EXTRAS=fast,mpi,cuda13

PYTHON ?= python3
EXTRAS ?= fast,mpi,test
PY = .venv/bin/python

train: .venv/installed
	$(PY) train_gpt2.py --seed 1337 $(ARGS)

test: .venv/installed
	$(PY) -m pytest $(ARGS)

lint: .venv/installed-dev
	$(PY) -m ruff check .

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python setup.cfg
	$(PY) -m pip install --quiet --disable-pip-version-check -e ".[$(EXTRAS)]"
	touch $@

.venv/installed-dev: .venv/installed
	$(PY) -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

clean:
	rm -rf .venv

.PHONY: train test lint clean
