"""Model broadcasts: which changes of a model go to which channels, said once.

    broadcast(Order, channels=lambda order: [f"private-orders-{order.customer_id}"], fields=["id", "state"])

From then on every `save()`, `create()` and `delete()` of an order publishes `order.created`, `order.updated` or
`order.deleted`, after the transaction commits, with the fields as they were when it was saved. Write it in the
`channels` module of any app, or over the class as `@broadcast(channels=…, fields=…)`.

It follows Django's signals, so what sends none is not broadcast: `QuerySet.update()`, `bulk_create()`, `bulk_update()`,
raw SQL, and changes of many-to-many relations. Say it yourself there: `broadcast.updated(Order.objects.filter(…))`.
`QuerySet.delete()` and cascades do send signals. Loading fixtures is no change. A proxy or a child of a model is
another model: register it, too.

A broadcast is a by-product, so what is not the declaration's fault does not fail the save: without an application, or
with a log that cannot be written, it is reported at level ERROR by the logger `fanfare.integration` and counted as
`failed_after_commit`. A mistake (a bad channel name, data that has no JSON form or is too large) is raised by the save.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar, overload

from asgiref.sync import sync_to_async
from django.core.exceptions import FieldDoesNotExist
from django.db import DEFAULT_DB_ALIAS, models
from django.db.models import signals

from fanfare.applications import models as application_models
from fanfare.engine import interface
from fanfare.integration import encoding, errors, publishing

logger = logging.getLogger("fanfare.integration")

ModelType = TypeVar("ModelType", bound=type[models.Model])
Channels = Callable[[Any], Iterable[str]] | Sequence[str]
Application = application_models.Application | str | int | None

CREATED, UPDATED, DELETED = EVENTS = ("created", "updated", "deleted")

# Objects of one explicit broadcast whose events are written together: some 100 kB of rows, and one commit.
CHUNK = 200


@dataclass(frozen=True, slots=True)
class Declaration:
    """What was said about one model. `fields`: their names, or None where the class has `__realtime__`."""

    model: type[models.Model]
    channels: Channels
    fields: tuple[str, ...] | None
    events: frozenset[str]
    name: str
    app: Application

    def concerns(self, update_fields: Iterable[str] | None) -> bool:
        """Whether a save of only these fields can change what subscribers see."""
        if update_fields is None or self.fields is None:
            return True
        seen = {name for field in self.fields for name in _names_of(self.model, field)}
        return None in seen or not seen.isdisjoint(update_fields)

    def publications(self, event: str, instance: models.Model) -> Iterator[interface.Publication]:
        """One for each channel. Raises a PublishError."""
        channels = self.channels(instance) if callable(self.channels) else self.channels
        if isinstance(channels, str):
            raise errors.InvalidName(f"{self.name}: `channels` answered {channels!r}; it must be a list of names.")
        channels = list(channels)
        if not channels:
            return
        try:
            data = encoding.json_text(self._data(instance))
        except TypeError as error:
            raise errors.UnencodableData(f"{self.name}.{event} has no JSON form: {error}") from error
        for channel in channels:
            yield publishing.prepare(channel, f"{self.name}.{event}", data, app=self.app)

    def _data(self, instance: models.Model) -> Any:
        return instance if self.fields is None else {name: _value(instance, name) for name in self.fields}


class Broadcast:
    """`broadcast`, the registration, with the calls for what Django sends no signal for."""

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
        app: Application = None,
    ) -> ModelType: ...

    @overload
    def __call__(
        self,
        *,
        channels: Channels,
        fields: Sequence[str] | None = None,
        events: Sequence[str] = EVENTS,
        name: str | None = None,
        app: Application = None,
    ) -> Callable[[ModelType], ModelType]: ...

    def __call__(
        self,
        model: type[models.Model] | None = None,
        *,
        channels: Channels,
        fields: Sequence[str] | None = None,
        events: Sequence[str] = EVENTS,
        name: str | None = None,
        app: Application = None,
    ) -> Any:
        """Broadcast the changes of a model; without one, this is a decorator for its class.

        `channels`: a list of names, or a function of the instance that returns one (an empty one sends nothing).
        `fields`: what subscribers get, names of fields or of other attributes; a relation is the primary key behind it.
        Without it the class says it in `__realtime__`. `events`: some of `created`, `updated`, `deleted`. `name`: what
        stands before the dot in the events' names, by default the model's name in lower case. `app`: as in `publish`.
        Raises InvalidBroadcast.
        """

        def register(model: type[models.Model]) -> type[models.Model]:
            chosen = None if fields is None else tuple(fields)
            self._add(Declaration(model, channels, chosen, frozenset(events), name or _event_name(model), app))
            return model

        return register if model is None else register(model)

    def created(self, objects: Iterable[models.Model], *, using: str = DEFAULT_DB_ALIAS) -> None:
        """Broadcast objects that were created in bulk."""
        self._send(CREATED, objects, using)

    def updated(self, objects: Iterable[models.Model], *, using: str = DEFAULT_DB_ALIAS) -> None:
        """Broadcast objects that were changed in bulk; read after the change."""
        self._send(UPDATED, objects, using)

    def deleted(self, objects: Iterable[models.Model], *, using: str = DEFAULT_DB_ALIAS) -> None:
        """Broadcast objects that were deleted with raw SQL; read before the deletion."""
        self._send(DELETED, objects, using)

    async def acreated(self, objects: Iterable[models.Model], *, using: str = DEFAULT_DB_ALIAS) -> None:
        await sync_to_async(self.created)(objects, using=using)

    async def aupdated(self, objects: Iterable[models.Model], *, using: str = DEFAULT_DB_ALIAS) -> None:
        await sync_to_async(self.updated)(objects, using=using)

    async def adeleted(self, objects: Iterable[models.Model], *, using: str = DEFAULT_DB_ALIAS) -> None:
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
            found = [publication for one in concerned for publication in one.publications(event, instance)]
        except errors.NoApplication as error:
            publishing.count("failed_after_commit")
            logger.error("Not broadcast: %s of %s: %s", event, sender.__name__, error)  # noqa: TRY400
            return
        if found and not publishing.defer(found, on_commit=True, using=using, outbox=None):
            publishing.append_or_report(found)  # the row is saved already

    # -- by hand -------------------------------------------------------------------------------------------------------

    def _send(self, event: str, objects: Iterable[models.Model], using: str) -> None:
        """Raises InvalidBroadcast for objects whose model is not broadcast, and what `publish` raises: then the chunks
        before were sent."""
        publishing.refuse_event_loop(f"broadcast.{event}", f"broadcast.a{event}")
        remaining = iter(objects)
        while chunk := list(islice(remaining, CHUNK)):
            found = [publication for one in chunk for publication in self._publications(event, one)]
            if found and not publishing.defer(found, on_commit=True, using=using, outbox=None):
                publishing.append(found)

    def _publications(self, event: str, instance: models.Model) -> Iterator[interface.Publication]:
        declared = self._declared.get(type(instance))
        if declared is None:
            raise errors.InvalidBroadcast(f"{type(instance).__name__} is not broadcast: register it with broadcast().")
        for one in declared:
            if event in one.events:
                yield from one.publications(event, instance)

    def _add(self, declaration: Declaration) -> None:
        _check(declaration)
        model = declaration.model
        known = self._declared.setdefault(model, [])
        if not known:
            signals.post_save.connect(self._saved, sender=model, dispatch_uid=(id(self), "saved", model))
            # Django deletes a row without reading it where nobody listens; from here on it reads it.
            signals.post_delete.connect(self._deleted, sender=model, dispatch_uid=(id(self), "deleted", model))
        known.append(declaration)


broadcast = Broadcast()


def _event_name(model: type[models.Model]) -> str:
    return model._meta.model_name or model.__name__.lower()


def _check(declaration: Declaration) -> None:
    model, name = declaration.model, declaration.model.__name__
    if model._meta.abstract:
        raise errors.InvalidBroadcast(f"{name} is abstract: register the models that inherit from it.")
    if not declaration.events or not declaration.events <= set(EVENTS):
        wrong = ", ".join(sorted(declaration.events - set(EVENTS))) or "none"
        raise errors.InvalidBroadcast(f"{name}: the events are some of {', '.join(EVENTS)}, not {wrong}.")
    if isinstance(declaration.channels, str):
        raise errors.InvalidBroadcast(f"{name}: `channels` is a list of names or a function that returns one.")
    if declaration.fields is None:
        if not hasattr(model, encoding.HOOK):
            raise errors.InvalidBroadcast(
                f"{name}: say in `fields` what subscribers get, or give it a method {encoding.HOOK}."
            )
        return
    for field in declaration.fields:
        if not _is_field(model, field) and not hasattr(model, field):
            raise errors.InvalidBroadcast(f"{name} has no field or attribute {field!r}.")


def _is_field(model: type[models.Model], name: str) -> bool:
    return _field(model, name) is not None


def _field(model: type[models.Model], name: str) -> models.Field[Any, Any] | None:
    """The column behind a name; None for another attribute."""
    if name == "pk":
        return model._meta.pk
    try:
        field = model._meta.get_field(name)
    except FieldDoesNotExist:
        return None
    return field if isinstance(field, models.Field) and not field.many_to_many else None


def _names_of(model: type[models.Model], name: str) -> tuple[str | None, ...]:
    """What `update_fields` may call it; None for an attribute that may depend on anything."""
    field = _field(model, name)
    return (None,) if field is None else (field.name, field.attname)


def _value(instance: models.Model, name: str) -> Any:
    field = _field(type(instance), name)
    value = getattr(instance, name if field is None else field.attname)
    return value() if field is None and callable(value) else value
