"""Streams as their clients see them, over a real hub and a real log."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from fanfare.engine import interface
from fanfare.hub import hub as hubs
from fanfare.sse import recovery, requests
from tests.unit.sse.clients import Response, asking, until
from tests.unit.sse.conftest import APP, RULES, Deployment


async def opened(response: Response) -> None:
    await until(lambda: response.events, "the first event")


async def got(response: Response, count: int) -> None:
    await until(lambda: len(response.messages) >= count, f"{count} events")


# -- what a stream looks like ------------------------------------------------------------------------------------------


async def test_first_visit_gets_headers_a_statement_and_every_event(deployment: Deployment) -> None:
    async with asking(deployment.application, "channels=kept") as response:
        await opened(response)
        assert response.status == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert "no-store" in response.headers["cache-control"]
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["access-control-allow-origin"] == "*"
        assert response.statement == {"kept": {"recovered": False, "was_recovering": False, "replayed": 0}}
        first = re.match(r"retry: (\d+)\n\nid: (1\.\w{8}:0)\nevent: stream\n", response.text)
        assert first is not None
        assert 1_000 <= int(first[1]) <= 5_000
        assert response.headers["last-event-id"] == first[2]
        await deployment.publish(1, 2)
        await got(response, 2)
        epoch = first[2].removesuffix(":0")
        assert [(event.id, event.data) for event in response.messages] == [
            (f"{epoch}:{number}", {"event": "n", "channel": "kept", "data": str(number)}) for number in (1, 2)
        ]
    assert deployment.hub.statistics()["connections.now"] == 0
    assert deployment.hub.statistics()["sse.opened"] == 1


async def test_data_of_an_event_is_the_frame_of_a_websocket(deployment: Deployment) -> None:
    async with asking(deployment.application, "channels=plain") as response:
        await opened(response)
        await deployment.publish(1, channel="plain")
        await got(response, 1)
        assert response.text.endswith('\n\ndata: {"event":"n","channel":"plain","data":"1"}\n\n')


async def test_channel_without_history_has_no_position(deployment: Deployment) -> None:
    async with asking(deployment.application, "channels=kept,plain") as response:
        await opened(response)
        assert re.fullmatch(r"1\.\w{8}:0\.-", response.cursor)
        await deployment.publish(1, channel="plain")
        await deployment.publish(2)
        await got(response, 2)
        assert [event.id for event in response.messages] == [None, response.cursor]
        assert response.cursor.endswith(":1.-")


async def test_streams_of_one_channel_share_encoded_bytes(deployment: Deployment) -> None:
    async with (
        asking(deployment.application, "channels=kept") as one,
        asking(deployment.application, "channels=kept") as two,
    ):
        await opened(one)
        await opened(two)
        for number in range(50):
            await deployment.publish(number)
        await got(one, 50)
        await got(two, 50)
        assert one.text.partition("event: stream")[2] == two.text.partition("event: stream")[2]
        assert one.numbers == list(range(50))


async def test_streams_count_as_subscribers(deployment: Deployment) -> None:
    async with asking(deployment.application, "channels=kept,plain") as response:
        await opened(response)
        assert (await deployment.hub.engine.ask(lambda queries: queries.channel(APP, "plain"))).subscriptions == 1
    assert (await deployment.hub.engine.ask(lambda queries: queries.channel(APP, "plain"))).subscriptions == 0


# -- coming back -------------------------------------------------------------------------------------------------------


async def test_reconnect_gets_exactly_the_missed_events_and_then_new_ones(deployment: Deployment) -> None:
    async with asking(deployment.application, "channels=kept") as first:
        await opened(first)
        await deployment.publish(1, 2)
        await got(first, 2)
    await deployment.publish(3, 4, 5)
    async with asking(deployment.application, "channels=kept", last_event_id=first.cursor) as second:
        await opened(second)
        assert second.statement == {"kept": {"recovered": True, "was_recovering": True, "replayed": 3}}
        assert second.headers["last-event-id"] == first.cursor, "what follows comes after what it had"
        await deployment.publish(6)
        await got(second, 4)
    assert first.numbers + second.numbers == [1, 2, 3, 4, 5, 6]
    assert deployment.hub.statistics()["sse.recovered"] == 1


async def test_reconnect_after_any_event_loses_and_repeats_nothing(deployment: Deployment) -> None:
    """Two channels; the cursor of each event in turn, also of the statement and of replayed ones."""
    query = "channels=kept-a,kept-b"
    async with asking(deployment.application, query) as whole:
        await opened(whole)
        for number in range(1, 9):
            await deployment.publish(number, channel="kept-a" if number % 3 else "kept-b")
        await got(whole, 8)
    cursors = [event.id for event in whole.events]
    for seen, cursor in enumerate(cursors):
        assert cursor is not None
        async with asking(deployment.application, query, last_event_id=cursor) as again:
            await opened(again)
            assert all(told["recovered"] for told in again.statement.values())
            await got(again, 8 - seen)
            assert sorted(whole.numbers[:seen] + again.numbers) == list(range(1, 9))
            for middle, event in enumerate(again.events):
                async with asking(deployment.application, query, last_event_id=str(event.id)) as third:
                    await opened(third)
                    await got(third, 8 - seen - middle)
                    assert sorted(whole.numbers[:seen] + again.numbers[:middle] + third.numbers) == list(range(1, 9))


async def test_stream_from_before_the_first_event_can_resume(deployment: Deployment) -> None:
    async with asking(deployment.application, "channels=kept") as first:
        await opened(first)
    await deployment.publish(1)
    async with asking(deployment.application, "channels=kept", last_event_id=first.cursor) as second:
        await got(second, 1)
        assert second.statement["kept"]["recovered"]
        assert second.numbers == [1]


async def test_reconnect_during_publishing_loses_and_repeats_nothing(deployment: Deployment) -> None:
    """Hang up and return at every moment of a busy channel: in the end, 1..N."""
    stop = 300
    publishing = asyncio.create_task(_publish_each(deployment, stop))
    numbers: list[int] = []
    cursor = None
    while len(numbers) < stop:
        headers = {} if cursor is None else {"last_event_id": cursor}
        async with asking(deployment.application, "channels=kept&last_event_id=earliest", **headers) as response:
            await opened(response)
            had = len(numbers)
            await until(lambda response=response, had=had: had + len(response.numbers) >= min(had + 7, stop))
            assert cursor is None or response.statement["kept"]["recovered"]
        numbers += response.numbers
        cursor = response.cursor
    await publishing
    assert numbers == list(range(1, stop + 1))


async def _publish_each(deployment: Deployment, stop: int) -> None:
    for number in range(1, stop + 1):
        await deployment.publish(number)
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("cursor", "channel", "reason"),
    [
        (lambda epoch: "1.elsewher:1", "short", "epoch_changed"),
        (lambda epoch: f"1.{epoch}:99", "short", "epoch_changed"),
        (lambda epoch: f"1.{epoch}:1", "short", "position_expired"),
        (lambda epoch: "1.-", "short", "not_enabled"),
        (lambda epoch: f"1.{epoch}:1", "plain", "not_enabled"),
        (lambda epoch: f"1.{epoch}:4.{epoch}:4", "short", "invalid_cursor"),
        (lambda epoch: "garbage", "short", "invalid_cursor"),
    ],
)
async def test_failed_recovery_is_stated_and_new_events_follow(
    deployment: Deployment, cursor: Callable[[str], str], channel: str, reason: str
) -> None:
    await deployment.publish(1, 2, 3, 4, 5, 6, channel="short")
    _, top = await deployment.hub.engine.ask(lambda queries: queries.read(APP, "short", 0, 1))
    assert top is not None
    async with asking(deployment.application, f"channels={channel}", last_event_id=cursor(top.epoch)) as response:
        await opened(response)
        told = {"recovered": False, "was_recovering": True, "replayed": 0, "reason": reason}
        assert response.statement == {channel: told}
        await deployment.publish(7, channel=channel)
        await got(response, 1)
        assert response.numbers == [7], "nothing of a past that is not whole"
    assert deployment.hub.statistics()[f"sse.lost.{reason}"] == 1
    if channel == "short":
        async with asking(deployment.application, "channels=short", last_event_id=response.cursor) as again:
            await opened(again)
            assert again.statement["short"]["recovered"], "the loss was told once"


async def test_recovery_over_the_limit_is_refused_as_a_whole(deployment: Deployment) -> None:
    async with asking(deployment.application, "channels=kept") as first:
        await opened(first)
    await deployment.publish(*range(501))
    async with asking(deployment.application, "channels=kept", last_event_id=first.cursor) as second:
        await opened(second)
        assert second.statement["kept"] == {
            "recovered": False,
            "was_recovering": True,
            "replayed": 0,
            "reason": "too_many",
        }


async def test_channels_of_one_stream_recover_independently(deployment: Deployment) -> None:
    await deployment.publish(1, 2)
    async with asking(deployment.application, "channels=kept,short") as first:
        await opened(first)
        await deployment.publish(3)
        await deployment.publish(1, 2, 3, 4, 5, channel="short")
        await got(first, 6)
    cursor = next(event.id for event in first.messages if event.number == 3 and event.data["channel"] == "kept")
    async with asking(deployment.application, "channels=kept,short", last_event_id=str(cursor)) as second:
        await opened(second)
        assert second.statement["kept"]["recovered"]
        assert second.statement["short"]["reason"] == "position_expired"


async def test_long_recovery_waits_for_a_slow_reader(deployment: Deployment) -> None:
    async with asking(deployment.application, "channels=kept") as first:
        await opened(first)
    await deployment.publish(*range(1, 401), pad=2_000)
    async with asking(deployment.application, "channels=kept", last_event_id=first.cursor) as second:
        await opened(second)
        second.reads.clear()
        await deployment.publish(401)
        second.reads.set()
        await got(second, 401)
        assert second.numbers == list(range(1, 402))
        assert second.statement["kept"]["replayed"] == 400


# -- first visits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("channels=kept", []),
        ("channels=kept&rewind=2", [4, 5]),
        ("channels=kept&rewind=100000", [1, 2, 3, 4, 5]),
        ("channels=kept&last_event_id=earliest", [1, 2, 3, 4, 5]),
        ("channels=rewound", [4, 5]),
        ("channels=rewound&rewind=1", [5]),
        ("channels=short&last_event_id=earliest", [3, 4, 5]),
        ("channels=plain&rewind=2", []),
    ],
)
async def test_first_visit_begins_at_its_rewind(deployment: Deployment, query: str, numbers: list[int]) -> None:
    channel = query.partition("&")[0].partition("=")[2]
    await deployment.publish(1, 2, 3, 4, 5, channel=channel)
    async with asking(deployment.application, query) as response:
        await opened(response)
        assert response.statement[channel]["replayed"] == len(numbers)
        await deployment.publish(6, channel=channel)
        await got(response, len(numbers) + 1)
        assert response.numbers == [*numbers, 6]


@pytest.mark.parametrize("kept", [[], [1, 2]])
async def test_earliest_misses_no_event_that_is_published_meanwhile(deployment: Deployment, kept: list[int]) -> None:
    """There is an await between the look at what is kept and the attach: publish in it."""
    await deployment.publish(*kept)
    ask = deployment.hub.engine.ask

    async def ask_and_publish(query: Any) -> Any:
        answer = await ask(query)
        await deployment.publish(3, 4)
        return answer

    replaced: Any = deployment.hub.engine
    replaced.ask = ask_and_publish
    async with asking(deployment.application, "channels=kept&last_event_id=earliest") as response:
        await got(response, len(kept) + 2)
        assert response.numbers == [*kept, 3, 4]


@pytest.mark.parametrize(
    ("query", "rewind"),
    [
        ("channels=kept&rewind=5", interface.Rewind(5, 0)),
        ("channels=kept&rewind=501", interface.Rewind(500, 0)),
        ("channels=rewound", interface.Rewind(2, 0)),
        ("channels=kept", None),
        ("channels=kept&last_event_id=earliest", interface.Rewind(500, 0)),
    ],
)
async def test_rewind_is_a_number_of_entries_of_any_age(
    deployment: Deployment, query: str, rewind: interface.Rewind | None
) -> None:
    scope = {"method": "GET", "headers": [], "query_string": query.encode()}
    request = requests.asked(scope, requests.head(scope), max_channel_name=200)
    [asked] = (await recovery.asked(deployment.hub, APP, RULES, request)).values()
    assert asked.recovery is not None
    assert asked.recovery.request.rewind == rewind


async def test_earliest_begins_at_the_position_of_a_channel_without_entries(deployment: Deployment) -> None:
    async with asking(deployment.application, "channels=kept") as first:
        await opened(first)
    async with asking(deployment.application, "channels=kept&last_event_id=earliest") as second:
        await opened(second)
        assert second.cursor == first.cursor
        await deployment.publish(1)
        await got(second, 1)


async def test_rewind_can_be_resumed_in_its_middle(deployment: Deployment) -> None:
    await deployment.publish(1, 2, 3, 4)
    async with asking(deployment.application, "channels=kept&rewind=3") as first:
        await got(first, 3)
    start, *after_each = [event.id for event in first.events]
    for cursor, missing in ((start, [2, 3, 4]), (after_each[1], [4])):
        async with asking(deployment.application, "channels=kept&rewind=3", last_event_id=str(cursor)) as again:
            await got(again, len(missing))
            assert again.numbers == missing


async def test_cache_channel_begins_with_its_event(deployment: Deployment) -> None:
    async with asking(deployment.application, "channels=cache-price") as empty:
        await got(empty, 1)
        assert empty.messages[0].data["event"] == "pusher:cache_miss"
    await deployment.publish(7, channel="cache-price")
    async with asking(deployment.application, "channels=cache-price") as response:
        await got(response, 1)
        assert response.numbers == [7]


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_stream_ends_after_its_life_and_resumes_in_the_next_one(deployment: Deployment) -> None:
    application = deployment.serve(life=0.1)
    async with asking(application, "channels=kept") as first:
        await until(lambda: first.complete, "the end")
    await deployment.publish(1)
    async with asking(application, "channels=kept", last_event_id=first.cursor) as second:
        await got(second, 1)
        assert second.numbers == [1]
    assert deployment.hub.statistics()["sse.ended.life"] >= 1


async def test_silent_stream_gets_a_heartbeat(deployment: Deployment) -> None:
    async with asking(deployment.serve(heartbeat=0.02), "channels=kept") as response:
        await until(lambda: response.text.count(": hb\n\n") >= 3, "heartbeats")
        assert len(response.events) == 1


async def test_stream_ends_when_its_token_expires(deployment: Deployment) -> None:
    token = deployment.token("private-kept", seconds=1)
    async with asking(deployment.application, f"channels=private-kept&token={token}") as response:
        await opened(response)
        await until(lambda: response.complete, "the end")


@pytest.mark.parametrize("buffer", [65_536])
async def test_slow_reader_is_disconnected(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "CLOSE_SLOW_S", 0.0)
    async with (
        asking(deployment.application, "channels=kept") as stalled,
        asking(deployment.application, "channels=kept") as ok,
    ):
        await opened(stalled)
        await opened(ok)
        stalled.reads.clear()
        await deployment.publish(1)
        for number in range(2, 42):
            await deployment.publish(number, pad=4_000)
        await until(lambda: deployment.hub.statistics().get("closed.slow") == 1, "the eviction")
        await got(ok, 41)
        await until(lambda: deployment.hub.statistics()["connections.now"] == 1, "it is forgotten")


async def test_closed_stream_is_forgotten_at_once(deployment: Deployment) -> None:
    async with asking(deployment.application, "channels=kept") as response:
        await opened(response)
        response.hang_up()
        await until(lambda: deployment.hub.statistics()["connections.now"] == 0, "it is forgotten")
    assert deployment.hub.statistics()["closing.now"] == 0


async def test_server_stop_ends_all_streams_and_refuses_new_ones(deployment: Deployment) -> None:
    async with asking(deployment.application, "channels=kept") as response:
        await opened(response)
        deployment.application.stop()
        await until(lambda: response.complete, "the end")
    async with asking(deployment.application, "channels=kept") as late:
        await until(lambda: late.complete, "the refusal")
        assert (late.status, late.json["code"]) == (503, "restarting")


async def test_gap_ends_the_stream_and_the_next_one_recovers(deployment: Deployment) -> None:
    async with asking(deployment.application, "channels=kept") as first:
        await opened(first)
        deployment.hub._on_gap("test", None)
        await until(lambda: first.complete, "the end")
    await deployment.publish(1)
    async with asking(deployment.application, "channels=kept", last_event_id=first.cursor) as second:
        await got(second, 1)
        assert second.statement["kept"]["recovered"]


async def test_disabled_application_ends_its_streams_and_refuses_reconnects(deployment: Deployment) -> None:
    async with asking(deployment.application, "channels=kept") as response:
        await opened(response)
        deployment.put(enabled=False)
        deployment.hub.close_application(APP, 4003, "This application is disabled")
        await until(lambda: response.complete, "the end")
        assert response.text.endswith(": This application is disabled\n\n")
    async with asking(deployment.application, "channels=kept") as late:
        await until(lambda: late.complete)
        assert (late.status, late.json["code"]) == (
            503,
            "application_disabled",
        )  # it may be enabled again: the client retries


async def test_interrupted_recovery_is_stated_in_the_stream(deployment: Deployment) -> None:
    """The engine gives up in the middle: what is said then is the present's place."""
    async with asking(deployment.application, "channels=kept") as first:
        await opened(first)
    await deployment.publish(*range(1, 301), pad=2_000)

    attach = deployment.hub.engine.attach

    def lose_the_rest(wanted: interface.SubscribeRequest, ready: interface.Ready) -> None:
        if wanted.history is not None and wanted.history.continued:
            epoch = first.cursor.split(".")[1].split(":")[0]
            lost = interface.RecoveryResult(interface.Position(epoch, 300), reason="position_expired", complete=True)
            ready(interface.SubscribeResult(replayed=lost))
        else:
            attach(wanted, ready)

    replaced: Any = deployment.hub.engine
    replaced.attach = lose_the_rest
    async with asking(deployment.application, "channels=kept", last_event_id=first.cursor) as second:
        await until(lambda: [event for event in second.events[1:] if event.name == "stream"], "the second statement")
        told = [event for event in second.events if event.name == "stream"][-1]
        assert told.data["channels"]["kept"]["reason"] == "position_expired"
        assert str(told.id).endswith(":300")
        await deployment.publish(301)
        await until(lambda: second.numbers[-1] == 301, "the present")
