# make train and make test do everything on a machine with Python 3.11 and make.
# INDEX: another package index for the pinned torch, e.g. make train INDEX=https://download.pytorch.org/whl/cpu
PYTHON ?= $(shell command -v python3.11 || command -v python3)
INDEX ?=
VERSION ?= 2.8.0
VENV := .venv
LOWEST := .venv-lowest
BIN := $(VENV)/bin
INSTALL := -m pip install --quiet --disable-pip-version-check $(if $(INDEX),--extra-index-url $(INDEX))
PIP := $(BIN)/python $(INSTALL) -c constraints.txt
ARGS ?=
OF ?=
SPREAD := -n auto --dist worksteal
BUILT := pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/bptt/nn/kernels/native/* src/bptt/nn/kernels/native/cells/*)

.PHONY: train test test-deep test-lowest sanitize bench docs docs-check pictures figures help
help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## */\t/' | expand -t 14

train: $(VENV)/cli.stamp  ## train the default character model and write its report under runs/  (ARGS="--strategy artbp:50")
	$(BIN)/bptt train $(ARGS)

test: $(VENV)/test.stamp  ## all checks: pytest with doctests, ruff, basedpyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/python -m pytest $(SPREAD) $(ARGS)

test-deep: $(VENV)/test.stamp  ## the property tests on many more cases, the longest checks, every benchmark once
	HYPOTHESIS_PROFILE=deep $(BIN)/python -m pytest $(SPREAD) -m "" $(ARGS)

test-lowest: | $(LOWEST)/bin/python  ## the tests on the oldest torch that is supported, in .venv-lowest  (VERSION=2.8.0)
	@grep -v '^torch==' constraints.txt > $(LOWEST)/constraints.txt
	@$(LOWEST)/bin/python -c 'import tomllib; extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
	  print(*(r for name in ("test", "cli", "data", "export", "docs") for r in extras[name] if not r.startswith("bptt[")), sep="\n")' > $(LOWEST)/requirements.txt
	$(LOWEST)/bin/python $(INSTALL) -c $(LOWEST)/constraints.txt torch==$(VERSION) -r $(LOWEST)/requirements.txt
	$(LOWEST)/bin/python $(INSTALL) --no-deps -e .
	$(LOWEST)/bin/python -m pytest $(SPREAD) $(ARGS)

sanitize:        ## the C++ kernels under the address, undefined-behaviour and thread sanitizers; needs cmake and a compiler
	@for kind in address,undefined thread; do \
	  flags="-g -O1 -fsanitize=$$kind -fno-sanitize-recover=all"; folder=build/sanitize/$$kind; echo "== $$kind"; \
	  cmake -S . -B $$folder -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS="$$flags" > /dev/null && \
	  cmake --build $$folder --parallel > /dev/null && \
	  $(CXX) -std=c++17 -Wall -Wextra -pthread $$flags tests/native/sanitize.cpp -o $$folder/sanitize -ldl && \
	  $$folder/sanitize $$folder/libbptt.so || exit 1; done

bench: $(VENV)/compare.stamp  ## the benchmarks, one file a question
	@for f in benchmarks/*.py; do echo "== $$f"; $(BIN)/python $$f || exit 1; done

docs: $(VENV)/docs.stamp  ## the documentation as HTML, in docs/_build/html; a warning is an error
	$(BIN)/python -m sphinx -E -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

docs-check: $(VENV)/test.stamp  ## pages and explorer in a headless Chromium: numbers, console, requests, what is cut off
	$(BIN)/python -m pytest -m "" -rs $(ARGS) tests/test_explorer.py tests/test_docs.py

figures:         ## take over what benchmarks wrote, and write the tables of README and pages from it  (OF=zen5: speed on another processor)
	$(PYTHON) docs/figures.py $(OF)

pictures: $(VENV)/test.stamp  ## compute and draw the plots of the pages, in docs/images, in about two minutes
	$(BIN)/python docs/pictures.py

$(VENV)/cli.stamp: $(BUILT) | $(BIN)/python
	$(PIP) -e '.[cli]'
	@touch $@

$(VENV)/test.stamp: $(BUILT) | $(BIN)/python
	$(PIP) -e '.[test,bench]'
	@touch $@ $(VENV)/cli.stamp $(VENV)/docs.stamp

$(VENV)/compare.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[compare]'
	@touch $@

$(VENV)/docs.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[docs]'
	@touch $@

$(BIN)/python $(LOWEST)/bin/python:
	@test -n "$(PYTHON)" || { echo "bptt needs Python 3.11 or newer on the PATH, or make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "bptt needs Python 3.11 or newer; $(PYTHON) is older. Use make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(@:/bin/python=)
