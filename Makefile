# fewstep: `make` lists the targets. Everything is installed into .venv; outside this folder only uv's cache of
# downloads is touched.
SHELL := /bin/bash
.DEFAULT_GOAL := help
# Byte-code is written into .venv whatever the surroundings say: without it torch and diffusers are compiled anew at
# each start, which then takes three times as long.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help run speed test test-slow test-gpu soak fuzz coverage lint typecheck report readme clean

BIN := .venv/bin
CONFIG ?= digits
RUN ?= runs/digits
ARGS ?=
TARGETS ?= safetensors npz pt rating config checkpoint image results
SECONDS_EACH ?= 60
WORKERS ?= 2
RUNS := .[tensorboard,export]
SUITE = -n $(WORKERS) --dist loadfile -m "not slow and not gpu" $(ARGS)
SUPPORTED = import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  CONFIG=preset-or-file.yaml and ARGS='--dotted.key value' change what 'make run' runs; PYTHON=... picks the interpreter."

run: .venv/.stamp-run  ## train, distil, measure and report: CONFIG (default: the digits preset)
	$(BIN)/fewstep run $(CONFIG) $(ARGS)

speed: .venv/.stamp-run  ## time of training and sampling beside bare evaluations and two rivals, for CONFIG: speed.json
	$(BIN)/fewstep speed $(CONFIG) $(ARGS)

test: .venv/.stamp-dev  ## the test suite, without the slow tests, in WORKERS processes (default: 2)
	$(BIN)/python -m pytest $(SUITE)

test-slow: .venv/.stamp-dev  ## the tests that take longer
	$(BIN)/python -m pytest -m "slow and not gpu" $(ARGS)

test-gpu: .venv/.stamp-dev  ## the test suite with its models on a CUDA device
	FEWSTEP_TEST_DEVICE=cuda $(BIN)/python -m pytest -m "not slow" $(ARGS)

soak: .venv/.stamp-dev  ## hundreds of injected faults and a table of what was survived; SOAK_KILLS=20 makes it short
	$(BIN)/python -m pytest tests/faults -m soak $(ARGS)

fuzz: .venv/.stamp-fuzz  ## fuzz what parses bytes: SECONDS_EACH for each of TARGETS; findings go to build/fuzz
	@for target in $(TARGETS); do \
		$(BIN)/python tests/hostile/fuzz_run.py $$target $(SECONDS_EACH) || exit 1; \
	done

coverage: .venv/.stamp-dev  ## which `raise UserError` the tests execute (ARGS: which tests; default: all but slow ones)
	@mkdir -p build && rm -f build/.coverage*
	$(BIN)/python -m coverage run -m pytest -q $(SUITE)
	@$(BIN)/python -m coverage combine -q
	$(BIN)/python tests/error_coverage.py build/.coverage

lint: .venv/.stamp-dev  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: .venv/.stamp-dev  ## pyright
	$(BIN)/pyright

report: .venv/.stamp-run  ## write the report of RUN again from its results
	$(BIN)/fewstep report $(RUN)

readme: .venv/.stamp-run  ## fill the README's tables and picture from eval/results/
	$(BIN)/python -m fewstep.eval.report.readme write

clean:  ## remove caches and build products; .venv and runs stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find pipeline teachers students eval src tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "fewstep needs Python 3.11, 3.12 or 3.13: make PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv .venv

# uv unpacks in parallel and leaves the byte-code for the first import: several times faster than pip, which is tried
# where uv cannot be had or fails (a private index that only pip's configuration names).
define install
$(BIN)/python -m pip install --quiet --disable-pip-version-check uv && \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable $(1) || \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable $(1)
endef

# What a run and an export need: the package (editable), TensorBoard's log writer, onnx and onnxruntime.
.venv/.stamp-run: pyproject.toml | .venv/bin/python
	$(call install,'$(RUNS)')
	@touch $@

# On top of that, what the tests and checks need.
.venv/.stamp-dev: .venv/.stamp-run
	$(call install,'.[dev]')
	@touch $@

# And what fuzzing needs.
.venv/.stamp-fuzz: .venv/.stamp-dev
	$(call install,'.[fuzz]')
	@touch $@
