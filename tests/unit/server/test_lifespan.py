from __future__ import annotations

import asyncio
import logging
import sys
import types

import pytest
import uvicorn
from django.core.exceptions import ImproperlyConfigured
from uvicorn.lifespan.on import LifespanOn

from fanfare import conf
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import traces
from fanfare.integration import rule_cache
from fanfare.protocol import termination
from fanfare.server import errors, lifespan, mounts


class FakeEngine:
    is_moved = False

    def health(self):
        return interface.Health(True, "ok", {"workers": 4})

    def post(self, publication, failed):
        """The request for the figures of workers that are gone."""


class FakePart:
    """A hub or a loader: counts its starts and stops, and fails if it should."""

    def __init__(self, log, name):
        self.log, self.name = log, name
        self.activity, self.recorder = None, traces.Recorder(None)  # of a hub
        self.loaded, self.problem = True, None
        self.failures = []
        self.gap_handlers = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.engine = FakeEngine()

    async def start(self):
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.log.append(f"{self.name} started")

    async def stop(self):
        self.log.append(f"{self.name} stopped")

    def on_control(self, command, handler):
        """A hub takes handlers; here no command ever comes."""

    def on_gap(self, keep):
        """The handlers, for a test that calls them."""
        self.gap_handlers.append(keep)

    def on_message(self, mailbox, receive):
        """Nor does a message come."""

    def on_session_taken(self, taken):
        """Nor is a session taken."""

    def count(self, name, n=1):
        """No counter is read."""


class FakeSchema:
    was_complete = False

    async def problem(self):
        self.was_complete = True
        return ""


@pytest.fixture
def log():
    return []


@pytest.fixture
def server(log, monkeypatch):
    monkeypatch.setattr(lifespan.current, "current", FakeEngine)
    monkeypatch.setattr(lifespan.hub, "Hub", lambda engine, **_: FakePart(log, "hub"))
    monkeypatch.setattr(lifespan.loading, "Loader", lambda registry, hub: FakePart(log, "loader"))
    monkeypatch.setattr(lifespan.runner, "Runner", lambda hub, built_in: FakePart(log, "background"))
    monkeypatch.setattr(lifespan.schema, "Schema", FakeSchema)
    monkeypatch.setattr(lifespan, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(traces, "here", None)  # restored after the test
    return lifespan.Server()


class Protocol:
    """A server's side of the ASGI lifespan."""

    def __init__(self, server):
        self.inbox, self.outbox = asyncio.Queue(), asyncio.Queue()
        self.task = asyncio.create_task(server.lifespan({"type": "lifespan"}, self.inbox.get, self.outbox.put))

    async def say(self, kind):
        await self.inbox.put({"type": f"lifespan.{kind}"})
        return await asyncio.wait_for(self.outbox.get(), 20)


async def test_the_parts_start_before_the_first_connection_and_stop_in_reverse(server, log):
    protocol = Protocol(server)
    assert (await protocol.say("startup"))["type"] == "lifespan.startup.complete"
    assert server.running
    assert server.schema.was_complete, "a database that is lost now does not make the worker unready"
    assert (await protocol.say("shutdown"))["type"] == "lifespan.shutdown.complete"
    await protocol.task
    assert not server.running
    assert log == [
        *("hub started", "loader started", "background started"),
        *("background stopped", "loader stopped", "hub stopped"),
    ]


async def test_mounted_applications_start_after_the_workers_parts_and_end_before_them(server, log):
    server.mounts = FakePart(log, "mounts")
    protocol = Protocol(server)
    await protocol.say("startup")
    assert log[-1] == "mounts started"
    del log[:]
    await protocol.say("shutdown")
    assert log[0] == "mounts stopped"


async def test_a_mounted_application_that_does_not_start_does_not_stop_the_worker(server, log):
    """With gunicorn it would end the master, and with it the workers that are well."""

    async def failing(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "The till is empty."})

    server.mounts = mounts.Mounts({"/shop": failing})
    answer = await Protocol(server).say("startup")
    assert answer["type"] == "lifespan.startup.complete"
    assert server.mounts.problem == "FANFARE_ASGI_MOUNTS: /shop=function did not start: The till is empty."
    await server.stop()


async def test_live_tails_go_on_after_a_move_to_another_store(server, log, monkeypatch):
    """The hub ends their tasks when it goes over."""

    async def go_over(_engine):
        log.append("hub went over")

    server.hub.go_over = go_over
    monkeypatch.setattr(server.tails, "resume", lambda: log.append("tails go on"))
    await server._go_over()
    assert log.index("hub went over") < log.index("tails go on")


async def test_the_topology_is_one_line_of_the_log(server, caplog):
    with caplog.at_level(logging.INFO, "myproject"):
        await server.started()
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Fanfare: ")]
    assert len(lines) == 1
    assert ", workers 1, engine local, data folder " in lines[0]
    await server.stop()


@pytest.fixture
def at_signal(monkeypatch):
    """What the worker asked for at a signal, where the module of Daphne is loaded."""
    asked = []
    monkeypatch.setitem(sys.modules, lifespan.DAPHNE, types.ModuleType(lifespan.DAPHNE))
    monkeypatch.setattr(lifespan.draining, "at_signal", lambda begin, finish: asked.append((begin, finish)))
    return asked


async def test_worker_of_daphne_ends_at_the_signal_and_no_request_starts_it_again(server, log, at_signal):
    server.mounts = FakePart(log, "mounts")
    await server.started()
    del log[:]
    ((_, finish),) = at_signal
    await finish()
    assert (log[0], log[-1]) == ("mounts stopped", "hub stopped")
    with pytest.raises(errors.NotStarted, match=r"The worker is stopping\."):
        await server.started()


async def test_mounted_application_that_does_not_stop_leaves_time_for_the_worker_of_daphne(
    server, log, at_signal, monkeypatch
):
    class Hanging(FakePart):
        async def stop(self):
            await asyncio.Event().wait()

    monkeypatch.setattr(lifespan, "MOUNTS_STOP_SECONDS", 0.01)
    server.mounts = Hanging(log, "mounts")
    await server.started()
    ((_, finish),) = at_signal
    await asyncio.wait_for(finish(), 30)
    assert log[-1] == "hub stopped"


async def test_stopping_worker_of_daphne_refuses_clients_that_return(server, at_signal):
    await server.started()
    ((begin, _),) = at_signal
    server.hub.by_socket = {}
    begin()
    assert server.drain.is_draining
    assert server.drain.refuses_new
    await server.stop()


async def test_server_with_a_lifespan_ends_the_worker_itself_where_daphne_is_an_installed_app(server, at_signal):
    """`daphne` in INSTALLED_APPS loads the module under any server."""
    protocol = Protocol(server)
    await protocol.say("startup")
    assert [finish for _, finish in at_signal] == [None]
    await protocol.say("shutdown")


async def test_many_connections_at_once_start_the_worker_once(server, log):
    server.hub.gate.clear()
    waiting = [asyncio.create_task(server.started()) for _ in range(50)]
    await asyncio.sleep(0)
    server.hub.gate.set()
    await asyncio.gather(*waiting)
    assert log == ["hub started", "loader started", "background started"]


async def test_the_first_connection_may_hang_up_without_taking_the_start_with_it(server, log):
    server.hub.gate.clear()
    first, second = (asyncio.create_task(server.started()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    server.hub.gate.set()
    await second
    assert first.cancelled()
    assert server.running


async def test_a_failed_start_is_tried_again_on_the_next_use(server, log):
    server.hub.failures = [engine_errors.EngineUnavailable("The disk is full.")]
    with pytest.raises(errors.NotStarted, match=r"The disk is full\."):
        await server.started()
    await server.started()
    assert server.running


async def test_a_failure_is_not_repeated_for_every_connection_of_a_crowd(server, monkeypatch):
    monkeypatch.setattr(lifespan, "RETRY_SECONDS", 60.0)
    server.hub.failures = [engine_errors.EngineUnavailable("The disk is full.")]
    for _ in range(3):
        with pytest.raises(errors.NotStarted, match=r"The disk is full\."):
            await server.started()
    assert not server.running


async def test_parts_that_started_before_a_failure_are_stopped(server, log):
    server.loader.failures = [engine_errors.EngineUnavailable("The disk is full.")]
    with pytest.raises(errors.NotStarted):
        await server.started()
    assert log == ["hub started", "hub stopped"]


@pytest.mark.parametrize(
    "error",
    [engine_errors.EngineMisconfigured("The folder is on NFS."), ImproperlyConfigured("FANFARE_APPS is wrong.")],
)
async def test_wrong_settings_stop_the_server_with_a_sentence(server, error, log):
    server.loader.failures = [error]
    answer = await Protocol(server).say("startup")
    assert answer["type"] == "lifespan.startup.failed"
    assert str(error) in answer["message"]
    assert log[-1] == "hub stopped"


async def test_any_other_failure_of_the_start_is_retried_inside_the_worker(server, caplog):
    server.loader.failures = [RuntimeError("a bug")]
    protocol = Protocol(server)
    assert (await protocol.say("startup"))["type"] == "lifespan.startup.complete"
    async with asyncio.timeout(20):
        while not server.running:
            await asyncio.sleep(0)
    assert "RuntimeError: a bug" in caplog.text
    assert "Traceback" in caplog.text
    await protocol.say("shutdown")


async def test_a_start_that_fails_again_and_again_is_logged_once_a_minute(server, caplog):
    server.hub.failures = [engine_errors.EngineUnavailable("The disk is full.")] * 50
    for _ in range(50):
        with pytest.raises(errors.NotStarted):
            await server.started()
    assert [record.getMessage() for record in caplog.records] == ["The worker cannot start: The disk is full."]
    await server.stop()


async def test_an_engine_that_is_away_at_the_start_is_waited_for(server):
    server.hub.failures = [engine_errors.EngineUnavailable("The disk is full.")] * 3
    protocol = Protocol(server)
    assert (await protocol.say("startup"))["type"] == "lifespan.startup.complete"
    async with asyncio.timeout(20):
        while not server.running:
            await asyncio.sleep(0)
    assert server.problem == ""
    await protocol.say("shutdown")


async def test_a_worker_that_never_started_stops_without_a_word(server, log):
    server.hub.failures = [engine_errors.EngineUnavailable("The disk is full.")] * 100_000
    protocol = Protocol(server)
    await protocol.say("startup")
    assert (await protocol.say("shutdown"))["type"] == "lifespan.shutdown.complete"
    assert log == []


async def test_under_uvicorn_the_plain_command_is_put_right_before_the_first_connection(server, caplog):
    config = uvicorn.Config(server.lifespan, log_config=None, interface="asgi3")
    below = LifespanOn(config)
    with caplog.at_level(logging.INFO, "myproject"):
        await below.startup()
    assert config.ws_per_message_deflate is False
    assert config.ws_max_size == conf.settings.MAX_FRAME_BYTES
    assert config.timeout_graceful_shutdown == conf.settings.GRACEFUL_TIMEOUT
    assert "127.0.0.1" not in config.loaded_app.trusted_hosts
    assert "websockets fanfare" in caplog.text
    await below.shutdown()
    assert not server.running


async def test_a_wrong_configuration_makes_uvicorn_give_up(server):
    server.hub.failures = [engine_errors.EngineMisconfigured("The folder is on NFS.")]
    below = LifespanOn(uvicorn.Config(server.lifespan, log_config=None, interface="asgi3"))
    await below.startup()
    assert below.should_exit


async def test_a_worker_that_knows_no_application_yet_refuses_instead_of_denying_them(server):
    """4001 sends a client away for good; a database that is late must not."""
    server.loader.loaded, server.loader.problem = False, "The database is away."
    with pytest.raises(errors.NotStarted, match="The database is away"):
        await server.started()
    assert not server.running
    server.loader.loaded = True
    await server.started()
    assert server.running


def test_termination_and_gap_empty_the_cache_of_rules(server):
    cache = rule_cache.cache
    cache.keep("key", "answer", 60.0, cache.generation)
    for on_terminated in termination._listeners[server.hub]:
        on_terminated("7", "42", None)
    assert cache.find("key") is None
    cache.keep("key", "answer", 60.0, cache.generation)
    assert cache.clear in server.hub.gap_handlers
    cache.clear()
    assert cache.find("key") is None


@pytest.mark.parametrize(("workers", "rate"), [(1, 500), (2, 500), (4, 250)])
async def test_workers_without_a_core_each_accept_fewer_websockets(server, log, monkeypatch, workers, rate):
    monkeypatch.setattr(lifespan.machine_limits, "cores", lambda: 2)
    monkeypatch.setattr(lifespan.parent_process, "watch", lambda parent: asyncio.sleep(0))
    monkeypatch.setattr(lifespan.draining, "stop_at_hang_up", lambda: None)
    config = uvicorn.Config(server.lifespan, workers=workers, interface="asgi3", log_config=None)
    config.load()
    server.hub = FakePart(log, "hub")
    server._adjust(LifespanOn(config).receive)
    assert server.gate.per_second == rate
