# make run      set up and serve: http://127.0.0.1:8000/
# make setup    set up without serving
# make test     all tests; ARGS="-k presence" selects some, REQUIRE_ALL=1 fails skipped tests
# make lint     style, types, import contracts, words, tasks, migrations
# make format   fix the style
# make docs     the documentation as a site, in var/site; the server shows it at /docs/
# make sbom     a bill of materials in var/sbom.json: the server's packages, and those that they need
# make security the same, and their known vulnerabilities

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

.PHONY: run setup test lint format docs sbom security
.SILENT:

run: .venv-server
	exec $(BIN)/python manage.py develop

setup: .venv-server
	$(BIN)/python manage.py setup

# The unit tests run in parallel. The others start servers and measure time, so they run one after the other.
test: .venv-tests
ifeq ($(strip $(ARGS)),)
	status=0; $(BIN)/python -m pytest tests/unit -n auto || status=1; \
	$(BIN)/python -m pytest --ignore=tests/unit || status=1; exit $$status
else
	$(BIN)/python -m pytest $(ARGS)
endif

lint: .venv-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.lint.words --strict
	$(BIN)/python -m tests.lint.tasks
	$(BIN)/python manage.py makemigrations --check --dry-run
	$(BIN)/python manage.py check

format: .venv-tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv-tests
	$(BIN)/mkdocs build --quiet --strict

# An environment with the server's packages alone, in the versions that are tested.
sbom: .venv-tests
	mkdir -p var
	$(BIN)/uv pip freeze --quiet --exclude-editable --python $(BIN)/python >var/installed.txt
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python var/server
	$(BIN)/uv pip install --quiet --python var/server/bin/python --constraints var/installed.txt -r requirements.txt
	$(BIN)/cyclonedx-py environment var/server/bin/python --of JSON -o var/sbom.json

security: sbom
	$(BIN)/pip-audit --strict --path var/server/lib/python3.*/site-packages

# Both do nothing if the requirements have not changed.
.PHONY: .venv-server .venv-tests
.venv-server:
	$(PYTHON) deploy/bootstrap.py requirements.txt
.venv-tests:
	$(PYTHON) deploy/bootstrap.py requirements-dev.txt
