"""The Channels specification of a channel layer, in one receiving process."""

from __future__ import annotations

import asyncio

import pytest
from channels.exceptions import ChannelFull
from django.core.exceptions import ImproperlyConfigured

from fanfare.channel_layer import core, errors

PATIENCE_S = 5.0


async def received(layer, channel):
    return await asyncio.wait_for(layer.receive(channel), PATIENCE_S)


async def nothing_comes(layer, channel):
    """Sends a marker and asserts that it is the next message."""
    await layer.send(channel, {"type": "last"})
    assert await received(layer, channel) == {"type": "last"}


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


# -- send and receive --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        {"type": "test.message", "text": "Ahoy-hoy!"},
        {"type": "t", "bytes": b"\x00\xff", "number": 1.5, "none": None, "big": 2**53, "list": [1, {"deep": [True]}]},
        {"type": "t", "snow": "\N{SNOWMAN}", "keys": {1: "one", "two": 2}},
    ],
)
async def test_message_arrives_as_it_was_sent(layer, message):
    await layer.send("plain", message)
    assert await received(layer, "plain") == message


async def test_messages_arrive_in_order(layer):
    for number in range(3):
        await layer.send("plain", {"type": "count", "number": number})
    assert [(await received(layer, "plain"))["number"] for _ in range(3)] == [0, 1, 2]


async def test_waiting_receiver_is_woken(layer):
    waiting = asyncio.create_task(layer.receive("plain"))
    await asyncio.sleep(0)
    await layer.send("plain", {"type": "hello"})
    assert await asyncio.wait_for(waiting, PATIENCE_S) == {"type": "hello"}


async def test_each_message_goes_to_one_waiting_receiver(layer):
    waiting = [asyncio.create_task(layer.receive("plain")) for _ in range(3)]
    await asyncio.sleep(0)
    for number in range(3):
        await layer.send("plain", {"type": "count", "number": number})
    messages = await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE_S)
    assert sorted(message["number"] for message in messages) == [0, 1, 2]


async def test_process_local_channel_has_the_requested_prefix(layer):
    first, second = await layer.new_channel(), await layer.new_channel("test.prefix")
    assert first.startswith("specific.")
    assert second.startswith("test.prefix.")
    assert "!" in first
    assert len(first) < layer.MAX_NAME_LENGTH
    assert first != await layer.new_channel()


async def test_process_local_channels_do_not_get_each_others_messages(layer):
    first, second = await layer.new_channel(), await layer.new_channel()
    await layer.send(second, {"type": "for.second"})
    await layer.send(first, {"type": "for.first"})
    assert await received(layer, first) == {"type": "for.first"}
    assert await received(layer, second) == {"type": "for.second"}


async def test_receive_from_a_process_local_channel_of_another_process_raises_foreign_channel(layer):
    with pytest.raises(errors.ForeignChannel):
        await layer.receive("specific.other!process")


async def test_each_receiver_gets_its_own_copy(layer):
    first, second = await layer.new_channel(), await layer.new_channel()
    for channel in (first, second):
        await layer.group_add("group", channel)
    sent = {"type": "list", "items": [1]}
    await layer.group_send("group", sent)
    (await received(layer, first))["items"].append(2)
    assert await received(layer, second) == {"type": "list", "items": [1]}
    assert sent == {"type": "list", "items": [1]}


# -- capacity and expiry -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False])
async def test_full_channel_raises_until_a_message_is_received(layer, own):
    channel = await layer.new_channel() if own else "plain"
    for _ in range(3):
        await layer.send(channel, {"type": "hey"})
    with pytest.raises(ChannelFull):
        await layer.send(channel, {"type": "hey"})
    await received(layer, channel)
    await layer.send(channel, {"type": "hey"})


async def test_concurrent_sends_count_towards_the_capacity(layer):
    channel = await layer.new_channel()
    answers = await asyncio.gather(*(layer.send(channel, {"type": "hey"}) for _ in range(10)), return_exceptions=True)
    assert sum(isinstance(answer, ChannelFull) for answer in answers) == 7


async def test_capacity_can_be_set_by_pattern(process):
    layer = process().layer(capacity=3, channel_capacity={"big.*": 5})
    await layer.new_channel()
    for _ in range(5):
        await layer.send("big.one", {"type": "hey"})
    with pytest.raises(ChannelFull):
        await layer.send("big.one", {"type": "hey"})


async def test_group_message_is_dropped_for_a_full_member_only(layer, caplog):
    full, other = await layer.new_channel(), await layer.new_channel()
    for channel in (full, other):
        await layer.group_add("group", channel)
    for number in range(5):
        await layer.group_send("group", {"type": "count", "number": number})
        assert (await received(layer, other))["number"] == number
    assert [(await received(layer, full))["number"] for _ in range(3)] == [0, 1, 2]
    assert layer.counters["full"] == 2
    assert f"dropped a message to {full}: full" in caplog.text


async def test_unreceived_message_expires(process):
    layer = process().layer(expiry=0.05)
    channel = await layer.new_channel()
    await layer.send(channel, {"type": "old"})
    await until(lambda: len(layer._buffer(channel)) == 1)
    await asyncio.sleep(0.06)
    await nothing_comes(layer, channel)
    assert layer.counters["expired"] == 1


async def test_channel_without_receiver_is_removed_from_its_groups(process, monkeypatch):
    monkeypatch.setattr(core, "SWEEP_S", 0.0)
    layer = process().layer(expiry=0.05)
    dead, alive = await layer.new_channel(), await layer.new_channel()
    for channel in (dead, alive):
        await layer.group_add("group", channel)
    await layer.group_send("group", {"type": "hey"})
    await received(layer, alive)
    await asyncio.sleep(0.06)
    await layer.group_send("group", {"type": "hey"})
    await received(layer, alive)
    assert list(layer._groups["group"]) == [alive]
    assert dead not in layer._buffers


async def test_membership_ends_after_group_expiry(process):
    layer = process().layer(group_expiry=0)
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await layer.group_send("group", {"type": "hey"})
    await nothing_comes(layer, channel)


async def test_group_without_messages_is_forgotten_after_group_expiry(process, monkeypatch):
    """Consumers that end without `group_discard` leave members of groups that nothing is sent to any more."""
    monkeypatch.setattr(core, "SWEEP_S", 0.0)
    monkeypatch.setattr(core, "GROUP_SWEEP_S", 0.0)
    layer = process().layer(group_expiry=0)
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    await layer.send(channel, {"type": "hey"})
    await received(layer, channel)
    assert not layer._groups
    assert not layer._transport.follows(layer._mailbox_of("group", "group"), layer.deliver)


# -- groups ------------------------------------------------------------------------------------------------------------


async def test_group_message_reaches_all_members_and_no_other_channel(layer):
    channels = [await layer.new_channel() for _ in range(3)]
    for channel in channels[:2]:
        await layer.group_add("group", channel)
    await layer.group_send("group", {"type": "hello"})
    for channel in channels[:2]:
        assert await received(layer, channel) == {"type": "hello"}
    await nothing_comes(layer, channels[2])


async def test_discarded_member_gets_no_message_of_the_group_even_if_it_was_sent_before(layer):
    channel = await layer.new_channel()
    await layer.group_add("group", channel)
    sending = asyncio.create_task(layer.group_send("group", {"type": "hello"}))
    await layer.group_discard("group", channel)
    await sending
    await nothing_comes(layer, channel)
    assert layer._groups == {}


async def test_adding_a_member_twice_has_no_further_effect(layer):
    channel = await layer.new_channel()
    for _ in range(2):
        await layer.group_add("group", channel)
    await layer.group_send("group", {"type": "hello"})
    await received(layer, channel)
    await nothing_comes(layer, channel)


async def test_discarding_an_unknown_member_is_no_error(layer):
    await layer.group_discard("group", await layer.new_channel())
    await layer.group_send("empty", {"type": "hello"})


async def test_normal_channel_can_be_a_member(layer):
    await layer.group_add("group", "plain")
    await layer.group_send("group", {"type": "hello"})
    assert await received(layer, "plain") == {"type": "hello"}


# -- flush -------------------------------------------------------------------------------------------------------------


async def test_flush_removes_earlier_messages_and_members_only(layer):
    channel = await layer.new_channel()
    await layer.group_add("old", channel)
    await layer.send(channel, {"type": "old"})
    await layer.flush()
    await layer.group_add("new", channel)
    await layer.group_send("old", {"type": "old"})
    await layer.group_send("new", {"type": "new"})
    assert await received(layer, channel) == {"type": "new"}


async def test_receiver_waits_on_through_a_flush(layer):
    channel = await layer.new_channel()
    waiting = asyncio.create_task(layer.receive(channel))
    await asyncio.sleep(0)
    await layer.flush()
    await layer.send(channel, {"type": "hello"})
    assert await asyncio.wait_for(waiting, PATIENCE_S) == {"type": "hello"}


# -- invalid arguments -------------------------------------------------------------------------------------------------

BAD_NAMES = ["", "sp ace", "um\N{LATIN SMALL LETTER U WITH DIAERESIS}", "a" * 100, "a/b", 3, None]


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_invalid_name_raises_type_error(layer, name):
    message = {"type": "hey"}
    good = await layer.new_channel()
    for call in (
        layer.send(name, message),
        layer.receive(name),
        layer.group_add(name, good),
        layer.group_add("group", name),
        layer.group_discard(name, good),
        layer.group_discard("group", name),
        layer.group_send(name, message),
    ):
        with pytest.raises(TypeError):
            await call


@pytest.mark.parametrize("message", ["text", None, [1]])
async def test_message_that_is_no_dict_raises_type_error(layer, message):
    with pytest.raises(TypeError, match="A message is a dict"):
        await layer.send("plain", message)


async def test_message_that_cannot_be_packed_raises_type_error_for_the_sender(layer):
    with pytest.raises(TypeError):
        await layer.send("plain", {"type": "t", "what": object()})
    await nothing_comes(layer, "plain")


async def test_too_large_message_raises_an_error_with_both_sizes(process):
    layer = process().layer(max_message_bytes=100)
    with pytest.raises(errors.MessageTooLarge, match="has 215 bytes; 100 are allowed"):
        await layer.group_send("group", {"type": "t", "text": "x" * 200})


@pytest.mark.parametrize("expiry", [0, -1, 601])
def test_expiry_beyond_the_retention_of_the_engine_is_refused(expiry):
    with pytest.raises(ImproperlyConfigured, match=f"expiry is {expiry} seconds; it must be above 0 and at most 600"):
        core.EngineChannelLayer(expiry=expiry)


def test_the_extensions_are_named():
    assert set(core.EngineChannelLayer.extensions) == {"groups", "flush"}
