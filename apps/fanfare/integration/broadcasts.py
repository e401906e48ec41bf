"""Model broadcasts: a declaration of which changes of a model are published to which channels.

    broadcast(Order, channels=lambda order: [f"private-orders-{order.customer_id}"], fields=["id", "state"])

From then on every `save()`, `create()` and `delete()` of an order publishes `order.created`, `order.updated` or
`order.deleted` when the transaction commits, with the values that the row had after that statement.

Broadcasts use Django's model signals. `QuerySet.update()`, `bulk_create()`, `bulk_update()`, raw SQL and changes of
many-to-many relations send no signal: call `broadcast.updated(Order.objects.filter(…))` after them.
`QuerySet.delete()` and cascades do send signals. Loading a fixture publishes nothing. A proxy or a child of a model
needs its own declaration.

Problems of the deployment do not make a save fail: if there is no application, or the log cannot be written, the logger
`fanfare.integration` reports an ERROR and `failed_after_commit` is counted. An error of the declaration (a bad
channel name, data that has no JSON form or is too large) is raised by the save.
"""

from __future__ import annotations

import copy
import datetime as dt
import decimal
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar, overload

import django
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.exceptions import FieldDoesNotExist
from django.db import DEFAULT_DB_ALIAS, connections, models
from django.db.models import signals
from django.db.models.fields.files import FieldFile
from django.utils import timezone

from fanfare import errors
from fanfare.engine import interface
from fanfare.integration import after_commit, appending, payloads, publishing, target

logger = logging.getLogger("fanfare.integration")

ModelType = TypeVar("ModelType", bound=type[models.Model])
Channels = Callable[[Any], Iterable[str]] | Sequence[str]

CREATED, UPDATED, DELETED = EVENTS = ("created", "updated", "deleted")

# Objects of an explicit broadcast per commit: about 100 kB of rows.
CHUNK = 200

_EXAMPLE = 'broadcast(Order, channels=["orders"], fields=["id", "state"])'


@dataclass(frozen=True, slots=True)
class Declaration:
    """The declaration of one `broadcast` call. `fields`: names, or None if the class has `__realtime__`."""

    model: type[models.Model]
    channels: Channels
    fields: tuple[str, ...] | None
    events: frozenset[str]
    name: str
    app: target.App

    def concerns(self, update_fields: Iterable[str] | None) -> bool:
        """Whether a save of only these fields can change what subscribers get."""
        if update_fields is None or self.fields is None:
            return True
        published = {name for field in self.fields for name in _names_of(self.model, field)}
        return None in published or not published.isdisjoint(update_fields)

    def columns(self) -> set[str]:
        """The fields that are columns."""
        columns = [_field(self.model, name) for name in self.fields or ()]
        return {column.attname for column in columns if column is not None}

    def publications(
        self, event: str, instance: models.Model, using: str, *, is_saved: bool = False
    ) -> Iterator[interface.Publication]:
        """A publication for each channel. `is_saved`: `save()` has just written the instance. Raises PublishError."""
        instance = _as_stored(instance, using, event, self.columns(), is_saved=is_saved)
        channels = self.channels(instance) if callable(self.channels) else self.channels
        if isinstance(channels, str):
            raise errors.InvalidName(
                f"The broadcast of {self.model.__name__}: `channels` returned the str {channels!r}; return "
                f"[{channels!r}]."
            )
        channels = list(channels)
        if not channels:
            return
        try:
            data = payloads.json_text(self._data(instance, using))
        except TypeError as error:
            raise errors.UnencodableData(
                f"The data of the broadcast {self.name}.{event} has no JSON form: {error}."
            ) from error
        for channel in channels:
            yield publishing.prepare(channel, f"{self.name}.{event}", data, app=self.app)

    def _data(self, instance: models.Model, using: str) -> Any:
        return instance if self.fields is None else {name: _value(instance, name, using) for name in self.fields}


class Broadcast:
    """The type of `broadcast`: a call declares a broadcast; the methods publish changes without a signal."""

    def __init__(self) -> None:
        self._declared: dict[type[models.Model], list[Declaration]] = {}

    @overload
    def __call__(
        self,
        model: ModelType,
        *,
        channels: Channels,
        fields: Sequence[str] | None = None,
        events: Sequence[str] = EVENTS,
        name: str | None = None,
        app: target.App = None,
    ) -> ModelType: ...

    @overload
    def __call__(
        self,
        *,
        channels: Channels,
        fields: Sequence[str] | None = None,
        events: Sequence[str] = EVENTS,
        name: str | None = None,
        app: target.App = None,
    ) -> Callable[[ModelType], ModelType]: ...

    def __call__(
        self,
        model: Any = None,
        *,
        channels: Channels | None = None,
        fields: Sequence[str] | None = None,
        events: Sequence[str] = EVENTS,
        name: str | None = None,
        app: target.App = None,
    ) -> Any:
        """Publish the changes of a model. Without a model it is a decorator for its class.

            broadcast(Order, channels=lambda order: [f"private-orders-{order.customer_id}"], fields=["id", "state"])

        `channels`: a list of names, or a function of the instance that returns one; an empty list publishes nothing.
        `fields`: a list of fields or other attributes, which become an object with these names; a relation is the
        primary key behind it, a method is called. Without `fields` the method `__realtime__` of the class returns the
        data. `events`: some of "created", "updated", "deleted". `name`: the part of the event's name before the dot, by
        default the model's name in lower case. `app`: an application or its id, by default the default application.

        Raises InvalidBroadcast for a declaration that cannot work.
        """
        if model is not None and not (isinstance(model, type) and issubclass(model, models.Model)):
            shown = f"the instance {model!r}" if isinstance(model, models.Model) else repr(model)
            raise errors.InvalidBroadcast(f"broadcast() takes a model class, not {shown}: write {_EXAMPLE}.")
        if channels is None:
            shown = "Order" if model is None else model.__name__
            raise errors.InvalidBroadcast(
                f"broadcast() needs `channels`: write {_EXAMPLE.replace('Order', shown)}, or over the class "
                '@broadcast(channels=["orders"], fields=["id", "state"]).'
            )

        def register(model: type[models.Model]) -> type[models.Model]:
            _check_lists(model, channels=channels, fields=fields, events=events)
            chosen = None if fields is None else tuple(fields)
            self._add(Declaration(model, channels, chosen, frozenset(events), name or _event_name(model), app))
            return model

        return register if model is None else register(model)

    def created(self, objects: Iterable[models.Model], *, using: str = DEFAULT_DB_ALIAS) -> None:
        """Publish `created` for each object: after `bulk_create()`. `using`: the database of the transaction.

        Raises InvalidBroadcast for objects whose model has no declaration, and what `publish` raises. 200 objects are
        written at a time; after an error the chunks before it are published.
        """
        self._send(CREATED, objects, using)

    def updated(self, objects: Iterable[models.Model], *, using: str = DEFAULT_DB_ALIAS) -> None:
        """Publish `updated` for each object: after `update()`, `bulk_update()`, or a change of a many-to-many relation.

        The objects are read after the change. Otherwise like `created`.
        """
        self._send(UPDATED, objects, using)

    def deleted(self, objects: Iterable[models.Model], *, using: str = DEFAULT_DB_ALIAS) -> None:
        """Publish `deleted` for each object: before raw SQL that deletes them. Otherwise like `created`."""
        self._send(DELETED, objects, using)

    async def acreated(self, objects: Iterable[models.Model], *, using: str = DEFAULT_DB_ALIAS) -> None:
        """`created` for coroutines."""
        await sync_to_async(self.created)(objects, using=using)

    async def aupdated(self, objects: Iterable[models.Model], *, using: str = DEFAULT_DB_ALIAS) -> None:
        """`updated` for coroutines."""
        await sync_to_async(self.updated)(objects, using=using)

    async def adeleted(self, objects: Iterable[models.Model], *, using: str = DEFAULT_DB_ALIAS) -> None:
        """`deleted` for coroutines."""
        await sync_to_async(self.deleted)(objects, using=using)

    # -- from the signals ----------------------------------------------------------------------------------------------

    def _saved(
        self,
        sender: type[models.Model],
        instance: models.Model,
        *,
        created: bool,
        raw: bool,
        using: str,
        update_fields: frozenset[str] | None,
        **_: Any,
    ) -> None:
        if not raw:
            self._changed(sender, CREATED if created else UPDATED, instance, using, update_fields)

    def _deleted(self, sender: type[models.Model], instance: models.Model, using: str, **_: Any) -> None:
        self._changed(sender, DELETED, instance, using)

    def _changed(
        self,
        sender: type[models.Model],
        event: str,
        instance: models.Model,
        using: str,
        update_fields: frozenset[str] | None = None,
    ) -> None:
        publishing.refuse_event_loop(f"{sender.__name__}.save", f"{sender.__name__}.asave")
        concerned = [one for one in self._declared[sender] if event in one.events and one.concerns(update_fields)]
        try:
            found = [
                publication
                for one in concerned
                for publication in one.publications(event, instance, using, is_saved=True)
            ]
        except errors.NoApplication as error:
            appending.count("failed_after_commit")
            logger.error("Not broadcast: %s of %s: %s", event, sender.__name__, error)  # noqa: TRY400
            return
        if found and not after_commit.defer(found, on_commit=True, using=using, outbox=None):
            appending.append_or_report(found)  # the row is already saved

    # -- explicit ------------------------------------------------------------------------------------------------------

    def _send(self, event: str, objects: Iterable[models.Model], using: str) -> None:
        publishing.refuse_event_loop(f"broadcast.{event}", f"broadcast.a{event}")
        if isinstance(objects, models.Model):
            raise errors.InvalidBroadcast(
                f"broadcast.{event}() takes a list or a queryset of objects: write broadcast.{event}([instance])."
            )
        remaining = iter(objects)
        while chunk := list(islice(remaining, CHUNK)):
            found = [publication for one in chunk for publication in self._publications(event, one, using)]
            if found and not after_commit.defer(found, on_commit=True, using=using, outbox=None):
                appending.append(found)

    def _publications(self, event: str, instance: models.Model, using: str) -> Iterator[interface.Publication]:
        declared = self._declared.get(type(instance))
        if declared is None:
            kind = type(instance).__name__
            raise errors.InvalidBroadcast(
                f"The model {kind} has no broadcast: declare it first, {_EXAMPLE.replace('Order', kind)}."
            )
        for one in declared:
            if event in one.events:
                yield from one.publications(event, instance, using)

    def _add(self, declaration: Declaration) -> None:
        _check(declaration)
        model = declaration.model
        known = self._declared.setdefault(model, [])
        if not known:
            signals.post_save.connect(self._saved, sender=model, dispatch_uid=(id(self), "saved", model))
            # Without a receiver Django deletes rows without reading them; with one it reads them first.
            signals.post_delete.connect(self._deleted, sender=model, dispatch_uid=(id(self), "deleted", model))
        known.append(declaration)


broadcast = Broadcast()


# -- checks of a declaration -------------------------------------------------------------------------------------------


def _event_name(model: type[models.Model]) -> str:
    return model._meta.model_name or model.__name__.lower()


def _check_lists(model: type[models.Model], **arguments: Any) -> None:
    """Refuse a str where a list is expected: it would be a list of letters."""
    for argument, value in arguments.items():
        if isinstance(value, str):
            raise errors.InvalidBroadcast(
                f"The broadcast of {model.__name__}: `{argument}` is the str {value!r}; write {argument}=[{value!r}]."
            )


def _check(declaration: Declaration) -> None:
    model, name = declaration.model, declaration.model.__name__
    if model._meta.abstract:
        raise errors.InvalidBroadcast(
            f"{name} is an abstract model and has no rows: declare the broadcast of the models that inherit from it."
        )
    if not declaration.events or not declaration.events <= set(EVENTS):
        wrong = ", ".join(sorted(declaration.events - set(EVENTS))) or "empty"
        raise errors.InvalidBroadcast(
            f"The broadcast of {name}: `events` has some of {', '.join(EVENTS)}; this one is {wrong}."
        )
    if declaration.fields is None:
        if not hasattr(model, payloads.HOOK):
            raise errors.InvalidBroadcast(
                f'The broadcast of {name} does not say what subscribers get: add fields=["id", …], or give {name} a '
                f"method {payloads.HOOK}."
            )
        return
    for field in declaration.fields:
        if _field(model, field) is None and not hasattr(model, field):
            hint = " A value of a related object needs a property of the model." if "__" in field else ""
            raise errors.InvalidBroadcast(f"The broadcast of {name}: {name} has no field or attribute {field!r}.{hint}")


# -- values ------------------------------------------------------------------------------------------------------------


def _field(model: type[models.Model], name: str) -> models.Field[Any, Any] | None:
    """The column with this name; None for another attribute."""
    if name == "pk":
        return model._meta.pk
    try:
        field = model._meta.get_field(name)
    except FieldDoesNotExist:
        return None
    return field if isinstance(field, models.Field) and not field.many_to_many else None


def _names_of(model: type[models.Model], name: str) -> tuple[str | None, ...]:
    """The names of the field in `update_fields`; None for an attribute, which may depend on any column."""
    field = _field(model, name)
    return (None,) if field is None else (field.name, field.attname)


def _as_stored(instance: models.Model, using: str, event: str, columns: set[str], *, is_saved: bool) -> models.Model:
    """The instance itself, or a copy with the values that only the database knows.

    After `order.views = F("views") + 1; order.save()` the attribute is still the expression, and a generated column has
    its old value (before Django 6.0). Such columns and deferred columns are read in one query if they are in
    `columns`, and deferred otherwise, so that code of the project reads the right value. An ordinary instance needs no
    query. The instance itself is not changed: a receiver of a signal must not do that.
    """
    known = instance.__dict__
    stale_generated = is_saved and _are_generated_columns_stale(event, using)
    unknown = {
        field.attname
        for field in instance._meta.concrete_fields
        if hasattr(known.get(field.attname), "resolve_expression")
        or (stale_generated and field.generated)
        or (field.attname in columns and field.attname not in known)
    }
    if not unknown:
        return instance
    stored = type(instance).__new__(type(instance))
    stored.__dict__.update({name: value for name, value in known.items() if name not in unknown})
    stored._state = copy.copy(instance._state)
    stored._state.db = using
    if event == DELETED:  # the row is gone
        stored.__dict__.update(dict.fromkeys(unknown))
    elif needed := unknown & columns:
        rows = type(instance)._base_manager.using(using).filter(pk=instance.pk)
        stored.__dict__.update(rows.values(*needed).first() or dict.fromkeys(needed))
    return stored


def _are_generated_columns_stale(event: str, using: str) -> bool:
    """Whether `save()` left the attributes of generated columns as they were."""
    if event == CREATED:
        return not connections[using].features.can_return_columns_from_insert
    return event == UPDATED and django.VERSION < (6, 0)


def _value(instance: models.Model, name: str, using: str) -> Any:
    field = _field(type(instance), name)
    if field is None:
        value = getattr(instance, name)
        return value() if callable(value) else value
    return _normalised(field, getattr(instance, field.attname), using)


def _normalised(field: models.Field[Any, Any], value: Any, using: str) -> Any:
    """The value after a reload from the database, such as a Decimal with its places or a date from a str."""
    if value is None:
        return None
    if isinstance(value, FieldFile):
        return value.name
    value = field.to_python(value)
    if isinstance(field, models.DecimalField) and isinstance(value, decimal.Decimal) and value.is_finite():
        return value.quantize(decimal.Decimal(1).scaleb(-field.decimal_places), context=field.context)
    if isinstance(value, dt.datetime) and settings.USE_TZ:
        aware = timezone.make_aware(value) if timezone.is_naive(value) else value
        return aware.astimezone(connections[using].timezone or dt.UTC)
    return value
