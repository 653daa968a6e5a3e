# modelnet: `make demo` shows it, `make test` tests it. Both set up .venv first: Python 3.11+ and make are all it takes.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help setup demo test test-all check format schemas compose-test chaos bench bench-market clean

help:            ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 24

setup: $(VENV)/ready  ## make .venv with everything in it

$(VENV)/ready: pyproject.toml install.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" ./install.sh
	@touch $@

demo: setup      ## start the network, run the main job on it, print a report, stop
	@$(BIN)/python -m examples.demo

test: setup      ## the tests, two files at a time
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-all: setup  ## the tests, those that start separate engine processes too
	$(BIN)/python -m pytest

check: setup     ## format, lint, types, schemas, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m modelnet.schemas --check
	$(MAKE) test

format: setup    ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schemas: setup   ## write schemas/ anew from modelnet/messages
	$(BIN)/python -m modelnet.schemas

compose-test: setup  ## build the images, bring the network up with compose, use it from outside, take it down
	$(BIN)/python -m tests.compose

chaos: setup     ## ten minutes of faults against a network under load, then garbage at every subject
	$(BIN)/python -m tests.chaos
	$(BIN)/python -m tests.chaos.fuzz

bench: setup     ## what the network adds to a bare round trip
	$(BIN)/python -m bench.overhead

bench-market:    ## the market against routers, in simulation (minutes), and as the network grows (half an hour)
	$(VENV)/bin/uv pip install --quiet --python $(BIN)/python -e ".[bench]"
	$(BIN)/python -m bench.market --write
	$(BIN)/python -m bench.market_scale --write
	$(BIN)/python -m bench.market_plots

clean:           ## remove .venv and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
