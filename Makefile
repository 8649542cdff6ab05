# make demo: set everything up, build the shipped model in 4 bits, and let it speak.
# make test: set everything up and run every test.
# Paths are relative on purpose: the checkout may lie in a folder with a space in its name.

PYTHON ?= python3
BIN := .venv/bin
DEMO := demo/LFM2-shipped-ONNX

.PHONY: demo test consumers lint types setup setup-dev clean

demo: setup
	$(BIN)/lfm2-export build --dtype q4 --force -o $(DEMO)
	$(BIN)/lfm2-export generate $(DEMO) -p "What is the capital of France?" --greedy --max-new-tokens 64
	$(BIN)/lfm2-export generate $(DEMO) --raw -p "The os module provides" --seed 1 --max-new-tokens 64

test: setup-dev consumers
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Node's packages, a Chromium, onnxruntime-genai, OpenVINO: what the consumer tests run. What is there already stays.
consumers:
	PYTHON="$(CURDIR)/$(BIN)/python" bash lfm2export/consumers/setup.sh

lint: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup-dev
	$(BIN)/mypy

setup: .venv/.runtime
setup-dev: .venv/.dev

.venv/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed, this is ' + sys.version)"
	$(PYTHON) -m venv .venv

.venv/.runtime: requirements.txt pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $@

.venv/.dev: requirements-dev.txt .venv/.runtime
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv demo
