# make run      everything, from nothing to a page: http://127.0.0.1:8000/
# make setup    the part of it before serving
# make test     every test; ARGS="-k presence" for some of them, REQUIRE_ALL=1 where a skipped one is a failure
# make lint     style, types, arrows, migrations
# make format   put the style right

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

.PHONY: run setup test lint format
.SILENT:

run: .venv-server
	exec $(BIN)/python manage.py develop

setup: .venv-server
	$(BIN)/python manage.py setup

test: .venv-tests
	$(BIN)/python -m pytest $(ARGS)

lint: .venv-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python manage.py makemigrations --check --dry-run
	$(BIN)/python manage.py check

format: .venv-tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Both do nothing when what they install has not changed.
.PHONY: .venv-server .venv-tests
.venv-server:
	$(PYTHON) -m myproject.bootstrap requirements.txt
.venv-tests:
	$(PYTHON) -m myproject.bootstrap requirements-dev.txt
