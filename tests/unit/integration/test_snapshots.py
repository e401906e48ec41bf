"""Positions of channels for pages, taken from a real log."""

from __future__ import annotations

import pytest
from asgiref.sync import sync_to_async
from django import template
from django.test import RequestFactory

from fanfare import errors, snapshot
from fanfare.applications import models
from fanfare.engine import interface
from fanfare.integration import snapshots
from tests.unit.engine import workers

pytestmark = pytest.mark.django_db(transaction=True)

KEPT = interface.Retention(100, 60)


@pytest.fixture(autouse=True)
def rule(application: models.Application) -> models.ChannelRule:
    return models.ChannelRule.objects.create(
        application=application, pattern="orders*", history_size=100, history_seconds=60
    )


async def publish(worker: workers.Worker, channel: str, *bodies: bytes) -> interface.Position:
    publications = [interface.Publication("7", channel, body, retention=KEPT) for body in bodies]
    position = (await worker.engine.append(publications))[-1].position
    assert position is not None
    return position


async def test_a_snapshot_holds_the_newest_position_of_each_channel(worker: workers.Worker) -> None:
    orders = await publish(worker, "orders", b"1", b"2")
    async with snapshot("orders", "orders-new") as positions:
        await publish(worker, "orders", b"3")
    assert positions == {
        "orders": {"epoch": orders.epoch, "offset": 2},
        "orders-new": {"epoch": (await publish(worker, "orders-new", b"1")).epoch, "offset": 0},
    }

    def view() -> snapshots.Positions:
        with snapshot("orders") as positions:
            return positions

    assert (await sync_to_async(view)())["orders"]["offset"] == 3


@pytest.mark.usefixtures("here")
def test_a_channel_without_a_history_is_refused_with_the_remedy() -> None:
    with pytest.raises(errors.InvalidName, match="channel rule"), snapshot("news"):
        pass
    with pytest.raises(errors.InvalidName, match="names of channels"):
        snapshot()


def test_the_tag_hands_the_positions_to_the_page() -> None:
    page = template.Template("{% load fanfare %}{% fanfare_client since=positions %}")
    context = template.Context(
        {"request": RequestFactory().get("/"), "positions": {"orders": {"epoch": "aBcD1234", "offset": 7}}}
    )
    assert '"since": {"orders": {"epoch": "aBcD1234", "offset": 7}}' in page.render(context)


def test_positions_need_the_plugin() -> None:
    page = template.Template("{% load fanfare %}{% fanfare_client since=positions resume=False %}")
    context = template.Context({"request": RequestFactory().get("/"), "positions": {"a": {"epoch": "x", "offset": 1}}})
    with pytest.raises(template.TemplateSyntaxError, match="resume=False"):
        page.render(context)
