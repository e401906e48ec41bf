from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Group, Permission, User
from django.contrib.contenttypes.models import ContentType
from django.core import serializers
from django.db import transaction

from fanfare.applications import models
from fanfare.engine import errors as engine_errors
from fanfare.integration import application as applications
from fanfare.integration import broadcasts, errors, publishing
from tests.unit.integration import recording

pytestmark = pytest.mark.django_db(transaction=True)  # commits and rollbacks are the subject here


@pytest.fixture(autouse=True)
def default(application: models.Application) -> models.Application:
    return application


def said(log: recording.Recording) -> list[tuple[str, str, Any]]:
    return [(event.channel, event.name, json.loads(event.data)) for event in log.events]


# -- What Django tells -------------------------------------------------------------------------------------------------


def test_what_happens_to_an_object_is_told_to_its_channels(
    log: recording.Recording, broadcast: broadcasts.Broadcast
) -> None:
    broadcast(Group, channels=lambda group: ["groups", f"private-group-{group.pk}"], fields=["id", "name"])
    group = Group.objects.create(name="cooks")
    own = f"private-group-{group.pk}"
    group.name = "chefs"
    group.save()
    pk = group.pk
    group.delete()
    assert said(log) == [
        ("groups", "group.created", {"id": pk, "name": "cooks"}),
        (own, "group.created", {"id": pk, "name": "cooks"}),
        ("groups", "group.updated", {"id": pk, "name": "chefs"}),
        (own, "group.updated", {"id": pk, "name": "chefs"}),
        ("groups", "group.deleted", {"id": pk, "name": "chefs"}),
        (own, "group.deleted", {"id": pk, "name": "chefs"}),
    ]
    assert log.writes >= 3


def test_it_leaves_with_the_commit_and_carries_what_was_saved(
    log: recording.Recording, broadcast: broadcasts.Broadcast
) -> None:
    broadcast(Group, channels=["groups"], fields=["name"])
    with transaction.atomic():
        group = Group.objects.create(name="saved")
        group.name = "changed, not saved"
        assert log.events == []
    assert said(log) == [("groups", "group.created", {"name": "saved"})]


def test_a_rollback_tells_nothing(log: recording.Recording, broadcast: broadcasts.Broadcast) -> None:
    broadcast(Group, channels=["groups"], fields=["name"])
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Group.objects.create(name="undone")
        _ = 1 / 0
    assert log.events == []


def test_only_the_chosen_changes_are_told_under_the_chosen_name(
    log: recording.Recording, broadcast: broadcasts.Broadcast
) -> None:
    broadcast(Group, channels=["groups"], fields=["name"], events=["deleted"], name="team")
    Group.objects.create(name="cooks").save()
    Group.objects.all().delete()
    assert said(log) == [("groups", "team.deleted", {"name": "cooks"})]


def test_deletions_of_a_queryset_are_told_one_by_one(log: recording.Recording, broadcast: broadcasts.Broadcast) -> None:
    broadcast(Group, channels=["groups"], fields=["name"], events=["deleted"])
    for name in ("a", "b"):
        Group.objects.create(name=name)
    Group.objects.all().delete()
    assert sorted(data["name"] for _, _, data in said(log)) == ["a", "b"]


def test_a_function_may_answer_that_nobody_is_told(log: recording.Recording, broadcast: broadcasts.Broadcast) -> None:
    broadcast(Group, channels=lambda group: [], fields=["name"])
    Group.objects.create(name="secret")
    assert log.events == []


def test_loading_a_fixture_tells_nothing(log: recording.Recording, broadcast: broadcasts.Broadcast) -> None:
    broadcast(Group, channels=["groups"], fields=["name"])
    for loaded in serializers.deserialize("json", '[{"model": "auth.group", "pk": 1, "fields": {"name": "a"}}]'):
        loaded.save()
    assert log.events == []


async def test_the_async_api_of_models_broadcasts_too(
    log: recording.Recording, broadcast: broadcasts.Broadcast
) -> None:
    broadcast(Group, channels=["groups"], fields=["name"])
    group = await Group.objects.acreate(name="cooks")
    await group.adelete()
    assert log.names == ["group.created", "group.deleted"]


# -- What subscribers get ----------------------------------------------------------------------------------------------


def test_a_relation_is_the_key_behind_it_and_a_method_is_called(
    log: recording.Recording, broadcast: broadcasts.Broadcast
) -> None:
    broadcast(Permission, channels=["p"], fields=["pk", "content_type", "content_type_id", "__str__"])
    kind = ContentType.objects.get_for_model(Group)
    permission = Permission.objects.create(name="May cook", codename="cook", content_type=kind)
    [(_, _, data)] = said(log)
    assert data == {
        "pk": permission.pk,
        "content_type": kind.pk,
        "content_type_id": kind.pk,
        "__str__": str(permission),
    }


def test_a_class_may_say_it_itself_and_decorate_itself(
    log: recording.Recording, broadcast: broadcasts.Broadcast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Group, "__realtime__", lambda group: {"called": group.name}, raising=False)
    assert broadcast(channels=["groups"])(Group) is Group
    Group.objects.create(name="cooks")
    assert said(log) == [("groups", "group.created", {"called": "cooks"})]


@pytest.mark.parametrize(
    ("fields", "update_fields", "told"),
    [
        (["username"], ["last_login"], False),
        (["username"], [], False),
        (["username", "last_login"], ["last_login"], True),
        (["is_authenticated"], ["last_login"], True),
        (["username"], None, True),
    ],
)
def test_a_save_of_other_fields_tells_nothing(
    log: recording.Recording, broadcast: broadcasts.Broadcast, fields: list[str], update_fields: Any, told: bool
) -> None:
    broadcast(User, channels=["users"], fields=fields, events=["updated"])
    User.objects.create_user("ann").save(update_fields=update_fields)
    assert bool(log.events) is told


# -- What Django does not tell -----------------------------------------------------------------------------------------


def test_a_bulk_operation_tells_nothing_until_it_is_told(
    log: recording.Recording, broadcast: broadcasts.Broadcast
) -> None:
    broadcast(Group, channels=["groups"], fields=["name"])
    Group.objects.bulk_create([Group(name=f"team-{n}") for n in range(broadcasts.CHUNK + 1)])
    assert log.events == []
    before = log.writes
    broadcast.updated(Group.objects.order_by("pk"))
    assert [data["name"] for _, _, data in said(log)] == [f"team-{n}" for n in range(broadcasts.CHUNK + 1)]
    assert log.writes - before == 2
    with transaction.atomic():
        broadcast.deleted(Group.objects.all()[:1])
        Group.objects.all()._raw_delete("default")
        assert log.names[-1] == "group.updated"
    assert log.names[-1] == "group.deleted"


async def test_it_is_told_from_a_coroutine(log: recording.Recording, broadcast: broadcasts.Broadcast) -> None:
    broadcast(Group, channels=["groups"], fields=["name"])
    await Group.objects.abulk_create([Group(name="cooks")])
    await broadcast.acreated(Group.objects.all())
    assert log.names == ["group.created"]
    groups = await sync_to_async(list)(Group.objects.all())
    with pytest.raises(errors.CalledOnEventLoop, match=r"broadcast\.aupdated"):
        broadcast.updated(groups)


def test_only_what_is_registered_can_be_told(broadcast: broadcasts.Broadcast) -> None:
    with pytest.raises(errors.InvalidBroadcast, match="Group is not broadcast"):
        broadcast.updated([Group(name="cooks")])


# -- What goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_transaction", [True, False])
def test_a_log_that_is_away_does_not_fail_the_save(
    log: recording.Recording, broadcast: broadcasts.Broadcast, caplog: pytest.LogCaptureFixture, in_transaction: bool
) -> None:
    broadcast(Group, channels=["groups"], fields=["name"])
    before = publishing.statistics()["failed_after_commit"]
    log.is_down = True
    if in_transaction:
        with transaction.atomic():
            Group.objects.create(name="cooks")
    else:
        Group.objects.create(name="cooks")
    assert Group.objects.count() == 1
    assert publishing.statistics()["failed_after_commit"] == before + 1
    assert "group.created" in caplog.text
    with pytest.raises(engine_errors.EngineUnavailable):
        broadcast.updated(Group.objects.all())


def test_a_project_without_an_application_saves_all_the_same(
    broadcast: broadcasts.Broadcast, application: models.Application, caplog: pytest.LogCaptureFixture
) -> None:
    broadcast(Group, channels=["groups"], fields=["name"])
    application.delete()
    applications.forget()
    with caplog.at_level(logging.ERROR, logger="fanfare.integration"):
        Group.objects.create(name="cooks")
    assert Group.objects.count() == 1
    assert "no enabled application" in caplog.text


@pytest.mark.parametrize("channels", [["a b"], lambda group: "groups", lambda group: [1]])
def test_a_mistake_of_the_declaration_is_raised_by_the_save(
    log: recording.Recording, broadcast: broadcasts.Broadcast, channels: Any
) -> None:
    broadcast(Group, channels=channels, fields=["name"])
    with pytest.raises(errors.InvalidName), transaction.atomic():
        Group.objects.create(name="cooks")
    assert not Group.objects.exists()
    assert log.events == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fields": ["colour"]}, "no field or attribute 'colour'"),
        ({}, "__realtime__"),
        ({"fields": ["name"], "events": ["saved"]}, "not saved"),
        ({"fields": ["name"], "events": []}, "not none"),
        ({"fields": ["name"], "channels": "groups"}, "a list of names"),
    ],
)
def test_a_wrong_declaration_is_refused_when_it_is_made(
    broadcast: broadcasts.Broadcast, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(errors.InvalidBroadcast, match=message):
        broadcast(Group, **{"channels": ["groups"], **options})
