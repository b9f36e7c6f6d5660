# make demo   a sample from the shipped model: MIDI, sound and piano roll in samples/
# make test   the tests
# make lint   ruff: rules and format
#
# Each sets up .venv first, once, and again when setup.cfg or constraints.txt change.
# Needs Python 3.11 or newer and make, nothing else; another interpreter: make demo PYTHON=python3.13

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo test lint

demo: $(READY)
	$(RUN) generate.py --output_dir samples

test: $(READY)
	$(RUN) -m pytest

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

# --no-compile: Python compiles the few modules it imports faster than pip compiles them all.
$(READY): setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("%s is Python %d.%d; 3.11 or newer is needed: make PYTHON=python3.11" % (sys.executable, *sys.version_info[:2]))'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --no-compile --constraint constraints.txt --editable ".[dev]"
	touch $@
