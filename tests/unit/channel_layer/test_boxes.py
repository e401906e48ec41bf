from __future__ import annotations

import asyncio

import pytest

from fanfare.channel_layer import boxes


def item(id_, deadline=100.0):
    return boxes.Item(id_, deadline, b"")


async def test_receiver_cancelled_after_its_wake_up_leaves_the_item_to_the_next_receiver():
    box = boxes.Box(3)
    first, second = (asyncio.create_task(box.get()) for _ in range(2))
    await asyncio.sleep(0)
    box.put(item("a"))
    first.cancel()
    assert await asyncio.wait_for(second, 5) == item("a")
    assert box.is_idle


async def test_cancelled_receiver_is_removed_from_the_box():
    box = boxes.Box(3)
    waiting = asyncio.create_task(box.get())
    await asyncio.sleep(0)
    assert box.is_awaited
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert box.is_idle


async def test_removed_item_is_skipped_and_the_order_stays():
    box = boxes.Box(3)
    for id_ in "abc":
        box.put(item(id_))
    box.remove("b")
    box.remove("never there")
    assert [(await box.get()).id, (await box.get()).id] == ["a", "c"]


def test_reservation_counts_until_its_item_arrives_or_is_released_or_expires():
    box = boxes.Box(2)
    assert box.reserve("a", 100.0)
    assert box.reserve("b", 100.0)
    assert not box.reserve("c", 100.0)
    box.release("b")
    assert box.put(item("a"))
    assert box.reserve("c", 50.0)
    assert not box.reserve("d", 100.0)
    assert box.expire(60.0) == 0, "an expired reservation is not a dropped message"
    assert box.reserve("d", 100.0)


def test_items_expire_after_their_deadline():
    box = boxes.Box(3)
    box.put(item("a", 10.0))
    box.put(item("b", 20.0))
    assert box.expire(10.0) == 1
    assert len(box) == 1
