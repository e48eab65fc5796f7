# Each target makes its own virtual environment; PYTHON=python3.13 chooses another interpreter for it.
PYTHON ?= python3
VENV ?= .venv
PORT ?= 8000
RUN = $(VENV)/bin/python

.PHONY: demo serve test lint bench test-django6 stop clean

demo: $(VENV)/installed
	$(RUN) manage.py demo --port=$(PORT)
	$(RUN) -m service.background start --port=$(PORT)

serve: $(VENV)/installed
	$(RUN) manage.py migrate --verbosity=0
	$(RUN) manage.py serve --port=$(PORT)

test: lint
	$(RUN) -m coverage run -m pytest
	$(RUN) -m coverage report

lint: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/installed
	$(RUN) -m benchmarks fleet
	$(RUN) -m benchmarks reads

# The newest Django 6.x needs Python 3.12: make test-django6 PYTHON=python3.13
test-django6:
	$(MAKE) VENV=.venv-django6 PYTHON=$(PYTHON) .venv-django6/installed
	.venv-django6/bin/python -m pip install --quiet --disable-pip-version-check 'django>=6,<7'
	.venv-django6/bin/python -m pytest

stop:
	$(RUN) -m service.background stop
	$(RUN) -m service.embedded_postgres stop

clean:
	test ! -x $(RUN) || $(RUN) -m service.background stop
	test ! -x $(RUN) || $(RUN) -m service.embedded_postgres destroy
	rm -rf $(VENV) .venv-django6

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.13 ...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
