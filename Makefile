# The two commands that matter: `make demo` and `make test`. Everything is installed into .venv on first use.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
EXTRAS = test,lint

PACKAGING = pyproject.toml constraints.txt setup.py CMakeLists.txt
NATIVE = $(shell find csrc -type f)
CPP = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# cmake and ninja from the environment go first: the system's may be absent or old.
export PATH := $(abspath $(VENV))/bin:$(PATH)

.PHONY: help setup build demo test lint format bench clean

help:
	@echo 'make setup   create $(VENV) with all dependencies and build the native code (PYTHON=python3.12 picks a Python)'
	@echo 'make build   rebuild the native code if its sources changed'
	@echo 'make demo    fine-tune small models, make soups of them, report to runs/demo'
	@echo 'make test    run the tests (ARGS="-k NAME -x" is passed to pytest)'
	@echo 'make lint    ruff, clang-format, mypy and the layering rules'
	@echo 'make format  let ruff and clang-format rewrite the sources'
	@echo 'make bench   measure speed, write benchmarks/results/'
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

test: build
	$(RUN) -m pytest $(ARGS)

lint: build
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP)
	$(RUN) -m mypy
	$(RUN) ci/check_layering.py

format: build
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(VENV)/bin/clang-format -i $(CPP)

bench: build
	$(RUN) benchmarks/run.py $(ARGS)

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks $(VENV)/.built
	find pysoup \( -name '*.so' -o -name '__pycache__' \) -prune -exec rm -rf {} +
