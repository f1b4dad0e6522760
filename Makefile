# make demo   fine-tune a language model on a real panel and compare it with its rivals (minutes, no network)
# make test   the test suite           make check  lint, format, types, import contracts
# make bench-scoring bench-training bench-pretrained bench-career bench-prepare bench-gpu   speed and memory: benchmarks/README.md
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

BENCH_INSTALLED := $(VENV)/.benchmarks-installed

.PHONY: demo test check format clean bench-install bench-scoring bench-training bench-pretrained bench-career \
	bench-prepare bench-gpu
.DEFAULT_GOAL := demo

demo: $(INSTALLED)
	$(BIN)/labor-llm run -m model=empirical,markov
	$(BIN)/labor-llm run -m label=title,code
	$(BIN)/labor-llm compare outputs/wage_panel

test: $(INSTALLED)
	$(BIN)/python -m pytest

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-install: $(BENCH_INSTALLED)

bench-scoring: $(BENCH_INSTALLED)
	$(BIN)/python -m benchmarks.scoring

bench-training: $(BENCH_INSTALLED)
	$(BIN)/python -m benchmarks.training

bench-pretrained: $(BENCH_INSTALLED)
	$(BIN)/python -m benchmarks.pretrained

bench-prepare: $(INSTALLED)
	$(BIN)/python -m benchmarks.prepare

bench-career: $(INSTALLED)
	$(BIN)/python -m benchmarks.career

bench-gpu: $(BENCH_INSTALLED)
	$(BIN)/python -m benchmarks.gpu

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# A virtual environment with the exact versions of constraints.txt.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "labor-llm needs Python 3.11 or newer; set PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

# The rivals of the benchmarks.
$(BENCH_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,benchmarks]"
	@touch $@
