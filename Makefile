# `make help` lists the targets. Each one sets up what it needs; the second time that is quick.

PYTHON ?=
BIN := .venv/bin
RUN := CUDA_VISIBLE_DEVICES=$${CUDA_VISIBLE_DEVICES:-0}

.DEFAULT_GOAL := help
.PHONY: help venv venv-vllm demo test test-engines test-matrix lint addition bench gpu clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

.venv/.ready: pyproject.toml scripts/setup.sh
	@PYTHON="$(PYTHON)" sh scripts/setup.sh
	@touch $@

.venv-vllm/.ready: pyproject.toml scripts/setup.sh
	@PYTHON="$(PYTHON)" sh scripts/setup.sh vllm
	@touch $@

venv: .venv/.ready  ## .venv with everything that the other targets need

venv-vllm: .venv-vllm/.ready  ## .venv-vllm, where completions can come from vLLM

demo: .venv/.ready  ## SmolLM2-135M learns to answer in JSON, in minutes on a laptop's CPU
	@$(BIN)/python examples/demo.py $(ARGS)

addition: .venv/.ready  ## sums with the solution as context: pure distillation, then mixed with GRPO
	@$(BIN)/trl-opsd data addition
	@$(RUN) $(BIN)/trl-opsd train --config smollm2_addition $(ARGS)
	@$(RUN) $(BIN)/trl-opsd train --config smollm2_addition_grpo $(ARGS)

# Liger without what it depends on: Triton, some 300 MB, is for GPUs, and there torch brings it
LIGER = $(shell sed -n 's/^bench = \["\(.*\)"\]/\1/p' pyproject.toml)

bench: .venv/.ready  ## time and memory beside other losses and trainers, in about 40 minutes: docs/performance.md
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "$(LIGER)"
	@$(BIN)/python -m benchmarks kernel $(ARGS)
	@$(BIN)/python -m benchmarks kernel --allocator tuned --repeats 2 $(ARGS)
	@$(BIN)/python -m benchmarks step --repeats 2 $(ARGS)
	@$(BIN)/python -m benchmarks step --methods --repeats 2 $(ARGS)
	@$(BIN)/python -m benchmarks scaling --repeats 2 $(ARGS)

# On a machine with a GPU: its environment has torch with CUDA, and with it Triton, which Liger needs
gpu: .venv/.ready  ## check on one GPU in ten minutes: values, the loss, a step, resuming, engines: docs/performance.md
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "$(LIGER)"
	@$(RUN) $(BIN)/python -m benchmarks gpu $(ARGS)

# ARGS goes to pytest: `make test ARGS="tests/kernels -x"`. Files are dealt to two processes whole, so that what a file's
# tests share is made once
test: .venv/.ready  ## the tests, in minutes, without those of `make test-engines`
	@$(BIN)/python -m pytest -m "not engines" -n 2 --dist loadfile $(ARGS)

# Those of vLLM run in .venv-vllm, with the oldest transformers supported, as do the files that depend most on
# transformers, and those that want Triton
OLDEST = tests/kernels/test_faked_cuda.py tests/benchmarks/test_triton_tile.py tests/distributed/test_vllm_*.py tests/trainer/test_trl_pins.py tests/trainer/test_trainer_loss.py tests/trainer/test_generation.py tests/trainer/test_planted.py

test-engines: .venv/.ready .venv-vllm/.ready  ## tests with several processes, engines that shard, vLLM, kills, the whole demo: half an hour
	@$(BIN)/python -m pytest -m engines $(ARGS)
	@$(if $(ARGS),,.venv-vllm/bin/python -m pytest $(OLDEST))

test-matrix:  ## the quick tests with Python 3.11 to 3.13, oldest and newest of what they need: hours, and 40 GB
	@sh scripts/matrix.sh $(ARGS)

lint: .venv/.ready  ## style and common mistakes
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

clean:  ## remove what was built, but not .venv and .venv-vllm
	rm -rf demo output build .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv*/*' -prune -exec rm -rf {} +
