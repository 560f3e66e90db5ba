# make demo   creates .venv, installs, fetches a small model, compiles it, runs the plan
# make test   lint, types, import directions, the whole test suite

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)
PLAN := .cache/smollm2.bin
MODEL := .cache/models/SmolLM2-135M-Instruct.Q4_1.gguf

# processes that tests start need not compile what the first has compiled
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint types imports unit format install clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "needs Python 3.11 or 3.12: install one, or make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[compile,dev]'
	@# type checkers do not follow editable installs: this is where pyright finds `tokenspeed`
	@mkdir -p $(VENV)/typed && ln -sfn ../.. $(VENV)/typed/tokenspeed
	@touch $@

demo: install
	$(BIN)/python examples/fetch_smollm2.py .cache/models
	$(BIN)/tokenspeed-compile $(MODEL) --output $(PLAN) --dtype f32 --quantize none --bundle-weights
	$(BIN)/tokenspeed-run $(PLAN) --prompt "The three primary colors are" --max-tokens 32 --temperature 0
	printf 'What is the capital of France?\n' | $(BIN)/tokenspeed-run $(PLAN) --chat --max-tokens 48 --temperature 0

test: lint types imports unit

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyright --pythonpath $(BIN)/python

imports: install
	$(BIN)/lint-imports

unit: install
	$(BIN)/pytest

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .cache build *.egg-info
