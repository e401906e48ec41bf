from __future__ import annotations

import datetime as dt
import decimal
import json
import logging
from collections.abc import Iterator
from typing import Any

import django
import pytest
from asgiref.sync import sync_to_async
from django import db
from django.contrib.auth.models import Group, Permission, User
from django.contrib.contenttypes.models import ContentType
from django.core import serializers
from django.db import transaction
from django.db.models import F, functions

from fanfare import errors
from fanfare.applications import models
from fanfare.engine import errors as engine_errors
from fanfare.integration import broadcasts, publishing, target
from tests.unit.integration import recording

pytestmark = pytest.mark.django_db(transaction=True)  # commits and rollbacks are the subject here


@pytest.fixture(autouse=True)
def default(application: models.Application) -> models.Application:
    return application


def said(log: recording.Recording) -> list[tuple[str, str, Any]]:
    return [(event.channel, event.name, json.loads(event.data)) for event in log.events]


# -- What Django tells -------------------------------------------------------------------------------------------------


def test_create_save_and_delete_are_published_to_each_channel(
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


def test_event_is_sent_at_commit_with_the_saved_values(
    log: recording.Recording, broadcast: broadcasts.Broadcast
) -> None:
    broadcast(Group, channels=["groups"], fields=["name"])
    with transaction.atomic():
        group = Group.objects.create(name="saved")
        group.name = "changed, not saved"
        assert log.events == []
    assert said(log) == [("groups", "group.created", {"name": "saved"})]


def test_rollback_publishes_nothing(log: recording.Recording, broadcast: broadcasts.Broadcast) -> None:
    broadcast(Group, channels=["groups"], fields=["name"])
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Group.objects.create(name="undone")
        _ = 1 / 0
    assert log.events == []


def test_events_and_name_of_the_declaration_are_used(log: recording.Recording, broadcast: broadcasts.Broadcast) -> None:
    broadcast(Group, channels=["groups"], fields=["name"], events=["deleted"], name="team")
    Group.objects.create(name="cooks").save()
    Group.objects.all().delete()
    assert said(log) == [("groups", "team.deleted", {"name": "cooks"})]


def test_queryset_delete_publishes_each_object(log: recording.Recording, broadcast: broadcasts.Broadcast) -> None:
    broadcast(Group, channels=["groups"], fields=["name"], events=["deleted"])
    for name in ("a", "b"):
        Group.objects.create(name=name)
    Group.objects.all().delete()
    assert sorted(data["name"] for _, _, data in said(log)) == ["a", "b"]


def test_empty_list_of_channels_publishes_nothing(log: recording.Recording, broadcast: broadcasts.Broadcast) -> None:
    broadcast(Group, channels=lambda group: [], fields=["name"])
    Group.objects.create(name="secret")
    assert log.events == []


def test_loading_a_fixture_publishes_nothing(log: recording.Recording, broadcast: broadcasts.Broadcast) -> None:
    broadcast(Group, channels=["groups"], fields=["name"])
    for loaded in serializers.deserialize("json", '[{"model": "auth.group", "pk": 1, "fields": {"name": "a"}}]'):
        loaded.save()
    assert log.events == []


async def test_async_model_api_is_broadcast(log: recording.Recording, broadcast: broadcasts.Broadcast) -> None:
    broadcast(Group, channels=["groups"], fields=["name"])
    group = await Group.objects.acreate(name="cooks")
    await group.adelete()
    assert log.names == ["group.created", "group.deleted"]


# -- What subscribers get ----------------------------------------------------------------------------------------------


def test_relation_is_published_as_its_key_and_a_method_is_called(
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


def test_decorated_class_with_the_hook_needs_no_fields(
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
def test_save_with_update_fields_publishes_only_relevant_changes(
    log: recording.Recording, broadcast: broadcasts.Broadcast, fields: list[str], update_fields: Any, told: bool
) -> None:
    broadcast(User, channels=["users"], fields=fields, events=["updated"])
    User.objects.create_user("ann").save(update_fields=update_fields)
    assert bool(log.events) is told


# -- values that only the database knows -------------------------------------------------------------------------------


class Item(db.models.Model):
    """A table of this module's tests. `doubled` is computed by the database."""

    views = db.models.IntegerField(default=0)
    price = db.models.DecimalField(max_digits=9, decimal_places=2, default=decimal.Decimal(0))
    text = db.models.CharField(max_length=20, default="")
    day = db.models.DateField(null=True)
    at = db.models.DateTimeField(null=True)
    photo = db.models.FileField(null=True)
    parent = db.models.ForeignKey("self", db.models.CASCADE, null=True)
    doubled = db.models.GeneratedField(
        expression=db.models.F("views") * 2, output_field=db.models.IntegerField(), db_persist=True
    )

    class Meta:
        app_label = "demo"

    def __str__(self) -> str:
        return self.text


@pytest.fixture
def items(application: models.Application) -> Iterator[None]:
    target.application()  # cached, so that the tests count queries of the broadcast only
    with db.connection.schema_editor() as editor:
        editor.create_model(Item)
    yield
    with db.connection.schema_editor() as editor:
        editor.delete_model(Item)


@pytest.mark.usefixtures("items")
class TestValues:
    def test_expression_is_published_as_its_value_with_one_query(
        self, log: recording.Recording, broadcast: broadcasts.Broadcast, django_assert_num_queries: Any
    ) -> None:
        item = Item.objects.create(views=1, text="a")
        broadcast(Item, channels=["items"], fields=["id", "views", "text"])
        item.views = F("views") + 1
        item.text = functions.Upper(db.models.Value("b"))
        expected = 1 if django.VERSION >= (6, 0) else 2  # the update, and a read of both columns
        with django_assert_num_queries(expected):
            item.save()
        assert said(log) == [("items", "item.updated", {"id": item.pk, "views": 2, "text": "B"})]
        if django.VERSION < (6, 0):
            assert hasattr(item.views, "resolve_expression")  # the instance is left as Django leaves it

    def test_ordinary_values_cost_no_query(
        self, broadcast: broadcasts.Broadcast, django_assert_num_queries: Any
    ) -> None:
        broadcast(Item, channels=lambda item: [f"items-{item.views}"], fields=["id", "views", "price", "day"])
        item = Item()
        with django_assert_num_queries(1):
            item.save()
        item.views = 3
        with django_assert_num_queries(1):
            item.save()
        with django_assert_num_queries(1):
            item.save(update_fields=["views"])

    def test_expression_that_is_not_published_costs_no_query(
        self, broadcast: broadcasts.Broadcast, django_assert_num_queries: Any
    ) -> None:
        item = Item.objects.create()
        broadcast(Item, channels=["items"], fields=["id", "text"])
        item.views = F("views") + 1
        with django_assert_num_queries(1):
            item.save()

    def test_hook_and_channels_read_the_stored_value(
        self, log: recording.Recording, broadcast: broadcasts.Broadcast, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            Item, "__realtime__", lambda item: {"views": item.views, "twice": item.doubled}, raising=False
        )
        item = Item.objects.create(views=1)
        broadcast(Item, channels=lambda item: [f"items-{item.views}"])
        item.views = F("views") + 1
        item.save()
        assert said(log) == [("items-2", "item.updated", {"views": 2, "twice": 4})]

    def test_generated_column_has_its_new_value(
        self, log: recording.Recording, broadcast: broadcasts.Broadcast
    ) -> None:
        broadcast(Item, channels=["items"], fields=["doubled"])
        item = Item.objects.create(views=1)
        item.views = 5
        item.save()
        assert [data["doubled"] for _, _, data in said(log)] == [2, 10]

    def test_deferred_columns_are_read_in_one_query(
        self, log: recording.Recording, broadcast: broadcasts.Broadcast, django_assert_num_queries: Any
    ) -> None:
        pk = Item.objects.create(views=7, text="a").pk
        broadcast(Item, channels=["items"], fields=["day", "views", "text"])
        item = Item.objects.only("id", "day").get(pk=pk)
        item.day = dt.date(2026, 1, 2)
        with django_assert_num_queries(2):
            item.save()
        assert said(log) == [("items", "item.updated", {"day": "2026-01-02", "views": 7, "text": "a"})]

    def test_deletion_with_an_unsaved_expression_publishes_null(
        self, log: recording.Recording, broadcast: broadcasts.Broadcast
    ) -> None:
        broadcast(Item, channels=["items"], fields=["text", "views"], events=["deleted"])
        item = Item.objects.create(text="a")
        item.views = F("views") + 1
        item.delete()
        assert said(log) == [("items", "item.deleted", {"text": "a", "views": None})]

    def test_values_are_those_of_a_reload(self, log: recording.Recording, broadcast: broadcasts.Broadcast) -> None:
        fields = ["views", "price", "text", "day", "at", "photo", "parent"]
        broadcast(Item, channels=["items"], fields=fields)
        parent = Item.objects.create()
        plus_two = dt.timezone(dt.timedelta(hours=2))
        item = Item.objects.create(
            views="3",
            price="0.1",
            text=5,
            day="2026-01-02",
            at=dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=plus_two),
            photo="a.png",
            parent_id=str(parent.pk),
        )
        broadcast.updated([Item.objects.get(pk=item.pk)])
        _, created, reloaded = said(log)
        assert created[2] == reloaded[2]
        assert created[2] == {
            "views": 3,
            "price": "0.10",
            "text": "5",
            "day": "2026-01-02",
            "at": "2026-01-02T01:04:05Z",
            "photo": "a.png",
            "parent": parent.pk,
        }


# -- What Django does not tell -----------------------------------------------------------------------------------------


def test_bulk_operations_are_broadcast_explicitly_in_chunks(
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


async def test_explicit_broadcast_in_a_coroutine(log: recording.Recording, broadcast: broadcasts.Broadcast) -> None:
    broadcast(Group, channels=["groups"], fields=["name"])
    await Group.objects.abulk_create([Group(name="cooks")])
    await broadcast.acreated(Group.objects.all())
    assert log.names == ["group.created"]
    groups = await sync_to_async(list)(Group.objects.all())
    with pytest.raises(errors.CalledOnEventLoop, match=r"broadcast\.aupdated"):
        broadcast.updated(groups)


def test_explicit_broadcast_of_an_undeclared_model_is_refused(broadcast: broadcasts.Broadcast) -> None:
    with pytest.raises(errors.InvalidBroadcast, match="The model Group has no broadcast"):
        broadcast.updated([Group(name="cooks")])


# -- What goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_transaction", [True, False])
def test_save_succeeds_while_the_log_is_unavailable(
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


def test_save_succeeds_without_an_application(
    broadcast: broadcasts.Broadcast, application: models.Application, caplog: pytest.LogCaptureFixture
) -> None:
    broadcast(Group, channels=["groups"], fields=["name"])
    application.delete()
    target.forget()
    with caplog.at_level(logging.ERROR, logger="fanfare.integration"):
        Group.objects.create(name="cooks")
    assert Group.objects.count() == 1
    assert "no enabled application" in caplog.text


@pytest.mark.parametrize("channels", [["a b"], lambda group: "groups", lambda group: [1]])
def test_invalid_channel_of_a_declaration_is_raised_by_the_save(
    log: recording.Recording, broadcast: broadcasts.Broadcast, channels: Any
) -> None:
    broadcast(Group, channels=channels, fields=["name"])
    with pytest.raises(errors.InvalidName), transaction.atomic():
        Group.objects.create(name="cooks")
    assert not Group.objects.exists()
    assert log.events == []


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((dict,), {"fields": ["id"]}, r"a model class, not <class 'dict'>: write broadcast\(Order"),
        ((Group(name="a"),), {"fields": ["name"]}, "not the instance <Group: a>"),
        (("auth.Group",), {"fields": ["name"]}, "not 'auth.Group'"),
        ((Group,), {"channels": None}, r"needs `channels`: write broadcast\(Group, channels="),
        ((), {"channels": None}, r"over the class @broadcast\(channels="),
        ((Group,), {"fields": "name"}, r"`fields` is the str 'name'; write fields=\['name'\]"),
        ((Group,), {"fields": ["name"], "events": "created"}, r"write events=\['created'\]"),
        ((User,), {"fields": ["groups__name"]}, "needs a property of the model"),
    ],
)
def test_wrong_call_is_refused_with_the_line_to_write(
    broadcast: broadcasts.Broadcast, arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(errors.InvalidBroadcast, match=message):
        broadcast(*arguments, **{"channels": ["a"], **options})


def test_single_object_is_refused_with_the_line_to_write(broadcast: broadcasts.Broadcast) -> None:
    with pytest.raises(errors.InvalidBroadcast, match=r"write broadcast\.updated\(\[instance\]\)"):
        broadcast.updated(Group(name="a"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fields": ["colour"]}, "no field or attribute 'colour'"),
        ({}, "__realtime__"),
        ({"fields": ["name"], "events": ["saved"]}, "this one is saved"),
        ({"fields": ["name"], "events": []}, "this one is empty"),
        ({"fields": ["name"], "channels": "groups"}, r"write channels=\['groups'\]"),
    ],
)
def test_wrong_declaration_is_refused_with_the_line_to_write(
    broadcast: broadcasts.Broadcast, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(errors.InvalidBroadcast, match=message):
        broadcast(Group, **{"channels": ["groups"], **options})
