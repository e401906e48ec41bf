from __future__ import annotations

import threading
import types

import orjson
import pytest
from django import db

from fanfare.engine import interface
from fanfare.server import errors, health, schema


class FakeEngine:
    def __init__(self):
        self.answer = interface.Health(True, "ok", {"workers": 2})

    def health(self):
        return self.answer


class FakeServer:
    def __init__(self):
        self.engine = FakeEngine()
        self.loader = types.SimpleNamespace(loaded=True, problem=None)
        self.problem = ""

    async def started(self):
        if self.problem:
            raise errors.NotStarted(self.problem)


@pytest.fixture
def server():
    return FakeServer()


@pytest.fixture
def pages(server):
    pages = health.Health(server)

    async def problem():
        pages.schema.was_complete = pages.schema.was_complete or not pages.database_problem
        return pages.database_problem

    pages.database_problem = ""
    pages.schema = types.SimpleNamespace(was_complete=False, problem=problem)
    return pages


async def ask(pages, path, method="GET"):
    sent = []

    async def send(message):
        sent.append(message)

    await pages({"type": "http", "method": method, "path": path}, None, send)
    return sent[0]["status"], orjson.loads(sent[1]["body"])


async def test_a_worker_lives_even_where_it_cannot_work(pages, server):
    server.problem = "The log is on fire."
    assert await ask(pages, "/health/live") == (200, {"status": "alive"})


async def test_a_worker_with_everything_in_place_is_ready(pages):
    status, answer = await ask(pages, "/health/ready")
    assert (status, answer["status"]) == (200, "ready")
    assert all(check["ok"] for check in answer["checks"].values())


async def test_a_worker_that_cannot_start_is_not_ready_and_says_why(pages, server):
    server.problem = "The log is on fire."
    status, answer = await ask(pages, "/health/ready")
    assert (status, answer["status"]) == (503, "not ready")
    assert answer["checks"] == {"worker": {"ok": False, "reason": "The log is on fire."}}


async def test_an_engine_that_acknowledges_nothing_makes_the_worker_not_ready(pages, server):
    server.engine.answer = interface.Health(False, "The disk is full.")
    status, answer = await ask(pages, "/health/ready")
    assert status == 503
    assert answer["checks"]["engine"]["reason"] == "The disk is full."


async def test_applications_that_were_never_loaded_make_the_worker_not_ready(pages, server):
    server.loader.loaded, server.loader.problem = False, "The applications are not loaded yet."
    status, answer = await ask(pages, "/health/ready")
    assert status == 503
    assert answer["checks"]["applications"]["reason"] == "The applications are not loaded yet."


async def test_a_database_that_was_never_migrated_makes_the_worker_not_ready(pages):
    pages.database_problem = "The database is not migrated."
    status, answer = await ask(pages, "/health/ready")
    assert status == 503
    assert answer["checks"]["database"] == {"ok": False, "reason": "The database is not migrated."}


async def test_a_database_that_goes_away_later_is_reported_and_changes_nothing(pages, server):
    await ask(pages, "/health/ready")
    pages.database_problem = server.loader.problem = "The database cannot be used."
    status, answer = await ask(pages, "/health/ready")
    assert (status, answer["status"]) == (200, "ready")
    assert answer["checks"]["database"] == {"ok": False, "reason": "The database cannot be used."}


async def test_other_paths_and_methods_are_refused(pages):
    assert (await ask(pages, "/health/"))[0] == 404
    assert (await ask(pages, "/health/ready", "POST"))[0] == 405
    assert (await ask(pages, "/health/ready/"))[0] == 200
    assert (await ask(pages, "/health/live", "HEAD"))[0] == 200


@pytest.mark.django_db(transaction=True)
async def test_the_schema_is_complete_in_a_migrated_database():
    found = schema.Schema()
    assert await found.problem() == ""
    assert found.was_complete


@pytest.mark.django_db(transaction=True)
async def test_the_database_is_asked_once_in_a_while_only(monkeypatch):
    found = schema.Schema()
    await found.problem()
    monkeypatch.setattr(found, "_answer", lambda: "asked again")
    assert await found.problem() == ""
    monkeypatch.setattr(schema, "REMEMBERED_SECONDS", 0.0)
    assert await found.problem() == "asked again"


async def test_a_database_that_hangs_does_not_hang_the_page_and_is_asked_once(monkeypatch):
    asked, answer = [], threading.Event()

    def is_migrated():
        asked.append(1)
        return answer.wait(10)

    monkeypatch.setattr(schema.database, "is_migrated", is_migrated)
    monkeypatch.setattr(schema, "PATIENCE_SECONDS", 0.01)
    found = schema.Schema()
    assert [await found.problem() for _ in range(3)] == ["The database does not answer."] * 3
    answer.set()
    monkeypatch.setattr(schema, "PATIENCE_SECONDS", 10)
    assert await found.problem() == ""
    assert asked == [1]


async def test_a_database_without_tables_asks_for_migrate(monkeypatch):
    monkeypatch.setattr(schema.database, "is_migrated", lambda: False)
    found = schema.Schema()
    assert await found.problem() == "The database is not migrated: run `python manage.py migrate`."
    assert not found.was_complete


async def test_a_database_that_does_not_answer_is_a_sentence(monkeypatch):
    def is_migrated():
        raise db.OperationalError("connection refused\nand more")

    monkeypatch.setattr(schema.database, "is_migrated", is_migrated)
    assert await schema.Schema().problem() == "The database cannot be used: connection refused."
