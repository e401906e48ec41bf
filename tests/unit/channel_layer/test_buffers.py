from __future__ import annotations

import asyncio

import pytest

from fanfare.channel_layer import buffers


def pending(id_, deadline=100.0):
    return buffers.Pending(id_, deadline, b"")


async def test_receiver_cancelled_after_its_wake_up_leaves_the_message_to_the_next_receiver():
    buffer = buffers.ChannelBuffer(3)
    first, second = (asyncio.create_task(buffer.get()) for _ in range(2))
    await asyncio.sleep(0)
    buffer.put(pending("a"))
    first.cancel()
    assert await asyncio.wait_for(second, 20) == pending("a")
    assert buffer.is_idle


async def test_cancelled_receiver_is_removed_from_the_buffer():
    buffer = buffers.ChannelBuffer(3)
    waiting = asyncio.create_task(buffer.get())
    await asyncio.sleep(0)
    assert buffer.has_receivers
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert buffer.is_idle


async def test_removed_message_is_skipped_and_the_order_stays():
    buffer = buffers.ChannelBuffer(3)
    for id_ in "abc":
        buffer.put(pending(id_))
    buffer.remove("b")
    buffer.remove("never there")
    assert [(await buffer.get()).id, (await buffer.get()).id] == ["a", "c"]


def test_reservation_counts_until_its_message_arrives_or_is_released_or_expires():
    buffer = buffers.ChannelBuffer(2)
    assert buffer.reserve("a", 100.0)
    assert buffer.reserve("b", 100.0)
    assert not buffer.reserve("c", 100.0)
    buffer.release("b")
    assert buffer.put(pending("a"))
    assert buffer.reserve("c", 50.0)
    assert not buffer.reserve("d", 100.0)
    assert buffer.expire(60.0) == 0, "an expired reservation is not a dropped message"
    assert buffer.reserve("d", 100.0)


def test_messages_expire_after_their_deadline():
    buffer = buffers.ChannelBuffer(3)
    buffer.put(pending("a", 10.0))
    buffer.put(pending("b", 20.0))
    assert buffer.expire(10.0) == 1
    assert len(buffer) == 1
