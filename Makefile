# make setup        create the virtual environment .venv
# make demo         train a teacher, a baseline and a student on data bundled with scikit-learn
# make test         run all tests
# make test-fast    run the tests that train nothing, in under a minute
# make test-hydra-next  run some tests with the next version of Hydra
# make lint         check style and types
# make bench        measure training speed against a plain PyTorch loop, in ten minutes
# make bench-full   the same with whole epochs and sweeps, in forty minutes

PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-fast test-hydra-next lint format bench bench-full \
	tensorboard constraints clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	@echo 'Installing into .venv: torch and the other packages, about a minute'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip install --quiet --python .venv --compile-bytecode -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/python train.py experiment=compare data=digits

test: setup
	$(BIN)/python -m pytest

test-fast: setup
	$(BIN)/python -m pytest -m "not slow"

# The next Hydra and its plugins, in a folder of their own before the installed ones.
NEXT := $(CURDIR)/.venv/hydra-next
NEXT_PACKAGES := hydra-core==1.4.0rc3 hydra-optuna-sweeper==1.4.0rc3 hydra-joblib-launcher==1.4.0rc3 \
	hydra-submitit-launcher==1.4.0rc3 hydra-ray-launcher==1.4.0rc3 omegaconf==2.4.1rc1 optuna==5.0.0
NEXT_TESTS := tests/cli/test_command_line.py tests/engines/test_shared_search.py \
	tests/cli/test_sweep.py::test_compare_gives_teacher_and_students_one_budget_and_seed

test-hydra-next: setup
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target $(NEXT) $(NEXT_PACKAGES)
	PYTHONPATH=$(NEXT) $(BIN)/python -m pytest $(NEXT_TESTS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/bench.py

bench-full: setup
	$(BIN)/python benchmarks/bench.py --full

tensorboard: setup
	$(BIN)/tensorboard --logdir . --host 127.0.0.1

# Versions only, without URLs and hashes: these depend on the package index of the machine.
constraints: setup
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-header \
		--no-annotate --no-emit-index-url pyproject.toml -o constraints.txt

clean:
	rm -rf .venv outputs multirun teachers
