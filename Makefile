# Each target makes its own virtual environment; PYTHON=python3.13 chooses another interpreter for it.
PYTHON ?= python3
VENV ?= .venv
PORT ?= 8000
RUN = $(VENV)/bin/python
NODE_MODULES = tests/typescript/node_modules
OTHER_TOOLS = tests/other_tools/.venv

.PHONY: demo serve test coverage lint bench openapi fuzz soak test-django6 stop clean

demo: $(VENV)/installed
	$(RUN) manage.py demo --port=$(PORT)
	$(RUN) -m service.background start --port=$(PORT)

serve: $(VENV)/installed
	$(RUN) manage.py migrate --verbosity=0
	$(RUN) manage.py serve --port=$(PORT)

# A process for each core, up to what the embedded server has connections for; one that is done takes over from another.
IN_PARALLEL = -n auto --maxprocesses=8 --dist=worksteal

test: lint $(NODE_MODULES)/installed $(OTHER_TOOLS)/installed
	$(RUN) -m pytest $(IN_PARALLEL)

# In one process, the only one that is measured.
coverage: $(NODE_MODULES)/installed $(OTHER_TOOLS)/installed
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
	$(RUN) -m benchmarks large
	$(RUN) -m benchmarks memory
	$(RUN) -m benchmarks rollouts
	$(RUN) -m benchmarks protocol
	$(RUN) -m benchmarks template

# What clients are generated from; the tests compare it with the code.
openapi: $(VENV)/installed
	DATABASE_URL=postgresql://nowhere/none $(RUN) manage.py spectacular --validate --fail-on-warn --file tests/openapi.yaml

# For so many seconds for each role: make fuzz SECONDS=3600
SECONDS ?= 300
fuzz: $(VENV)/installed
	FUZZ_SECONDS=$(SECONDS) $(RUN) -m pytest tests/test_schemathesis.py

# Whole fleets and thousands of faults: some hours, and a table of what was measured; SOAK=0.1 is a tenth of it.
# The ordinary suite has the same tests in small.
SOAK ?= 1
soak: $(VENV)/installed
	SOAK=$(SOAK) $(RUN) -m pytest tests/test_soak.py tests/test_scale.py tests/test_faults.py tests/test_orphans.py \
		tests/test_never_twice.py tests/test_concurrently.py tests/test_lock_politeness.py tests/test_state_machine.py \
		tests/test_names_corpus.py tests/test_rollback_property.py tests/test_pretend.py tests/test_relay_faults.py

# The newest Django 6.x needs Python 3.12: make test-django6 PYTHON=python3.13
test-django6:
	$(MAKE) VENV=.venv-django6 PYTHON=$(PYTHON) .venv-django6/installed $(NODE_MODULES)/installed \
		$(OTHER_TOOLS)/installed
	.venv-django6/bin/python -m pip install --quiet --disable-pip-version-check 'django>=6,<7'
	.venv-django6/bin/python -m pytest

stop:
	$(RUN) -m service.background stop
	$(RUN) -m service.embedded_postgres stop

clean:
	test ! -x $(RUN) || $(RUN) -m service.background stop
	test ! -x $(RUN) || $(RUN) -m service.embedded_postgres destroy
	rm -rf $(VENV) .venv-django6 $(NODE_MODULES) $(OTHER_TOOLS)

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.13 ...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# npm comes with the dev extra.
$(NODE_MODULES)/installed: $(VENV)/installed tests/typescript/package.json tests/typescript/package-lock.json
	$(VENV)/bin/npm ci --silent --prefix tests/typescript
	touch $@

# Tools that have made fleets; apart, since they bring settings and commands of their own.
$(OTHER_TOOLS)/installed: tests/other_tools/requirements.txt
	$(PYTHON) -m venv $(OTHER_TOOLS)
	$(OTHER_TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@
