"""The Python code of the guides does what the text says, in a project that has an app `shop`."""

from __future__ import annotations

import ast
import contextlib
import http.client
import json
import re
import sys
import time
import types
import unittest
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from asgiref.sync import async_to_sync
from django import http as django_http
from django import urls
from django.contrib.auth.models import AnonymousUser, User
from django.db import connection, models
from django.db.models import signals as model_signals
from django.test import Client, utils

import fanfare
from fanfare import history, presence, signals, testing
from fanfare.applications import declarations, registry
from fanfare.applications import models as application_models
from fanfare.engine import current
from fanfare.engine.local import engine as local_engine
from fanfare.integration import appending, payloads, revisions, rule_cache, rules, target, users
from fanfare.jobs import declarations as jobs
from fanfare.protocol import capabilities
from tests.unit.docs import pages

pytestmark = pytest.mark.django_db(transaction=True)  # guides publish at a commit

run = pages.run

GUIDES = pages.ROOT / "docs/how-to"
KEY = bytes(range(32))
# Pages whose Python code other tests run, as the page says: in a project, or with a server.
ELSEWHERE = {
    "docs/tutorial/first-steps.md": "tests/browser/test_tutorial.py",
    "docs/how-to/existing-project.md": "tests/integration/test_existing_project.py",
    "docs/how-to/fastapi.md": "tests/integration/test_fastapi.py",
    "docs/how-to/own-consumers.md": "tests/integration/test_own_consumers.py",
    "docs/how-to/point-sdks.md": "tests/integration/test_sdk_snippets.py",
    "docs/how-to/webhooks.md": "tests/integration/test_sdk_matrix.py",
    "docs/how-to/migrate.md": "tests/unit/docs/test_snippets.py",
}


class Order(models.Model):
    customer = models.ForeignKey(User, models.CASCADE, related_name="orders")
    state = models.CharField(max_length=20, default="new")
    total = models.IntegerField(default=0)

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return f"order {self.pk}"

    def __realtime__(self) -> dict[str, Any]:
        return {"id": self.pk, "state": self.state}

    def ship(self) -> None:
        self.state = "shipped"
        self.save()


class Visit(models.Model):
    channel = models.CharField(max_length=200)
    user = models.CharField(max_length=200)

    class Meta:
        app_label = "shop"

    def __str__(self) -> str:
        return f"{self.user} in {self.channel}"


async def prices() -> AsyncIterator[dict[str, int]]:
    for price in (1, 2):
        yield {"price": price}


async def rates() -> dict[str, float]:
    return {"EUR": 1.0}


@contextlib.contextmanager
def tables(*made: type[models.Model]) -> Iterator[None]:
    with connection.schema_editor() as editor:
        for model in made:
            editor.create_model(model)
    yield
    with connection.schema_editor() as editor:
        for model in reversed(made):
            editor.delete_model(model)


@pytest.fixture(autouse=True)
def project(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The modules of `shop`, and rules, jobs and receivers of this test alone."""
    shop, exchange, found = (types.ModuleType(name) for name in ("shop", "shop.exchange", "shop.models"))
    vars(exchange).update(prices=prices, rates=rates)
    vars(found).update(Order=Order, Visit=Visit)
    vars(shop).update(exchange=exchange, models=found)
    for module in (shop, exchange, found):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(rules, "registered", rules.RuleSet())
    monkeypatch.setattr(revisions, "registered", rules.RuleSet())
    monkeypatch.setattr(users, "registered", users.UserDataSource())
    monkeypatch.setattr(jobs, "declared", jobs.Jobs())
    monkeypatch.setattr(appending._sampler, "wants", lambda: False)
    observed = (model_signals.post_save, model_signals.post_delete, signals.joined)
    for signal in observed:
        monkeypatch.setattr(signal, "receivers", list(signal.receivers))
        signal.sender_receivers_cache.clear()
    target.forget()
    rule_cache.cache.clear()
    yield
    target.forget()
    for signal in observed:
        signal.sender_receivers_cache.clear()


@pytest.fixture
def application() -> application_models.Application:
    made = application_models.Application.objects.create(name="shop", app_id="7", key="the-key", secret="the-secret")
    made.rules.create(pattern="*", history_size=100, history_seconds=60)
    return made


@pytest.fixture
def shop() -> Iterator[None]:
    with tables(Order, Visit):
        yield


@pytest.fixture
def ann() -> User:
    return User.objects.create(username="ann", first_name="Ann")


@pytest.fixture
def bob() -> User:
    return User.objects.create(username="bob")


@pytest.fixture
def log(tmp_path: Path, application: Any) -> Iterator[None]:
    """The log of a deployment, without a worker."""
    engine = local_engine.LocalEngine(tmp_path / "engine")
    with current.replaced(engine):
        yield
    async_to_sync(engine.close)()


def events(captured: testing.Events) -> list[tuple[str, str, Any]]:
    return [(one.channel, one.name, one.data) for one in captured]


def status(client: Client, channel: str, user: User | None = None) -> int:
    """Of the auth endpoint, for a visitor."""
    client.logout() if user is None else client.force_login(user)
    return client.post("/pusher/auth", {"socket_id": "1.2", "channel_name": channel}).status_code


def test_every_python_block_is_run_by_a_test() -> None:
    sources = "".join(
        (Path(__file__).parent / name).read_text("utf-8") for name in ("test_guides.py", "test_snippets.py")
    )
    marks = re.findall(r'run\(\s*"([\w/-]+\.md)",\s*containing=("[^\n]+?"|\'[^\n]+?\')[,)]', sources)
    missing = []
    for page in pages.all_pages():
        name = pages.name(page)
        for block in pages.blocks(page):
            if "import pusher" in block.text:
                continue  # it needs a server: `test_sdk_snippets.py`
            wanted = [ast.literal_eval(mark) for where, mark in marks if where == name]
            if block.language == "python" and name not in ELSEWHERE and not any(mark in block.text for mark in wanted):
                missing.append(f"{name}:{block.line}")
    assert missing == []


def test_production_example_of_the_readme_is_that_of_the_guide() -> None:
    """Of the other one see `tests/integration/test_sdk_snippets.py`."""
    [readme] = [one.text for one in pages.blocks(pages.ROOT / "README.md") if "ssl=True" in one.text]
    assert readme in (GUIDES / "point-sdks.md").read_text("utf-8")


def test_pages_of_the_table_are_run_by_the_named_tests() -> None:
    for page, test in ELSEWHERE.items():
        assert Path(page).name.removesuffix(".md") in (pages.ROOT / test).read_text("utf-8").replace("_", "-")


# -- authorize ---------------------------------------------------------------------------------------------------------


def test_rule_admits_the_customer_of_an_order_only(
    shop: None, application: Any, client: Client, ann: User, bob: User
) -> None:
    run("docs/how-to/authorize-channels.md", containing="def may_see_order")
    order = Order.objects.create(customer=ann)
    asked = [status(client, f"private-orders-{order.pk}", user) for user in (ann, bob, None)]
    assert asked == [200, 403, 403]
    assert status(client, "private-orders-x", ann) == 403


def test_presence_rule_admits_users_and_guests(application: Any, client: Client, ann: User, rf: Any) -> None:
    found = run("docs/how-to/authorize-channels.md", containing="def may_join")
    assert found["may_join"](ann, "7", None) == {"name": "Ann"}
    assert status(client, "presence-room-7", ann) == 200
    request = rf.post("/pusher/auth")
    request.user, request.session = AnonymousUser(), types.SimpleNamespace(session_key="abc")
    answer = rules.authorize(request, "presence-room-7", registry.Limits())
    assert json.loads(answer.channel_data or "") == {"user_id": "guest-abc", "user_info": {"name": "Guest"}}


def test_answer_of_a_rule_with_cache_seconds_is_cached(
    application: Any, client: Client, ann: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, int]] = []

    class Teams:
        def filter(self, **wanted: int) -> Teams:
            asked.append(wanted)
            return self

        def exists(self) -> bool:
            return True

    monkeypatch.setattr(User, "teams", Teams(), raising=False)
    run("docs/how-to/authorize-channels.md", containing="def may_see_team", channel=fanfare.channel)
    assert [status(client, "private-team-7", ann)] == [200]
    cookies = client.post("/pusher/auth", {"socket_id": "1.3", "channel_name": "private-team-7"})
    assert cookies.status_code == 200
    assert asked == [{"pk": 7}]


def test_function_of_the_guide_gives_the_signed_in_user(
    application: Any, client: Client, ann: User, bob: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(User, "is_suspended", property(lambda self: self.username == "bob"), raising=False)
    monkeypatch.setattr(User, "friends", property(lambda self: User.objects.exclude(pk=self.pk)), raising=False)
    run("docs/how-to/sign-in-users.md", containing="def realtime_user")
    client.force_login(ann)
    answer = client.post("/pusher/user-auth", {"socket_id": "1.2"}).json()
    assert json.loads(answer["user_data"]) == {
        "id": str(ann.pk),
        "user_info": {"name": "Ann"},
        "watchlist": [str(bob.pk)],
    }
    client.force_login(bob)
    assert client.post("/pusher/user-auth", {"socket_id": "1.2"}).status_code == 403


def test_token_for_event_streams_is_for_the_users_channel(application: Any, ann: User) -> None:
    token = run("docs/how-to/sse.md", containing="def token_for")["token_for"](ann)
    claims = capabilities.verify(token, (target.application(None).secret,), time.time())
    assert claims.covers(f"private-orders-{ann.pk}")


# -- publish -----------------------------------------------------------------------------------------------------------


def test_events_of_the_guide_to_publish_are_sent(shop: None, ann: User) -> None:
    page = "docs/how-to/publish.md"
    order = Order(customer=ann, total=5)
    with testing.captured_events() as captured:
        run("docs/how-to/publish.md", containing="def place(order)")["place"](order)
        run("docs/how-to/publish.md", containing="def paid(order)")["paid"](order)
        remind = run("docs/how-to/publish.md", containing="def remind(invoice)")["remind"]
        for _ in range(2):
            remind(types.SimpleNamespace(pk=3, due_on="2026-12-01"))
    assert events(captured)[:1] == [("orders", "created", {"id": order.pk, "total": 5})]
    assert [(one.name, one.data) for one in captured.to(ann)] == [("paid", {"order": order.pk})]
    assert [one.idempotency_key for one in captured.on("invoices")] == ["due-3-2026-12-01"], page


def test_position_of_a_published_event_is_logged(log: None, caplog: pytest.LogCaptureFixture) -> None:
    import logging

    caplog.set_level(logging.INFO)
    names = {"publish": fanfare.publish, "order": types.SimpleNamespace(pk=7), "logger": logging.getLogger("shop")}
    run("docs/how-to/publish.md", containing="published.entry", **names)
    assert re.fullmatch(r"Order 7 was published as \d+:\d+", caplog.messages[-1])


@utils.isolate_apps("demo")
def test_model_with_realtime_is_published() -> None:
    made = run("docs/how-to/publish.md", containing="def __realtime__", __name__="demo.models")["Order"]
    with testing.captured_events() as captured:
        fanfare.publish("orders", "created", [made(pk=7, total=5)])
    assert events(captured) == [("orders", "created", [{"id": 7, "total": 5}])]


def test_event_of_the_readme_is_sent_at_the_commit(shop: None, application: Any, client: Client, ann: User) -> None:
    found = run("README.md", containing="def ship(order)")
    order = Order.objects.create(customer=ann)
    with testing.captured_events() as captured:
        found["ship"](order)
    assert events(captured) == [(f"private-orders-{order.pk}", "shipped", {"id": order.pk})]
    assert status(client, f"private-orders-{order.pk}", ann) == 200


def test_three_lines_of_the_readme_make_an_application() -> None:
    names = {"INSTALLED_APPS": ["shop"], "urlpatterns": [], "path": urls.path, "include": urls.include}
    found = run("README.md", containing="INSTALLED_APPS", **names)
    assert found["INSTALLED_APPS"] == ["shop", "fanfare"]
    assert callable(found["application"])
    assert len(found["urlpatterns"]) == 1


def test_event_goes_through_the_outbox(shop: None, ann: User) -> None:
    order = Order(customer=ann)
    with testing.captured_events() as captured:
        run("docs/how-to/outbox.md", containing="outbox=True")["place"](order)
    assert events(captured) == [("orders", "created", {"id": order.pk, "state": "new"})]


def test_encrypted_events_of_the_guide_can_be_decrypted(
    log: None, application: Any, client: Client, ann: User, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.FANFARE = {"ENCRYPTION_MASTER_KEY": KEY}
    patients = types.SimpleNamespace(filter=lambda pk: types.SimpleNamespace(exists=lambda: pk == 7))
    monkeypatch.setattr(User, "patients", patients, raising=False)
    found = run("docs/how-to/encrypted-channels.md", containing="def treats")
    channel = "private-encrypted-patient-7"
    assert [status(client, channel, user) for user in (ann, None)] == [200, 403]
    found["examined"](types.SimpleNamespace(patient_id=7, text="fine"))
    [event] = history.events(channel)
    assert "fine" not in event.data
    texts = run("docs/how-to/encrypted-channels.md", containing="def texts")["texts"]
    assert texts(channel) == ['{"text":"fine"}']
    assert payloads.decrypt(channel, event.data) == '{"text":"fine"}'


def test_view_set_and_task_publish(shop: None, ann: User) -> None:
    view = run("docs/how-to/drf-and-celery.md", containing="perform_create")["OrderViewSet"]()
    order = Order.objects.create(customer=ann)
    with testing.captured_events() as captured:
        view.perform_create(types.SimpleNamespace(save=lambda: order, data={"id": order.pk}))
        run("docs/how-to/drf-and-celery.md", containing="def export")["export"].apply(args=[7])
    assert events(captured)[0] == (f"private-orders-{ann.pk}", "created", {"id": order.pk})
    assert [one.data["percent"] for one in captured.on("private-export-7")] == list(range(0, 101, 10))


async def test_jobs_of_the_guide_publish() -> None:
    found = run("docs/how-to/background-work.md", containing="@periodic", __name__="shop.background")
    assert [job.seconds for job in jobs.declared.all()] == [60, None]
    with testing.captured_events() as captured:
        await found["refresh_rates"]()
        await found["follow_the_exchange"]()
    assert events(captured) == [
        ("rates", "refreshed", {"EUR": 1.0}),
        ("prices", "tick", {"price": 1}),
        ("prices", "tick", {"price": 2}),
    ]


# -- broadcast ---------------------------------------------------------------------------------------------------------


def test_changes_of_a_model_are_broadcast(shop: None, ann: User) -> None:
    run("docs/how-to/broadcast-models.md", containing="broadcast(\n    Order")
    ship = run("docs/how-to/broadcast-models.md", containing="broadcast.updated")["ship"]
    with testing.captured_events() as captured:
        order = Order.objects.create(customer=ann, total=5)
        ship(Order.objects.all())
    channel = f"private-orders-{ann.pk}"
    assert events(captured) == [
        (channel, "order.created", {"id": order.pk, "state": "new", "total": 5}),
        (channel, "order.updated", {"id": order.pk, "state": "shipped", "total": 5}),
    ]


@utils.isolate_apps("demo")
def test_decorated_model_is_broadcast() -> None:
    card = run("docs/how-to/broadcast-models.md", containing="@broadcast(", __name__="demo.models")["Card"]
    with tables(card), testing.captured_events() as captured:
        made = card.objects.create(text="one")
        made.save()
        pk = made.pk
        made.delete()
    assert events(captured) == [
        ("cards", "card.created", {"id": pk, "text": "one"}),
        ("cards", "card.deleted", {"id": pk, "text": "one"}),
    ]


def test_receiver_of_a_signal_stores_a_visit(shop: None) -> None:
    found = run("docs/how-to/signals.md", containing="def note_visit")
    signals.joined.send(None, app="7", channel="presence-room", user_id="ann", info=None)
    assert [str(one) for one in Visit.objects.all()] == ["ann in presence-room"], found


# -- read --------------------------------------------------------------------------------------------------------------


def test_queries_of_the_guide_are_answered(log: None, ann: User, capsys: pytest.CaptureFixture[str]) -> None:
    run("docs/how-to/presence.md", containing="presence.is_online(user)", user=ann)
    for number in (1, 2):
        fanfare.publish("orders", "created", {"id": number})
    run("docs/how-to/presence.md", containing="history.events")
    assert capsys.readouterr().out == '1 created {"id":1}\n2 created {"id":2}\n'


def test_member_is_updated_and_an_agent_shows_its_steps(log: None, ann: User) -> None:
    request = types.SimpleNamespace(user=ann)
    with presence.member("presence-room", ann, {"name": "Ann"}):
        run("docs/how-to/presence.md", containing="presence.update_member", presence=presence, request=request)
        [member] = presence.members("presence-room")
    assert (member.id, member.info) == (str(ann.pk), {"name": "Ann", "status": "away"})
    seen = []

    def step() -> None:
        seen.append([(one.id, one.info["status"]) for one in presence.members("presence-room-7")])

    plan = [types.SimpleNamespace(title=title, run=step) for title in ("reads", "writes")]
    run("docs/how-to/presence.md", containing="UserData(", plan=lambda: plan)
    assert seen == [[("assistant", "reads")], [("assistant", "writes")]]
    assert presence.members("presence-room-7") == []


def test_messages_are_changed_and_deleted_by_their_author(log: None, ann: User, bob: User) -> None:
    run("docs/how-to/history.md", containing="def may_edit")
    fanfare.publish("private-chat-7", "said", {"author": ann.pk, "text": "good"})
    with pytest.raises(fanfare.AccessRefused):
        run("docs/how-to/history.md", containing="delete_message", request=types.SimpleNamespace(user=bob))
    assert len(history.events("private-chat-7")) == 1
    run("docs/how-to/history.md", containing="delete_message", request=types.SimpleNamespace(user=ann))
    assert history.events("private-chat-7") == []


def test_snapshot_has_the_rows_and_the_position(
    log: None, shop: None, ann: User, rf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django.shortcuts.render", lambda request, template, context: context)
    order = Order.objects.create(customer=ann)
    fanfare.publish("orders", "created", order)
    context = run("docs/how-to/snapshot.md", containing="def orders")["orders"](rf.get("/orders/"))
    assert context["rows"] == [order]
    assert context["positions"]["orders"]["offset"] == 1


async def test_stream_of_a_coroutine_is_kept_whole(log: None) -> None:
    async def model(question: str) -> AsyncIterator[str]:
        for token in (question, " ", "Yes."):
            yield token

    answer = run("docs/how-to/stream-answers.md", containing="async def answer", model=model)["answer"]
    await answer(7, "Is it?")
    [event] = await history.aevents("private-chat-7")
    assert json.loads(event.data)["text"] == "Is it? Yes."


def test_task_that_runs_again_continues_its_stream(log: None, caplog: pytest.LogCaptureFixture) -> None:
    failures = [ConnectionError("the model went away")]

    def model(question: str) -> Iterator[str]:
        yield from (question, " ")
        if failures:
            raise failures.pop()
        yield "Yes."

    answer = run("docs/how-to/stream-answers.md", containing="shared_task", model=model)["answer"]
    answer.apply(args=[7, "Is it?", 3])
    [event] = history.events("private-chat-7")
    assert json.loads(event.data)["text"] == "Is it? Yes."


# -- test --------------------------------------------------------------------------------------------------------------


def place(request: django_http.HttpRequest) -> django_http.HttpResponse:
    fanfare.publish("orders", "created", {"id": int(request.POST["product"])})
    return django_http.HttpResponse()


class Urls:
    urlpatterns = (urls.path("orders/", place),)


def test_tests_of_the_guide_pass(settings: Any, tmp_path: Path) -> None:
    statuses = []

    def visit(self: Any, url: str) -> None:
        parts = urlsplit(url)
        server = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        server.request("GET", "/health/live")
        statuses.append(server.getresponse().status)
        server.close()

    page = run("docs/how-to/test-your-app.md", containing="class PageTests")["PageTests"]
    result = unittest.TestResult()
    unittest.TestSuite([type("Visiting", (page,), {"visit": visit})("test_page_connects")]).run(result)
    settings.ROOT_URLCONF = Urls
    orders = run("docs/how-to/test-your-app.md", containing="class OrderTests")["OrderTests"]
    unittest.TestSuite([orders("test_order_is_published")]).run(result)
    assert result.wasSuccessful(), [*result.errors, *result.failures]
    assert statuses == [200]
    found = run("docs/how-to/test-your-app.md", containing='"TEST"', DATABASES={"default": {}}, BASE_DIR=tmp_path)
    assert found["DATABASES"]["default"]["TEST"]["NAME"].parent == tmp_path
    assert run("docs/how-to/test-your-app.md", containing="pytest_plugins")["pytest_plugins"]


@pytest.mark.parametrize("page", ["declare-applications.md", "history.md"])
def test_declared_applications_of_the_guides_are_valid(page: str) -> None:
    text = next(one.text for one in pages.blocks(GUIDES / page) if '"secret"' in one.text)
    assert [one.application.app_id for one in declarations.parse(text)] == ["1001"]
