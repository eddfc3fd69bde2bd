# Each target does one job. If there is no virtual environment, it first creates one.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SWEEPS ?= multirun_reports
RECIPE ?= report

# The data set: CIFAR-10, downloaded on first use, or the folder or archive of images in DATA. The path
# is quoted for the shell and for Hydra, where an unquoted comma means a sweep over two values.
ASKED = $(if $(DATA),dataset=image_folder 'dataset.root="$(subst ','\'',$(DATA))"') $(ARGS)

# Variables that make torch and oneDNN compute without AVX-512 on a processor that has it.
AVX2 := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2
# The tests that train a network.
TRAINING_TESTS := tests/contract tests/unit/defenses $(wildcard tests/unit/pipeline/test_chain*.py) \
  $(patsubst %,tests/unit/%.py,data/test_digits $(patsubst %,attacks/test_%,label_consistent narcissus sleeper_agent steganographic) \
    $(patsubst %,training/test_%,callback data_loader devices evaluate gradients memory_format mixing models recipe representations \
      train unused_columns))

.PHONY: help demo smoke reproduce reproduce-small test test-avx2 torture bench bench-gpu tables figures pictures documents status lint clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "backdoor_lab needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "installing into $(VENV): minutes, up to 7 GB (PyTorch); no output until it is done"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY)  ## the report's twelve cells on synthetic data, and their two tables
	$(BIN)/python -m backdoor_lab -m experiment=demo

smoke: $(READY)  ## one cell on synthetic data, less than a minute
	$(BIN)/python -m backdoor_lab experiment=smoke

reproduce: $(READY)  ## the report's cells at full width, three seeds; or RECIPE=fast, DATA=ARCHIVE
	$(BIN)/python -m backdoor_lab -m experiment=report recipe=$(RECIPE) hydra.sweep.dir=multirun_reports/runs/report_$(RECIPE) $(ASKED)

reproduce-small: $(READY)  ## the report's cells on a network that two CPU cores train in hours; or DATA=ARCHIVE
	$(BIN)/python -m backdoor_lab -m experiment=report_airbench hydra.sweep.dir=multirun_reports/runs/report_airbench $(ASKED)

test: $(READY)  ## the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-avx2: $(READY)  ## the tests that train a network, without AVX-512
	OMP_NUM_THREADS=1 $(AVX2) $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(TRAINING_TESTS)

torture: $(READY)  ## the whole fault matrix
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile tests/torture

bench: $(READY)  ## all benchmarks, or one: make bench BENCH=resume
	$(BIN)/python -m tests.bench $(BENCH)

bench-gpu: $(READY)  ## benchmarks that need a GPU; make bench-gpu BENCH=--tiny runs them on a CPU
	$(BIN)/python -m tests.bench.gpu $(BENCH)

tables: $(READY)  ## the tables of every sweep found, from their records; or ROWS=, COLUMNS=, VALUES=
	@$(BIN)/python -m backdoor_lab.reports $(SWEEPS) $(if $(ROWS),'rows=$(ROWS)') $(if $(COLUMNS),'columns=$(COLUMNS)') $(if $(VALUES),'values=$(VALUES)') $(ARGS)

figures: $(READY)  ## the pictures of every sweep found, as PNG and PDF
	@$(BIN)/python -m backdoor_lab.figures $(SWEEPS) $(ARGS)

pictures: $(READY)  ## the pictures of the documents; or one: PICTURE=overview (the page needs the demo and a Chromium)
	$(BIN)/python -m tests.pictures $(PICTURE)

documents: $(READY)  ## rewrite the tables of the documents, from committed records and from the code
	$(BIN)/python -m tests.documents

status: $(READY)  ## which cells of every sweep are done, running, failed or missing
	@$(BIN)/python -m backdoor_lab.status $(SWEEPS) $(ARGS)

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove the environment and every cache, but no results
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
