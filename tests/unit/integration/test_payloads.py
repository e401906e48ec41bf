"""Values as JSON, and the message for each that has no JSON form."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

import pydantic
import pytest
from django.contrib.auth.models import Group, User
from django.http import QueryDict

from fanfare import apublish, errors, publish, testing
from fanfare.integration import payloads


class Price(pydantic.BaseModel):
    amount: decimal.Decimal
    valid: dt.date
    note: str | None = None


class Reading(pydantic.BaseModel):
    celsius: float


class Point(NamedTuple):
    x: int
    y: float


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Sensor:
    name: str
    value: float
    _cache: object = None


class Shown:
    def __realtime__(self) -> Any:
        return [Point(1, 2.5), None]


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            Price(amount=decimal.Decimal("1.50"), valid=dt.date(2026, 1, 2)),
            '{"amount":"1.50","valid":"2026-01-02","note":null}',
        ),
        ([Point(1, 2.5)], '[{"x":1,"y":2.5}]'),
        ({"colour": Colour.RED, "none": None}, '{"colour":"red","none":null}'),
        (Sensor("a", 1.5), '{"name":"a","value":1.5}'),
        (Shown(), '[{"x":1,"y":2.5},null]'),
        ({uuid.UUID(int=1): [None]}, '{"00000000-0000-0000-0000-000000000001":[null]}'),
        (QueryDict("a=1&a=2"), '{"a":["1","2"]}'),
        (decimal.Decimal("NaN"), '"NaN"'),
    ],
)
def test_value_is_encoded(value: Any, text: str) -> None:
    assert payloads.json_text(value) == text


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "data is nan, which JSON has no number for: publish None"),
        ({"rows": [{"price": float("inf")}]}, "data['rows'][0]['price'] is inf"),
        ({float("nan"): 1}, "the key nan of data is nan"),
        (Sensor("a", float("nan")), "data['value'] is nan"),
        ((None, Point(1, float("-inf"))), "data[1]['y'] is -inf"),
        (Reading(celsius=float("nan")), "data['celsius'] is nan"),
        ({"a": 2**64}, "data['a'] is an integer of more than 64 bits: publish str(…)"),
        ({"a": {1, 2}}, "data['a'] is a set, which has no order: publish sorted(…)"),
        ({"file": b"x"}, "data['file'] is bytes: publish text"),
        ([iter([1])], "data[0] is a list_iterator: publish list(…)"),
        (
            {"a": object()},
            "data['a'] is an object of type object: publish a dict of its values, or give object a method",
        ),
        (User(username="ann"), 'data is an instance of the model User: publish a dict, such as {"id": user.pk}'),
        (User.objects, 'data is a UserManager of User: publish a list, such as list(queryset.values("id", …))'),
        ({"all": Group.objects.all()}, "data['all'] is a QuerySet of Group: publish a list"),
        (LOOP, "data has more than 250 levels, or contains itself"),
        (["\ud800"], "data[0] has a lone surrogate"),
    ],
)
def test_value_without_a_json_form_is_named_with_its_place_and_the_remedy(value: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        payloads.json_text(value)
    assert message in str(caught.value)


def test_queryset_of_a_model_with_the_hook_is_to_be_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Group, "__realtime__", lambda group: group.name, raising=False)
    with pytest.raises(TypeError, match=r"a QuerySet of Group: publish a list, such as list\(queryset\)"):
        payloads.json_text(Group.objects.all())


def test_awaitable_is_named() -> None:
    async def price() -> float:
        return 1.0

    coroutine = price()
    with pytest.raises(TypeError, match=r"data\['price'\] is a coroutine that was not awaited"):
        payloads.json_text({"price": coroutine})
    coroutine.close()


async def test_apublish_takes_a_pydantic_model_and_names_a_bad_value() -> None:
    with testing.captured_events() as events:
        await apublish(
            "prices", "changed", Price(amount=decimal.Decimal(2), valid=dt.date(2026, 1, 2)), on_commit=False
        )
        with pytest.raises(errors.UnencodableData, match=r"The data of the event 'changed' .* data\['x'\] is nan"):
            await apublish("prices", "changed", {"x": float("nan")}, on_commit=False)
    assert events[0].data == {"amount": "2", "valid": "2026-01-02", "note": None}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: publish(User.objects, "created", 1), errors.InvalidName, "The channel is of type UserManager"),  # type: ignore[arg-type]
        (lambda: publish(["a", "b"], "created", 1), errors.InvalidName, "once for each channel"),  # type: ignore[arg-type]
        (lambda: publish("orders", {"id": 1}, None), errors.InvalidName, "The event is of type dict"),  # type: ignore[arg-type]
        (lambda: publish("orders", "created", 1, exclude=7), errors.InvalidName, "`exclude` is 7"),  # type: ignore[arg-type]
        (lambda: publish("orders", "created", 1, app=User(pk=1)), errors.NoApplication, "not User"),  # type: ignore[arg-type]
        (
            lambda: publish(None, "created", 1, to_user="ann"),
            errors.InvalidUser,
            r"'ann' is not a primary key of auth\.User",
        ),
    ],
)
def test_wrong_kind_of_argument_is_named(call: Callable[[], None], error: type[Exception], message: str) -> None:
    with testing.captured_events() as events, pytest.raises(error, match=message):
        call()
    assert len(events) == 0
