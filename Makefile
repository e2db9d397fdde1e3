# make help lists the targets. Targets that need the environment make it.
PYTHON ?= python3
EXP ?= table1
VENV := .venv
OLDEST := .venv-oldest
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help env demo test test-slow test-faults test-slurm test-oldest lint docs dist figures report export plan bench bench-gpu gpu-check table1 table2 table2_short table3 fig2 fig4

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9_ -]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(STAMP) ## make .venv with the tested versions of everything (about 6 GB with CUDA), unless it is there

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: needs Python 3.11 or newer, got $$($(PYTHON) -V 2>&1); try: make PYTHON=python3.12"; exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "make: $(PYTHON) cannot make a virtual environment; try: apt install python3-venv"; exit 2; }
	@echo "installing torch and the rest into $(VENV): about 6 GB, some minutes"
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[suite,dev,docs]"
	@touch $@

demo: env ## train wd and nl on handwritten digits, 3 seeds each: a table and a figure in a minute or two
	@$(PY) train.py experiment=demo hydra.launcher.jobs=2
	@$(PY) scripts/compare.py experiment=demo

figures: env ## write every table and figure of the finished runs into results/ (trains nothing)
	@$(PY) scripts/figures.py $(ARGS)

report: env ## write results/report.html, one page of all studies
	@$(PY) scripts/report.py $(ARGS)

export: env ## archive finished runs in results/archive, for git
	@$(PY) scripts/export.py $(ARGS)

plan: env ## list the runs of an experiment, and the hours left: make plan EXP=table1
	@$(PY) scripts/plan.py $(EXP) $(ARGS)

bench: env ## measure this package against its targets, on one CPU thread: results/bench/cpu.json
	@OMP_NUM_THREADS=1 $(PY) scripts/bench.py cpu $(ARGS)

bench-gpu: env ## measure a CUDA device against its targets: results/bench/gpu.json
	@$(PY) scripts/bench.py gpu $(ARGS)

gpu-check: env ## run the tests that need a CUDA device, then find the fastest form of a step: results/runs/executors.json
	@$(PY) scripts/gpu_check.py $(ARGS)

test: env ## run the test suite on the CPU, in minutes
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -rs -n 2 --dist loadfile -m "not slow and not slurm"

test-slow: env ## run slow tests that seldom fail: the commands of docs/, examples, benchmarks, installation
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -rs -n 2 --dist load -m "slow and not faults"

test-faults: env ## kill and signal every method, sweeps and queues: a quarter of an hour or more
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -rs -n 2 --dist load -m faults

test-slurm: env ## run sweeps on a real SLURM of this machine, which is installed and started if missing (as root)
	@bash tests/slurm/cluster.sh start; status=$$?; [ $$status -ne 3 ] || exit 0; [ $$status -eq 0 ] || exit $$status; \
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -rs -m slurm; status=$$?; bash tests/slurm/cluster.sh stop; exit $$status

test-oldest: ## run the test suite with the oldest torch that pyproject.toml allows, in .venv-oldest (about 6 GB)
	@test -d $(OLDEST) || $(PYTHON) -m venv $(OLDEST)
	@{ grep -Ev '^(torch|torchvision|torchcodec|triton|setuptools|nvidia-.*|cuda-.*)==' constraints.txt; \
	   sed -nE 's/^ *"(torch|torchvision)>=([0-9.]+).*/\1==\2.0/p' pyproject.toml; } > $(OLDEST)/constraints.txt
	@$(OLDEST)/bin/python -m pip install --quiet -c $(OLDEST)/constraints.txt -e ".[suite,dev]"
	@OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -q -rs -n 2 --dist loadfile -m "not slow and not slurm" $(ARGS)

lint: env ## check rules and format (ruff) and types (mypy)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

docs: env ## build the documentation into site/; broken links are errors
	@$(VENV)/bin/zensical build --clean --strict

dist: env ## build sdist and wheel into dist/ and check them
	@rm -rf dist
	@$(PY) -m build --no-isolation
	@$(PY) -m twine check --strict dist/*

table1 table2 table2_short table3 fig2 fig4: env ## train missing runs of this experiment (ARGS="data_dir=DIR ...")
	@$(PY) train.py experiment=$@ $(ARGS)
