"""New versions of kept messages, through a real log and a real hub."""

from __future__ import annotations

import json
from typing import Any

import pytest
from asgiref.sync import sync_to_async

import fanfare
from fanfare import errors
from fanfare.applications import models
from fanfare.engine import interface
from fanfare.hub import connections
from fanfare.hub import hub as hubs
from fanfare.integration import history, payloads, revisions, rules, target
from tests.harness import waiting
from tests.unit.hub import doubles
from tests.unit.integration.test_streams import hub, rule  # noqa: F401  (fixtures)

pytestmark = pytest.mark.django_db(transaction=True)

CHANNEL = "private-chat-7"


class Page:
    def __init__(
        self,
        hub: hubs.Hub,  # noqa: F811
        after: interface.Position | None = None,
        channel: str = CHANNEL,
    ) -> None:
        self.writer = doubles.FakeWriter()
        connection = connections.Connection("7", f"{id(self)}.1", self.writer, Owner())
        hub.connect(connection)
        request = interface.RecoveryRequest(after=after)
        hub.subscribe(connection, channel, recovery=connections.Recovery(request))

    async def until(self, event: str) -> dict[str, Any]:
        async def look() -> bool:
            return event in [frame["event"] for frame in self.frames]

        await waiting.until_async(look, 10, event)
        return next(frame for frame in self.frames if frame["event"] == event)

    @property
    def frames(self) -> list[dict[str, Any]]:
        return [json.loads(body) for body in self.writer.bodies]


class Owner:
    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


async def test_updated_message_keeps_its_place_and_names_its_author(hub: hubs.Hub) -> None:  # noqa: F811
    page = Page(hub)
    for number in (1, 2, 3):
        await fanfare.apublish(CHANNEL, "said", {"number": number})
    second = (await history.aevents(CHANNEL))[1]
    assert await fanfare.aupdate_message(CHANNEL, second.id, {"number": "two"}) is True
    notice = json.loads((await page.until("fanfare:revised"))["data"])
    assert notice == {"id": second.id, "event": "said", "data": '{"number":"two"}', "by": None, "at": notice["at"]}
    events = await history.aevents(CHANNEL)
    assert [(event.offset, json.loads(event.data)["number"]) for event in events] == [(1, 1), (2, "two"), (3, 3)]
    assert events[1].revised == {"by": None, "at": notice["at"], "version": 2}
    assert await fanfare.aupdate_message(CHANNEL, second.id, {"number": 2}) is True
    assert (await history.aevents(CHANNEL))[1].revised["version"] == 3  # type: ignore[index]


async def test_deleted_message_is_in_no_history_and_no_recovery(hub: hubs.Hub) -> None:  # noqa: F811
    page = Page(hub)
    for number in (1, 2, 3):
        await fanfare.apublish(CHANNEL, "said", {"number": number})
    first, second, _ = await history.aevents(CHANNEL)
    assert await fanfare.adelete_message(CHANNEL, second.id) is True
    await page.until("fanfare:deleted")
    assert [event.offset for event in await history.aevents(CHANNEL)] == [1, 3]
    assert await fanfare.adelete_message(CHANNEL, second.id) is False
    back = Page(hub, interface.Position.parse(first.id))
    await back.until("fanfare:deleted")
    assert [frame["event"] for frame in back.frames] == ["said", "fanfare:deleted"]


async def test_rule_says_who_may_change_a_message(
    hub: hubs.Hub,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    django_user_model: Any,
) -> None:
    monkeypatch.setattr(revisions, "registered", rules.RuleSet())
    author, other = [await sync_to_async(django_user_model.objects.create)(username=name) for name in ("a", "b")]
    await fanfare.apublish(CHANNEL, "said", {"author": author.pk})
    [event] = await history.aevents(CHANNEL)
    with pytest.raises(errors.AccessRefused, match="No rule of may_revise"):
        await fanfare.adelete_message(CHANNEL, event.id, by=author)

    @fanfare.may_revise("private-chat-{room}")
    def may_edit(user: Any, room: str, event: history.Event) -> bool:
        return room == "7" and json.loads(event.data)["author"] == user.pk

    with pytest.raises(errors.AccessRefused, match="does not let"):
        await fanfare.aupdate_message(CHANNEL, event.id, "x", by=other)
    assert await fanfare.aupdate_message(CHANNEL, event.id, {"author": author.pk}, by=author) is True
    [event] = await history.aevents(CHANNEL)
    assert event.revised is not None
    assert event.revised["by"] == str(author.pk)


async def test_encrypted_message_is_sealed_again(hub: hubs.Hub, settings: Any) -> None:  # noqa: F811
    settings.FANFARE = {"ENCRYPTION_MASTER_KEY": "Y4RmdXnXxhFHvtE1fVkHlV3l3n8mZBQw0fGhpZ1lC2U="}
    channel = "private-encrypted-chat"
    application = await models.Application.objects.aget()
    await models.ChannelRule.objects.acreate(
        application=application, pattern="private-encrypted-*", history_size=10, history_seconds=60
    )
    target.forget()
    page = Page(hub, channel=channel)
    await fanfare.apublish(channel, "said", "one")
    [event] = await history.aevents(channel)
    await fanfare.aupdate_message(channel, event.id, "two")
    notice = await page.until("fanfare:revised")
    assert json.loads(payloads.decrypt(channel, notice["data"]))["data"] == "two"
    [event] = await history.aevents(channel)
    assert payloads.decrypt(channel, event.data) == "two"


async def test_id_of_no_message_is_refused() -> None:
    with pytest.raises(errors.InvalidName, match="is not the id of a message"):
        await fanfare.aupdate_message(CHANNEL, "7", "x")
