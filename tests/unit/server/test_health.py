from __future__ import annotations

import asyncio
import threading
import types

import orjson
import pytest
from django import db

from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.engine.local import engine
from fanfare.hub import hub as real_hub
from fanfare.runtime.supervisor import Supervisor
from fanfare.server import errors, health, probe, proxies, schema


class FakeEngine:
    def __init__(self):
        self.answer = interface.Health(True, "ok", {"workers": 2})

    def health(self):
        return self.answer


class FakeServer:
    def __init__(self):
        self.engine = FakeEngine()
        self.loader = types.SimpleNamespace(loaded=True, problem=None)
        self.mounts = types.SimpleNamespace(problem="")
        self.drain = types.SimpleNamespace(is_draining=False)
        self.probe = FakeProbe()
        self.schema = FakeSchema()
        self.problem = ""

    async def started(self):
        if self.problem:
            raise errors.NotStarted(self.problem)


class FakeSchema:
    def __init__(self):
        self.was_complete = False
        self.answer = ""

    async def problem(self):
        self.was_complete = self.was_complete or not self.answer
        return self.answer


class FakeProbe:
    def __init__(self):
        self.answer = ""

    async def problem(self):
        return self.answer


@pytest.fixture
def server():
    return FakeServer()


@pytest.fixture
def pages(server):
    return health.Health(server)


async def ask(pages, path, method="GET", client="127.0.0.1", headers=()):
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers)}
    await pages({**scope, "client": (client, 4711) if client else None}, None, send)
    return sent[0]["status"], orjson.loads(sent[1]["body"])


async def test_live_is_200_even_for_a_worker_that_cannot_work(pages, server):
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
    pages.schema.answer = "The database is not migrated."
    status, answer = await ask(pages, "/health/ready")
    assert status == 503
    assert answer["checks"]["database"] == {"ok": False, "reason": "The database is not migrated."}


async def test_a_database_that_goes_away_later_is_reported_and_changes_nothing(pages, server):
    await ask(pages, "/health/ready")
    pages.schema.answer = server.loader.problem = "The database cannot be used."
    status, answer = await ask(pages, "/health/ready")
    assert (status, answer["status"]) == (200, "ready")
    assert answer["checks"]["database"] == {"ok": False, "reason": "The database cannot be used."}


async def test_a_path_may_end_with_a_slash(pages):
    assert (await ask(pages, "/health/ready/"))[0] == 200
    assert (await ask(pages, "/health/live/", "HEAD"))[0] == 200


async def test_a_worker_whose_entries_do_not_come_back_is_not_ready(pages, server):
    """The engine's own opinion of itself is not enough."""
    server.probe.answer = "No entry that this worker wrote came back to it within 5 s."
    status, answer = await ask(pages, "/health/ready")
    assert status == 503
    assert answer["checks"]["engine"] == {"ok": False, "reason": server.probe.answer}


async def test_a_mounted_application_that_did_not_start_is_reported_and_changes_nothing(pages, server):
    server.mounts.problem = "FANFARE_ASGI_MOUNTS: /shop=shop:app did not start: no till"
    status, answer = await ask(pages, "/health/ready")
    assert status == 200
    assert answer["checks"]["mounts"]["reason"] == server.mounts.problem


STRANGER = {"client": "203.0.113.9"}
BEHIND_A_PROXY = {"headers": [(b"x-forwarded-for", b"203.0.113.9")]}


@pytest.mark.parametrize("request_", [STRANGER, BEHIND_A_PROXY, {"client": None}])
@pytest.mark.parametrize("failing", ["worker", "engine", "database", "applications", "mounts"])
async def test_a_stranger_reads_which_check_failed_and_no_path_or_host(pages, server, failing, request_):
    secret = "/srv/private at db.internal:5432"
    match failing:
        case "worker":
            server.problem = secret
        case "engine":
            server.engine.answer = interface.Health(False, secret)
        case "database":
            pages.schema.answer = secret
        case "applications":
            server.loader.problem = secret
        case "mounts":
            server.mounts.problem = secret
    _, answer = await ask(pages, "/health/ready", **request_)
    assert answer["checks"][failing] == {"ok": False, "reason": health.PUBLIC[failing]}
    assert "/srv" not in str(answer)
    assert "internal" not in str(answer)
    _, answer = await ask(pages, "/health/ready")
    assert answer["checks"][failing]["reason"] == secret


async def test_a_trusted_peer_reads_the_reasons(pages, server):
    pages.trusted = proxies.Trusted(["10.0.0.0/8", "unix"])
    server.loader.problem = "The database at db.internal is away."
    for client in ("10.1.2.3", None):
        _, answer = await ask(pages, "/health/ready", client=client)
        assert answer["checks"]["applications"]["reason"] == server.loader.problem


# -- the probe -------------------------------------------------------------------------------------------------------


class FakeHub:
    """A hub whose log gives entries back at once, late or never."""

    def __init__(self):
        self.engine = self
        self.handlers = {}
        self.written = 0
        self.gives_back = True
        self.error = None

    def on_message(self, mailbox, receive):
        self.handlers[mailbox] = receive

    async def append(self, publications):
        if self.error:
            raise self.error
        (entry,) = publications
        self.written += 1
        if self.gives_back:
            self.handlers[entry.channel](entry.body)
        return []


@pytest.fixture
def hub():
    return FakeHub()


@pytest.fixture
async def probing(hub, monkeypatch):
    monkeypatch.setattr(probe, "WAIT_S", 0.02)
    tasks = Supervisor()
    yield probe.Probe(hub, tasks)
    await tasks.stop()


async def test_probe_is_good_when_its_entry_comes_back(probing):
    assert await probing.problem() == ""


async def test_each_worker_reads_only_its_own_probes(tmp_path):
    tasks = Supervisor()
    hubs = [real_hub.Hub(engine.LocalEngine(tmp_path)) for _ in range(2)]
    probes = [probe.Probe(hub, tasks) for hub in hubs]
    for hub in hubs:
        await hub.start()
    assert [await one.problem() for one in probes] == ["", ""]
    assert [hub.engine.statistics()["entries"] for hub in hubs] == [1, 1]
    for hub in hubs:
        await hub.stop()
    await tasks.stop()


async def test_probe_writes_once_in_two_seconds_however_often_it_is_asked(probing, hub):
    assert [await probing.problem() for _ in range(50)] == [""] * 50
    assert hub.written == 1


async def test_probe_fails_when_the_entry_does_not_come_back(probing, hub):
    hub.gives_back = False
    assert (await probing.problem()).startswith("This worker has not read back an entry of its own")
    await asyncio.gather(*(probing.problem() for _ in range(20)))
    assert hub.written == 1, "one attempt at a time"


async def test_probe_fails_with_the_reason_of_the_engine(probing, hub):
    hub.error = engine_errors.EngineUnavailable("The disk is full.")
    assert await probing.problem() == "The disk is full."
    hub.error = None
    assert await probing.problem() == ""


async def test_probe_ignores_the_entries_of_earlier_probes(probing, hub):
    hub.gives_back = False
    asking = asyncio.ensure_future(probing.problem())
    await asyncio.sleep(0)
    (receive,) = hub.handlers.values()
    receive(b"of an earlier probe")
    assert await asking != ""


async def test_probe_turns_red_when_the_last_proof_is_too_old(probing, hub, monkeypatch):
    assert await probing.problem() == ""
    hub.gives_back = False
    monkeypatch.setattr(probe, "FRESH_S", 0.0)
    assert await probing.problem() == "", "one late entry is no failure"
    monkeypatch.setattr(probe, "VALID_S", 0.0)
    assert await probing.problem() != ""


# -- the database ----------------------------------------------------------------------------------------------------


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
