# `make demo` and `make test` need Python 3.11 or later, make, git and a package registry, nothing else.
# A torch that PYTHON has already is used as it is; otherwise TORCH is installed.

PYTHON ?= python3
TORCH ?= torch==2.13.0
# of the tests' order and of what numpy and random draw in them
SEED ?= 1
RUN := .venv/bin/python

.PHONY: demo test docs clean

demo: .venv/.core
	@$(RUN) -m workingpapers demo

test: .venv/.test
	$(RUN) -m ruff check src tests benchmarks
	$(RUN) -m ruff format --check src tests benchmarks
	$(RUN) -m mypy
	$(RUN) -c "from importlinter.cli import lint_imports_command as run; run()"
	$(RUN) -m pytest --randomly-seed=$(SEED) -n 2 --dist worksteal --cov --cov-report=term:skip-covered --cov-fail-under=89

docs: .venv/.test
	$(RUN) -m sphinx -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf .venv docs/_build docs/papers

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Working Papers needs Python 3.11 or later, but $(PYTHON) is $$($(PYTHON) --version 2>&1); name another with PYTHON=..." >&2; exit 1; }
	@if $(PYTHON) -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; \
	  then $(PYTHON) -m venv --system-site-packages .venv; else $(PYTHON) -m venv .venv; fi
	@touch $@

.venv/.torch: .venv/.made
	@$(RUN) -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' || \
	  $(RUN) -m pip install -q --disable-pip-version-check "$(TORCH)"
	@touch $@

.venv/.core: .venv/.torch pyproject.toml
	@$(RUN) -m pip install -q --disable-pip-version-check -e .
	@touch $@

.venv/.test: .venv/.core
	@$(RUN) -m pip install -q --disable-pip-version-check -e ".[test]"
	@touch $@
