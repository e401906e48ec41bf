"""Remote mode: the process of the tests is a project that publishes to a running deployment over HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from channels.testing import HttpCommunicator, WebsocketCommunicator
from django.db import transaction
from django.test import Client

import fanfare.asgi
from fanfare import (
    DataTooLarge,
    EngineError,
    EngineUnavailable,
    InvalidName,
    Member,
    NoApplication,
    StreamCancelled,
    UserData,
    acancel_stream,
    apublish,
    channel,
    history,
    presence,
    publish,
    stream,
)
from fanfare.engine import current
from fanfare.integration import outbox, relay, rules, target
from fanfare.integration.remote import client as remote_client
from fanfare.integration.remote import engine as remote_engine
from fanfare.integration.remote import queries as remote_queries
from tests.harness import calls, deployments, servers, sockets

pytestmark = pytest.mark.django_db(transaction=True)

Name = Callable[[str], str]
Configure = Callable[..., None]


@pytest.fixture(scope="session")
def application(uvicorn: servers.Server) -> deployments.Application:
    """An application whose channels `kept-*` have a history."""
    return uvicorn.deployment.create_application("remote", "--history", "kept-*=1000,600", "--client-events")


@pytest.fixture
def configure(
    uvicorn: servers.Server, application: deployments.Application, settings: Any, request: pytest.FixtureRequest
) -> Configure:
    """`configure(URL="http://…")`: set all four settings of remote mode, some of them otherwise."""

    def configure(**changes: object) -> None:
        values = {
            "REMOTE_URL": uvicorn.url("").rstrip("/"),
            "REMOTE_APP_ID": application.id,
            "REMOTE_KEY": application.key,
            "REMOTE_SECRET": application.secret,
        }
        settings.FANFARE = {**values, **changes}
        engine: Any = remote_engine.engine()
        replaced = current.replaced(engine)
        replaced.__enter__()
        request.addfinalizer(lambda: replaced.__exit__(None, None, None))
        request.addfinalizer(engine.close)

    return configure


@pytest.fixture(autouse=True)
def remote_mode(configure: Configure) -> Iterator[None]:
    target.forget()
    configure()
    yield
    target.forget()


@pytest.fixture
async def subscriber(uvicorn: servers.Server, application: deployments.Application) -> AsyncIterator[sockets.Socket]:
    async with sockets.connect(uvicorn, application) as socket:
        yield socket


async def in_thread(function: Callable[[], Any]) -> Any:
    return await sync_to_async(function)()


# -- publishing --------------------------------------------------------------------------------------------------------


async def test_events_reach_subscribers(subscriber: sockets.Socket, name: Name) -> None:
    orders = name("orders")
    await subscriber.subscribe(orders)
    await apublish(orders, "created", {"id": 1})
    assert (await subscriber.expect("created", orders)).decoded == {"id": 1}
    await in_thread(lambda: publish(orders, "created", "as it is"))
    assert (await subscriber.expect("created", orders)).data == "as it is"
    await apublish(orders, "excluded", 1, exclude=subscriber.socket_id)
    await apublish(orders, "last", 1)
    await subscriber.expect("last", orders)


async def test_events_of_a_transaction_are_sent_in_order_after_the_commit(
    subscriber: sockets.Socket, name: Name
) -> None:
    orders = name("orders")
    await subscriber.subscribe(orders)

    def work() -> None:
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            publish(orders, "undone", 1)
            _ = 1 / 0
        with transaction.atomic():
            for number in range(25):  # three requests
                publish(orders, "created", number)

    await in_thread(work)
    assert [(await subscriber.expect("created", orders)).decoded for _ in range(25)] == list(range(25))


async def test_repeated_idempotency_key_is_dropped(subscriber: sockets.Socket, name: Name) -> None:
    orders = name("orders")
    await subscriber.subscribe(orders)
    for number in (1, 2):
        await apublish(orders, "created", number, idempotency_key="order 1")
    await apublish(orders, "last", 3)
    assert (await subscriber.expect("created", orders)).decoded == 1
    await subscriber.expect("last", orders)


# -- streams -----------------------------------------------------------------------------------------------------------


async def test_many_streams_of_one_process_end_with_their_texts(
    uvicorn: servers.Server, application: deployments.Application, name: Name
) -> None:
    async def produce(chat: str) -> None:
        async with stream(chat, "answer", id="a") as answer:
            for token in range(20):
                await answer.append(f"<{token}>")

    chats = [name(f"chat-{number}") for number in range(20)]
    await asyncio.gather(*map(produce, chats))
    with calls.Caller(uvicorn, application) as caller:
        for chat in chats:
            found = caller.signed("GET", f"channels/{chat}/streams/a").body
            assert (found["state"], found["text"]) == ("done", "".join(f"<{token}>" for token in range(20)))


async def test_stream_grows_at_the_remote_deployment(subscriber: sockets.Socket, name: Name) -> None:
    chat = name("kept-chat")
    await subscriber.subscribe(chat)
    with pytest.raises(ConnectionError):
        async with stream(chat, "answer", id="a", meta={"by": "x"}) as answer:
            await answer.append("one ", seq=1)
            raise ConnectionError
    async with stream(chat, "answer", id="a", meta={"by": "x"}) as answer:
        assert (answer.is_resumed, answer.text) == (True, "one ")
        await answer.append("one ", seq=1)
        await answer.append("two", seq=2)
    text, state = "", "open"
    while state != "done":
        event = (await subscriber.expect("answer", chat)).decoded
        text, state = text[: event["at"]] + event["text"], event["state"]
    assert text == "one two"
    with pytest.raises(StreamCancelled):
        async with stream(chat, "answer", id="b") as answer:
            await answer.append("half")
            assert await acancel_stream(chat, "b") is True
    assert await acancel_stream(chat, "b") is False


# -- queries -----------------------------------------------------------------------------------------------------------


async def test_subscribers_members_and_users_are_those_of_the_remote_deployment(
    uvicorn: servers.Server, application: deployments.Application, subscriber: sockets.Socket, name: Name
) -> None:
    orders, room, user = name("orders"), name("presence-room"), name("user")
    await subscriber.subscribe(orders)
    assert await presence.asubscriber_count(orders) == 1
    assert await presence.asubscriber_count(name("empty")) == 0
    await subscriber.subscribe(room, member={"user_id": "ann", "user_info": {"name": "Änn"}})
    assert await presence.amembers(room) == [Member("ann", {"name": "Änn"})]
    assert not await presence.ais_online(UserData(user))


async def test_history_is_read_page_by_page(name: Name) -> None:
    kept = name("kept-orders")
    assert await history.aevents(kept) == []
    for number in range(1, 6):
        await apublish(kept, "created", number)
    newest = await history.aevents(kept, limit=2)
    assert newest == [history.Event(4, "created", "4"), history.Event(5, "created", "5")]
    before = await in_thread(lambda: history.events(kept, limit=10, before=4))
    assert [event.offset for event in before] == [1, 2, 3]
    assert await history.aevents(name("unkept")) == []


async def test_long_history_takes_several_requests(name: Name, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = name("kept-orders")
    await in_thread(lambda: _publish_in_one_transaction(kept, 12))
    monkeypatch.setattr(remote_queries, "HISTORY_PAGE", 5)
    assert [event.offset for event in await history.aevents(kept, limit=11)] == list(range(2, 13))


def _publish_in_one_transaction(channel: str, events: int) -> None:
    with transaction.atomic():
        for number in range(events):
            publish(channel, "created", number)


# -- auth endpoints ----------------------------------------------------------------------------------------------------


async def test_page_subscribes_and_signs_in_with_signatures_of_this_project(
    subscriber: sockets.Socket, name: Name, monkeypatch: pytest.MonkeyPatch, admin_user: Any
) -> None:
    monkeypatch.setattr(rules, "registered", rules.RuleSet())
    orders = name("private-orders")

    @channel(orders)
    def rule(user: Any) -> bool:
        return bool(user.is_authenticated)

    def ask(path: str, **form: str) -> dict[str, str]:
        browser = Client()
        browser.force_login(admin_user)
        response = browser.post(path, {"socket_id": subscriber.socket_id, **form})
        assert response.status_code == 200, response.content
        return dict(json.loads(response.content))

    answer = await in_thread(lambda: ask("/pusher/auth", channel_name=orders))
    await subscriber.send({"event": "pusher:subscribe", "data": {"channel": orders, **answer}})
    await subscriber.expect("pusher_internal:subscription_succeeded", orders)
    await subscriber.send({"event": "pusher:signin", "data": await in_thread(lambda: ask("/pusher/user-auth"))})
    await subscriber.expect("pusher:signin_success")
    assert await presence.ais_online(admin_user)
    own = f"#server-to-user-{admin_user.pk}"
    await subscriber.send({"event": "pusher:subscribe", "data": {"channel": own}})  # as pusher-js does
    await subscriber.expect("pusher_internal:subscription_succeeded", own)
    await apublish(None, "paid", 1, to_user=admin_user)
    await subscriber.expect("paid", own)
    await presence.adisconnect_user(admin_user)
    assert await subscriber.closed() == 4009


# -- errors ------------------------------------------------------------------------------------------------------------


def test_refusals_of_the_remote_deployment_raise_the_same_exceptions(
    uvicorn: servers.Server, configure: Configure, name: Name
) -> None:
    with pytest.raises(DataTooLarge) as caught:
        publish(name("orders"), "created", "x" * 102_401)
    assert (caught.value.size, caught.value.limit) == (102_401, 102_400)
    with pytest.raises(InvalidName, match="201 characters"):
        publish("c" * 201, "created", 1)
    with pytest.raises(NoApplication, match=r"'9'; in remote mode the only application is .*FANFARE_REMOTE_APP_ID"):
        publish("orders", "created", 1, app="9")
    configure(REMOTE_SECRET="wrong")
    with pytest.raises(
        NoApplication, match=r"does not accept FANFARE_REMOTE_KEY and FANFARE_REMOTE_SECRET.*invalid_signature"
    ):
        publish("orders", "created", 1)
    configure(REMOTE_KEY="wrong")
    with pytest.raises(NoApplication, match="invalid_key"):
        publish("orders", "created", 1)
    configure(REMOTE_APP_ID="999999")
    with pytest.raises(NoApplication, match="application 999999"):
        presence.subscriber_count("orders")
    configure(REMOTE_URL=uvicorn.url("/elsewhere"))
    with pytest.raises(EngineError, match=r"answers 40\d without the JSON of Fanfare"):
        publish("orders", "created", 1)


def test_refusal_after_a_commit_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with transaction.atomic():
        publish("orders", "created", "x" * 102_401)
    assert "Not published after the commit: event 'created' on channel 'orders'" in caplog.text
    assert "102401 bytes" in caplog.text


def test_unreachable_deployment_raises_after_the_timeout_and_then_at_once(configure: Configure) -> None:
    configure(REMOTE_URL=f"http://{servers.HOST}:{servers.free_port()}", APPEND_TIMEOUT=1)
    began = time.monotonic()
    with pytest.raises(EngineUnavailable, match=r"FANFARE_REMOTE_URL\) did not accept the request: ConnectionRefused"):
        publish("orders", "created", 1)
    waited = time.monotonic() - began
    assert 0.2 < waited < 1.5
    with pytest.raises(EngineUnavailable):
        presence.subscriber_count("orders")
    assert time.monotonic() - began - waited < 0.2


# -- the project's own server ------------------------------------------------------------------------------------------


async def test_asgi_application_serves_the_project_and_opens_no_log(
    configure: Configure, tmp_path: Path, settings: Any
) -> None:
    folder = tmp_path / "data"
    await in_thread(lambda: configure(DATA_DIR=str(folder)))
    application = await in_thread(fanfare.asgi.application)
    lifespan = ApplicationCommunicator(application, {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}})
    await lifespan.send_input({"type": "lifespan.startup"})
    assert await lifespan.receive_output(10) == {"type": "lifespan.startup.complete"}

    page = HttpCommunicator(application, "GET", "/admin/login/", headers=[(b"host", b"testserver")])
    assert (await page.get_response(timeout=30))["status"] == 200

    client = WebsocketCommunicator(application, "/app/some-key?protocol=7")
    assert (await client.connect())[0]
    assert json.loads(await client.receive_from())["data"]["code"] == 4005
    assert (await client.receive_output())["code"] == 4005

    await lifespan.send_input({"type": "lifespan.shutdown"})
    assert await lifespan.receive_output(10) == {"type": "lifespan.shutdown.complete"}
    assert not folder.exists()
    assert isinstance(current.current(), remote_engine.RemoteEngine)


# -- network failures --------------------------------------------------------------------------------------------------


class Gateway(ThreadingHTTPServer):
    """A reverse proxy that fails in the ways of `failures`, one request after the other, and then works."""

    daemon_threads = True

    def __init__(self, port: int, failures: list[str]) -> None:
        super().__init__((servers.HOST, 0), Handler)
        self.upstream, self.failures, self.requests = port, failures, 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gateway

    def do_POST(self) -> None:
        self.server.requests += 1
        body = self.rfile.read(int(self.headers["Content-Length"]))
        failure = self.server.failures.pop(0) if self.server.failures else ""
        if failure == "502":
            self._answer(502, b"<html>Bad gateway</html>")
            return
        upstream = http.client.HTTPConnection(servers.HOST, self.server.upstream, timeout=10)
        upstream.request("POST", self.path, body, {"Content-Type": "application/json"})
        response = upstream.getresponse()
        text = response.read()
        upstream.close()
        if failure == "lost answer":
            self.close_connection = True
            self.connection.close()
            return
        if failure == "slow answer":
            time.sleep(2)
        self._answer(response.status, text)

    def _answer(self, status: int, text: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Nothing: the test counts."""


@pytest.fixture
def gateway(uvicorn: servers.Server, configure: Configure) -> Iterator[Callable[[list[str]], Gateway]]:
    begun: list[Gateway] = []

    def begin(failures: list[str]) -> Gateway:
        gateway = Gateway(uvicorn.port, failures)
        threading.Thread(target=gateway.serve_forever, daemon=True).start()
        begun.append(gateway)
        configure(REMOTE_URL=f"http://{servers.HOST}:{gateway.server_address[1]}")
        return gateway

    yield begin
    for one in begun:
        one.shutdown()
        one.server_close()


async def test_request_is_repeated_with_the_same_key_until_it_is_answered(
    gateway: Callable[[list[str]], Gateway], subscriber: sockets.Socket, name: Name
) -> None:
    orders = name("orders")
    await subscriber.subscribe(orders)
    running = gateway(["502", "lost answer", "lost answer"])
    await apublish(orders, "created", 1)
    await apublish(orders, "last", 2)
    assert (await subscriber.expect("created", orders)).decoded == 1
    await subscriber.expect("last", orders)  # and no second "created" before it
    assert running.requests == 5


def test_kept_connection_that_the_server_closed_is_replaced(uvicorn: servers.Server, name: Name) -> None:
    engine = current.current()
    publish(name("orders"), "created", 1)
    [(_, kept)] = engine._deployment._connections._idle  # type: ignore[attr-defined]
    kept.sock.close()
    publish(name("orders"), "created", 1)


def test_threads_share_connections(name: Name) -> None:
    orders = name("orders")
    with transaction.atomic():
        pass
    threads = [
        threading.Thread(target=publish, args=(orders, "created", n), kwargs={"on_commit": False}) for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    idle = current.current()._deployment._connections._idle  # type: ignore[attr-defined]
    assert 1 <= len(idle) <= remote_client.IDLE_CONNECTIONS


# -- the outbox --------------------------------------------------------------------------------------------------------


async def test_outbox_keeps_what_the_remote_deployment_did_not_take(
    configure: Configure, subscriber: sockets.Socket, name: Name
) -> None:
    orders = name("orders")
    await subscriber.subscribe(orders)
    configure(REMOTE_URL=f"http://{servers.HOST}:{servers.free_port()}", APPEND_TIMEOUT=0.2)

    def work() -> None:
        with transaction.atomic():
            publish(orders, "created", 1, outbox=True)

    await in_thread(work)
    assert await in_thread(lambda: outbox.top("default")) > 0
    configure()
    relaying = relay.Outbox(current.current(), "default")
    for _ in range(2):
        await relaying.look()
    relaying.close()
    assert (await subscriber.expect("created", orders)).decoded == 1
    assert await in_thread(lambda: outbox.top("default")) == 0


# -- a project of its own ----------------------------------------------------------------------------------------------

SETTINGS = """
SECRET_KEY = "for this test"
INSTALLED_APPS = ["fanfare", "django.contrib.auth", "django.contrib.contenttypes"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
ALLOWED_HOSTS = ["shop.example.com"]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
STATIC_URL = "/static/"
ROOT_URLCONF = "urls"
"""
URLS = """
from django.urls import include, path

urlpatterns = [path("", include("fanfare.urls"))]
"""
CODE = """
import django
django.setup()
from django.core.management import call_command
from django.template import Context, Template
from django.test import RequestFactory
from fanfare import presence, publish
call_command("check")
publish("orders", "created", {"id": 1})
assert presence.subscriber_count("orders") == 0
request = RequestFactory().get("/", headers={"Host": "shop.example.com"}, secure=True)
print(Template("{% load fanfare %}{% fanfare_client %}").render(Context({"request": request})))
"""


def test_project_needs_no_table_no_log_and_no_data_folder(
    uvicorn: servers.Server, application: deployments.Application, tmp_path: Path
) -> None:
    (tmp_path / "settings.py").write_text(SETTINGS)
    (tmp_path / "urls.py").write_text(URLS)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FANFARE_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path,
        env={
            **inherited,
            "DJANGO_SETTINGS_MODULE": "settings",
            "FANFARE_REMOTE_URL": uvicorn.url(""),
            "FANFARE_REMOTE_APP_ID": application.id,
            "FANFARE_REMOTE_KEY": application.key,
            "FANFARE_REMOTE_SECRET": application.secret,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["settings.py", "urls.py"]
    assert f'"wsPort": {uvicorn.port}' in done.stdout
    assert application.key in done.stdout
    assert application.secret not in done.stdout


# -- members without a connection --------------------------------------------------------------------------------------


async def test_member_without_a_connection_is_an_ordinary_member_to_a_client(
    subscriber: sockets.Socket, name: Name
) -> None:
    room = name("presence-room")
    await subscriber.subscribe(room, member={"user_id": "ann", "user_info": {"name": "Ann"}})
    async with presence.member(room, UserData("bot"), {"name": "Bot"}) as bot:
        added = await subscriber.expect("pusher_internal:member_added", room)
        assert added.decoded == {"user_id": "bot", "user_info": {"name": "Bot"}}
        await bot.aupdate({"name": "Bot", "status": "away"})
        updated = await subscriber.expect("fanfare:member_updated", room)
        assert updated.decoded == {"user_id": "bot", "user_info": {"name": "Bot", "status": "away"}}
        assert [member.id for member in await presence.amembers(room)] == ["ann", "bot"]
    removed = await subscriber.expect("pusher_internal:member_removed", room)
    assert removed.decoded == {"user_id": "bot"}


async def test_snapshot_of_a_channel_that_kept_nothing_is_a_position_for_its_page(
    uvicorn: servers.Server, application: deployments.Application, name: Name
) -> None:
    orders = name("kept-orders")
    async with fanfare.snapshot(orders) as positions:
        assert positions[orders]["offset"] == 0
    await apublish(orders, "created", {"id": 1})
    url = uvicorn.socket_url(application.key, "protocol=7&client=tests&version=1.0.0&rt=1")
    async with sockets.connect(uvicorn, application, url=url) as page:
        resume = {"channel": orders, "auth": "", "resume": dict(positions[orders])}
        await page.send({"event": "pusher:subscribe", "data": resume})
        answer = await page.expect("pusher_internal:subscription_succeeded", orders)
        assert answer.decoded["stream"]["recovered"] is True
        assert (await page.expect("created", orders)).decoded == {"id": 1}
