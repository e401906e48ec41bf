"""Presence and history, asked as a shell or a task would: the workers are other engines on the same log."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import AnonymousUser, User
from django.core.management import call_command
from django.db import transaction

from fanfare import Member, errors, history, presence
from fanfare.applications import models
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.engine.local import engine as local_engine
from fanfare.hub import event_frames
from fanfare.protocol import termination
from tests.unit.engine import workers

pytestmark = pytest.mark.django_db(transaction=True)

KEPT = interface.Retention(100, 60)


@pytest.fixture(autouse=True)
def default(application: models.Application) -> models.Application:
    return application


async def join(worker: workers.Worker, channel: str, user_id: str, socket_id: str, info: str = "null") -> None:
    ready = asyncio.get_running_loop().create_future()
    attachment = interface.SubscribeRequest("7", channel, socket_id, member=interface.Member(user_id, info))
    worker.engine.attach(attachment, ready.set_result)
    assert isinstance(await ready, interface.SubscribeResult)


# -- who is there -----------------------------------------------------------------------------------------------------


async def test_user_is_online_while_signed_in(worker: workers.Worker) -> None:
    await join(worker, interface.USERS, "42", "1.1")
    assert [await presence.ais_online(user) for user in (User(pk=42), 42, "42", 43)] == [True, True, True, False]
    assert await sync_to_async(presence.is_online)(42)
    worker.engine.leave("7", interface.USERS, "1.1")
    await worker.until(lambda: worker.entries[-1].kind == interface.Kind.MEMBER_REMOVED, "the departure")
    assert not await presence.ais_online(42)


async def test_member_of_a_channel_is_not_online(worker: workers.Worker) -> None:
    await join(worker, "presence-room", "42", "1.1")
    assert not await presence.ais_online(42)


async def test_members_of_all_workers_are_returned_with_their_info(worker: workers.Worker) -> None:
    await join(worker, "presence-room", "ann", "1.1", '{"name":"Änn"}')
    await join(worker, "presence-room", "bob", "1.2")
    expected = [Member("ann", {"name": "Änn"}), Member("bob")]
    assert await presence.amembers("presence-room") == expected
    assert await sync_to_async(presence.members)("presence-room") == expected
    assert await presence.amembers("presence-empty") == []
    assert await presence.amembers("presence-room", app=await models.Application.objects.acreate(name="other")) == []


async def test_subscribers_of_all_workers_are_counted(worker: workers.Worker) -> None:
    worker.engine.set_subscribers("7", "orders", 3)
    await worker.attach("unrelated")
    assert await presence.asubscriber_count("orders") == 3
    assert await sync_to_async(presence.subscriber_count)("orders") == 3
    assert await presence.asubscriber_count("nobody") == 0


def test_deployment_without_a_worker_is_empty(here: local_engine.LocalEngine) -> None:
    assert not presence.is_online(42)
    assert presence.members("presence-room") == []
    assert presence.subscriber_count("orders") == 0
    assert history.events("orders") == []


# -- ending connections -----------------------------------------------------------------------------------------------


async def test_disconnect_user_sends_a_command_to_every_worker(worker: workers.Worker) -> None:
    await presence.adisconnect_user(42)
    await sync_to_async(presence.disconnect_user)(User(pk=43), reconnect=True)

    def sent() -> list[interface.Entry]:
        return [entry for entry in worker.entries if entry.kind == interface.Kind.CONTROL]

    await worker.until(lambda: len(sent()) == 2, "both commands")
    assert [(entry.app, entry.channel) for entry in sent()] == [("7", termination.COMMAND)] * 2
    first, second = [json.loads(entry.body) for entry in sent()]
    assert first.pop("at") == pytest.approx(time.time(), abs=60)
    assert first == {"user_id": "42", "code": 4009}
    assert second == {"user_id": "43", "code": 4200}


async def test_command_disconnects_users_that_django_does_not_know(
    worker: workers.Worker, capsys: pytest.CaptureFixture[str]
) -> None:
    await join(worker, interface.USERS, "guest-7", "1.1")
    for user_id in ("guest-7", "guest-8", "42"):
        await sync_to_async(call_command)("fanfare", "disconnect", user_id)

    def named() -> list[str]:
        sent = [one for one in worker.entries if one.kind == interface.Kind.CONTROL]
        return [json.loads(one.body)["user_id"] for one in sent if one.channel == termination.COMMAND]

    await worker.until(lambda: named() == ["guest-7", "guest-8", "42"], "the commands")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "The connections of user guest-7 are being closed."
    assert lines[1].startswith("No WebSocket is signed in as guest-8.")


def test_disconnect_user_waits_for_the_commit(log: Any) -> None:
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        presence.disconnect_user(41)
        _ = 1 / 0
    with transaction.atomic():
        presence.disconnect_user(42)
        assert commands(log) == []
    assert commands(log) == ["42"]


def test_command_that_fails_after_the_commit_is_logged(log: Any, caplog: pytest.LogCaptureFixture) -> None:
    log.is_down = True
    with transaction.atomic():
        presence.disconnect_user(42)
    assert "command 'user.terminate' of application 7" in caplog.text


def commands(log: Any) -> list[str]:
    kind = interface.Kind.CONTROL
    found = [one for one in log.publications if one.kind == kind and one.channel == termination.COMMAND]
    return [json.loads(one.body)["user_id"] for one in found]


# -- the past ---------------------------------------------------------------------------------------------------------


async def test_history_is_read_page_by_page(worker: workers.Worker) -> None:
    bodies = [event_frames.event("tick", "kept", str(n)) for n in range(1, 6)]
    bodies.append(event_frames.event("client-said", "kept", {"text": "hi"}, "ann"))
    senders = [(interface.Kind.EVENT, None)] * 5 + [(interface.Kind.CLIENT_EVENT, "ann")]
    await worker.engine.append(
        [
            interface.Publication("7", "kept", body, kind=kind, retention=KEPT, user_id=sender)
            for body, (kind, sender) in zip(bodies, senders, strict=True)
        ]
    )
    newest = await history.aevents("kept", limit=2)
    assert newest == [history.Event(5, "tick", "5"), history.Event(6, "client-said", '{"text":"hi"}', "ann")]
    before = await sync_to_async(history.events)("kept", limit=3, before=newest[0].offset)
    assert [event.offset for event in before] == [2, 3, 4]


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_invalid_arguments_are_refused(here: local_engine.LocalEngine) -> None:
    for question in (lambda: presence.subscriber_count("a b"), lambda: presence.members("orders")):
        with pytest.raises(errors.InvalidName):
            question()
    with pytest.raises(errors.InvalidUser):
        presence.is_online(AnonymousUser())
    with pytest.raises(errors.InvalidUser, match=r"'admin' is not a primary key of auth\.User"):
        presence.is_online("admin")
    with pytest.raises(errors.NoApplication):
        presence.is_online(42, app=9)
    for limit in (0, history.MOST + 1):
        with pytest.raises(errors.InvalidLimit):
            history.events("orders", limit=limit)


async def test_call_on_an_event_loop_names_the_async_twin() -> None:
    for question, name in (
        (lambda: presence.is_online(1), "presence.ais_online"),
        (lambda: presence.members("presence-a"), "presence.amembers"),
        (lambda: presence.subscriber_count("a"), "presence.asubscriber_count"),
        (lambda: presence.disconnect_user(1), "presence.adisconnect_user"),
        (lambda: history.events("a"), "history.aevents"),
    ):
        with pytest.raises(errors.CalledOnEventLoop, match=f"await {re.escape(name)}"):
            question()


def test_unreadable_log_raises_engine_unavailable(here: local_engine.LocalEngine) -> None:
    here.paths.prepare()
    here.paths.log.write_bytes(b"no database" * 100)
    with pytest.raises(engine_errors.EngineUnavailable):
        presence.members("presence-room")
