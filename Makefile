# make demo   a sample from the shipped model: MIDI, sound and piano roll in samples/
# make test   the tests, with the versions that constraints.txt pins
# make lint   ruff: rules and format
#
# make web    the page that plays, with the shipped model, on localhost; needs Node too
#
# make test-notebooks one of the notebooks from top to bottom (the other has the same code), and the tests of both
# make test-web       the page's tests, in Node and in Chromium; needs Node, and is skipped without. Real files are read
#                     too with GOLDEN_MIDI=folder
# make test-interop   the snippets of docs/transformers.md, with the packages that they name; they stay in .venv
#                     and some warn at every import, which test-notebooks does not accept: run it before, or in a new .venv
# make test-lowest    the tests, with the oldest versions that setup.cfg allows, in .venv-lowest
# make test-newest    the tests, with the newest versions that setup.cfg allows, in .venv-newest
#
# Each sets up its environment first, once, and again when setup.cfg or constraints.txt change.
# Needs Python 3.11 or newer and make, nothing else; another interpreter: make demo PYTHON=python3.13

PYTHON ?= python3
VENV ?= .venv
LOWEST := .venv-lowest
NEWEST := .venv-newest
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

# Several test files at a time, each process on one core.
PYTEST := -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile
test test-lowest test-newest: export OMP_NUM_THREADS = 1

.PHONY: demo test lint web test-web test-interop test-notebooks test-lowest test-newest

demo: $(READY)
	$(RUN) generate.py --output_dir samples

web: $(READY)
	$(RUN) -m hub.web checkpoints/maestro-small --output_dir site
	node web/serve.mjs site

# Chromium is installed where that is possible without asking, and the tests in it are skipped elsewhere.
test-web: $(READY)
	@if ! command -v npm > /dev/null; then echo "test-web: skipped, Node 20 or newer with npm is not installed"; exit 0; fi; \
	set -e; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && ! command -v chromium > /dev/null; then \
		apt-get update -qq && apt-get install -qq --no-install-recommends chromium > /dev/null; \
	fi; \
	$(RUN) -m tests.golden_vectors web/test/golden $(if $(GOLDEN_MIDI),--midi $(GOLDEN_MIDI)); \
	cd web; [ -d node_modules ] || npm ci --no-progress; npm run check; npm run build; npm test

test: $(READY)
	$(RUN) $(PYTEST)

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

test-interop: $(READY)
	$(RUN) -m pip install --no-compile --constraint constraints.txt --editable ".[dev,interop]"
	$(RUN) -m pytest tests/test_transformers.py

test-notebooks: $(READY)
	$(RUN) -m pip install --no-compile --constraint constraints.txt --editable ".[dev,notebooks]"
	$(RUN) docs/execute_notebooks.py --check --language en
	$(RUN) -m pytest tests/test_notebooks.py

test-lowest: $(LOWEST)/.ready
	$(LOWEST)/bin/python $(PYTEST)

test-newest: $(NEWEST)/.ready
	$(NEWEST)/bin/python $(PYTEST)

# --no-compile: Python compiles the few modules it imports faster than pip compiles them all.
$(READY): setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("%s is Python %d.%d; 3.11 or newer is needed: make PYTHON=python3.11" % (sys.executable, *sys.version_info[:2]))'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --no-compile --constraint constraints.txt --editable ".[dev]"
	touch $@

# PyTorch pins the release of Triton that it was built with, so the minimum in setup.cfg is left out.
$(LOWEST)/.ready: setup.cfg
	$(PYTHON) -m venv $(LOWEST)
	sed -nE '/triton/d; s/^ +([A-Za-z0-9_-]+)>=([0-9.]+).*/\1==\2/p' setup.cfg > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip install --no-compile --constraint $(LOWEST)/constraints.txt --editable ".[all,test]"
	touch $@

$(NEWEST)/.ready: setup.cfg
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --no-compile --editable ".[all,test]"
	touch $@
