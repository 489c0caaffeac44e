# The two commands that matter: `make demo` and `make test`. Everything is installed into .venv on first use.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
EXTRAS = test,lint
RUNS ?= 1000000
JOBS ?= auto

PACKAGING = pyproject.toml constraints.txt setup.py CMakeLists.txt $(wildcard cmake/*.cmake)
NATIVE = $(shell find csrc -type f)
CPP = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# cmake and ninja from the environment go first: the system's may be absent or old.
export PATH := $(abspath $(VENV))/bin:$(PATH)

.PHONY: help setup build demo test lint cuda-check fuzz sanitize format bench bench-kernels peers clean

help:
	@echo 'make setup   create $(VENV) with all dependencies and build the native code (PYTHON=python3.12 picks a Python)'
	@echo 'make build   rebuild the native code if its sources changed'
	@echo 'make demo    fine-tune small models, make soups of them, report to runs/demo'
	@echo 'make test    run the tests (ARGS="-k NAME -x" is passed to pytest; JOBS=0: in one process)'
	@echo 'make lint    ruff, clang-format, mypy and the layering rules'
	@echo 'make cuda-check  compile the CUDA kernels with nvcc; registers, spills and widths of loads (no GPU needed)'
	@echo 'make fuzz    a million hostile checkpoints through every reader (RUNS=20000; ARGS="--jobs 8 --seed 3 npz")'
	@echo 'make sanitize  run the native code under the address, undefined behaviour and thread sanitizers'
	@echo 'make format  let ruff and clang-format rewrite the sources'
	@echo 'make bench   measure speed, write benchmarks/results/'
	@echo 'make peers   the other tools that make bench measures, in .venv-peers (make bench does it)'
	@echo 'make bench-kernels  time the kernels alone (ARGS="--benchmark-save=NAME", "--benchmark-compare=*_NAME")'
	@echo 'make clean   remove what was built'

setup: build

build: $(VENV)/.built

$(VENV)/.created: constraints.txt ci/create_venv.sh
	@bash ci/create_venv.sh '$(PYTHON)' '$(VENV)'
	@touch $@

# An editable install: changed Python files count at once, changed C++ files through this rule.
$(VENV)/.built: $(VENV)/.created $(PACKAGING) $(NATIVE)
	@echo 'Installing dependencies and building the native code into $(VENV)'
	$(RUN) -m pip install -qq --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: build
	$(VENV)/bin/pysoup demo -o runs/demo --force

# A process for each core, up to four; tests of one file stay together, as they share what is slow to make. The files keep
# their order: by number of tests, the longest would come last.
test: build
	$(RUN) -m pytest -n $(JOBS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder -p no:benchmark $(ARGS)

lint: build
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP)
	$(RUN) -m mypy
	$(RUN) ci/check_layering.py

cuda-check: build
	$(RUN) ci/check_cuda.py

# Without a wheel of atheris for this machine the fuzzer does without coverage, and says so.
$(VENV)/.fuzz: $(VENV)/.built
	-$(RUN) -m pip install -qq --disable-pip-version-check --only-binary :all: -c constraints.txt atheris
	@touch $@

fuzz: build $(VENV)/.fuzz
	$(RUN) -m fuzz --runs $(RUNS) $(ARGS)

sanitize: build
	bash ci/sanitize.sh

format: build
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(VENV)/bin/clang-format -i $(CPP)

# Without the peers' environment (no package index, no CPU build of torch) their part is left out, with a line that says so.
bench: build
	@$(MAKE) --no-print-directory peers || echo 'make bench: without the peers' >&2
	$(RUN) benchmarks/run.py $(ARGS)

peers: .venv-peers/.created

.venv-peers/.created: benchmarks/peers/requirements.txt benchmarks/peers/create_venv.sh constraints.txt | $(VENV)/.created
	@echo 'Installing the peers into .venv-peers'
	@bash benchmarks/peers/create_venv.sh $(RUN) .venv-peers
	@touch $@

bench-kernels: build
	$(RUN) -m pytest benchmarks/test_kernels.py $(ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks $(VENV)/.built
	find pysoup \( -name '*.so' -o -name '__pycache__' \) -prune -exec rm -rf {} +
