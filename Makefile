# The whole set-up and the usual jobs. `make demo` and `make test` install what is missing, once.
PYTHON ?=
VENV := .venv
STAMP := $(VENV)/.installed
LEWM := $(VENV)/bin/lewm
PYTEST := $(VENV)/bin/python -m pytest

.PHONY: demo test test-slow test-peer test-gpu lint format clean setup

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt infra/setup.sh
	bash infra/setup.sh $(VENV) $(PYTHON)
	touch $@

demo: setup
	$(LEWM) demo

test: lint
	$(PYTEST)

test-slow: setup
	$(PYTEST) -m slow

test-peer: setup
	$(PYTEST) -m peer

test-gpu: setup
	$(PYTEST) -m gpu

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/basedpyright

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
