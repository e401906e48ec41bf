"""The live tail over two workers on one real log."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from fanfare.console import filters, tails, watches
from fanfare.engine import interface
from fanfare.engine.local import engine as local_engine
from fanfare.hub import activity
from tests.harness import waiting
from tests.unit.console.workers import Worker, until_known


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Worker, Worker]]:
    one, two = await Worker(tmp_path / "engine", "one").start(), await Worker(tmp_path / "engine", "other").start()
    await until_known(one, two)
    yield one, two
    for worker in (one, two):
        await worker.hub.stop()


async def collect(page: tails.Page, wanted: Callable[[list[activity.Item]], bool]) -> list[activity.Item]:
    """The items of a page until they are the wanted ones."""
    found: list[activity.Item] = []
    async with asyncio.timeout(20):
        while not wanted(found):
            found += (await take(page, 1.0))["items"]
    return found


async def take(page: tails.Page, within_s: float) -> dict[str, Any]:
    line = await page.next(within_s)
    assert line is not None, "the page has ended"
    batch: dict[str, Any] = orjson.loads(line)
    return batch


async def watched(*workers: Worker) -> None:
    async def all_have_a_tap() -> bool:
        return all(worker.hub.activity.tap is not None for worker in workers)

    await waiting.until_async(all_have_a_tap, 10, "every worker has a tap")


def event(channel: str, name: str = "e", data: str = "{}") -> interface.Publication:
    body = orjson.dumps({"event": name, "channel": channel, "data": data})
    return interface.Publication("1", channel, body)


EVERYTHING = filters.parse({}, None)


async def test_page_sees_what_happens_in_other_workers(pair: tuple[Worker, Worker]) -> None:
    one, two = pair
    here = tails.Tails(one.hub, "one")
    watches.Watches(two.hub, "other")
    async with here.open(EVERYTHING) as page:
        await watched(one, two)
        connection = two.connect()
        two.hub.activity.refused("subscription", "wrong_signature", "Invalid signature", connection=connection)
        found = await collect(page, lambda items: any(item["type"] == "refusal" for item in items))
        assert {item["type"] for item in found} >= {activity.OPENED, activity.REFUSAL}
        assert next(item for item in found if item["type"] == "refusal")["socket"] == connection.socket_id

    async def no_tap_is_left() -> bool:
        return one.hub.activity.tap is None and two.hub.activity.tap is None

    await waiting.until_async(no_tap_is_left, 10, "the taps are gone when no page looks")


async def test_event_without_subscribers_is_seen_with_its_position(pair: tuple[Worker, Worker]) -> None:
    one, two = pair
    here = tails.Tails(one.hub, "one")
    async with here.open(filters.parse({"types": "events"}, None)) as page:
        await watched(one)

        async def published() -> list[activity.Item]:
            await two.hub.publish([event("orders", "created", '{"id":1}')])
            return list((await take(page, 0.2))["items"])

        found = (await waiting.until_async(published, 10, "the event is seen"))[0]
    assert (found["type"], found["channel"], found["event"], found["data"]) == (
        "event",
        "orders",
        "created",
        '{"id":1}',
    )
    assert found["entry"].startswith("0:")
    assert abs(found["at"] - time.time()) < 60


async def test_pages_with_equal_filters_share_one_tail(pair: tuple[Worker, Worker]) -> None:
    one, _ = pair
    here = tails.Tails(one.hub, "one")
    async with here.open(EVERYTHING) as first, here.open(filters.parse({}, None)) as second:
        assert here.count == 1
        await watched(one)
        one.connect()
        for page in (first, second):
            await collect(page, lambda items: any(item["type"] == activity.OPENED for item in items))


async def test_busy_tail_is_a_sample_that_says_how_much_there_was(pair: tuple[Worker, Worker]) -> None:
    one, _ = pair
    here = tails.Tails(one.hub, "one")
    async with here.open(filters.parse({"types": "events"}, None)) as page:
        await watched(one)
        total, seen, shown = 2_000, 0, 0

        async def is_read() -> bool:  # the log is read from when the first scan began
            await one.hub.publish([event("probe")])
            return bool((await take(page, 0.2))["seen"])

        await waiting.until_async(is_read, 10, "the log is read")
        await one.hub.publish([event("busy", str(number)) for number in range(total)])
        async with asyncio.timeout(20):
            while seen < total:
                batch = await take(page, 1.0)
                seen += batch["seen"]
                shown += len(batch["items"])
                assert len(batch["items"]) <= watches.ITEMS_PER_TURN
        assert shown < total


@pytest.mark.parametrize("fields", [{"types": "events"}, {"types": "events,subscriptions", "channel": "busy*"}])
async def test_entries_beyond_a_turn_are_counted_without_decoding(
    pair: tuple[Worker, Worker], fields: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter of types or channels needs no body, so a burst costs the decoding of one turn's items."""
    here = tails.Tails(pair[0].hub, "one")
    decoded: list[bytes] = []
    monkeypatch.setattr(tails, "_decode", lambda _found, body: decoded.append(body))
    body = event("busy").body
    entries = [interface.Entry(n, interface.Kind.EVENT, "1", "busy", None, None, None, body) for n in range(1, 501)]
    tail = tails.Tail("x", filters.parse(fields, None))
    here._tails[tail.filter.key] = tail
    here._take(0, entries)
    batch = tail.buffer.take()
    assert batch is not None
    assert (len(batch["items"]), batch["seen"]) == (watches.ITEMS_PER_TURN, 500)
    assert len(decoded) == watches.ITEMS_PER_TURN


def entries_of(count: int, data: str = "{}") -> list[interface.Entry]:
    body = event("busy", data=data).body
    return [interface.Entry(n, interface.Kind.EVENT, "1", "busy", None, None, None, body) for n in range(1, count + 1)]


async def test_search_decodes_a_bounded_number_of_events_and_counts_the_others(pair: tuple[Worker, Worker]) -> None:
    """A turn that has its items decodes no more. Two searches share what may be decoded in a turn, and an event without
    the text is not decoded. `data` is in every body and in no item."""
    here = tails.Tails(pair[0].hub, "one")
    chosen = {text: filters.parse({"types": "events", "text": text}, None) for text in ("busy", "rare", "data")}
    found = {text: tails.Tail(text, filter_) for text, filter_ in chosen.items()}
    here._tails.update(found)
    total = tails.DECODED_PER_TURN + 100
    here._take(0, entries_of(total))
    assert found["rare"].buffer.take() is None
    batch = found["busy"].buffer.take()
    assert batch is not None
    assert batch["seen"] == len(batch["items"]) == watches.ITEMS_PER_TURN
    assert batch["unexamined"] == total - batch["seen"]
    batch = found["data"].buffer.take()
    assert batch is not None
    assert batch["seen"] == 0
    assert batch["unexamined"] == total - math.ceil(tails.DECODED_PER_TURN / 3)
    here._take(0, entries_of(3))
    batch = found["busy"].buffer.take()
    assert batch is not None
    assert (batch["seen"], batch.get("unexamined")) == (3, None)


async def test_batch_of_the_largest_events_is_bounded(pair: tuple[Worker, Worker]) -> None:
    here = tails.Tails(pair[0].hub, "one")
    tail = here._tails["x"] = tails.Tail("x", filters.parse({"types": "events"}, None))
    here._take(0, entries_of(watches.ITEMS_PER_TURN, "x" * 102_400))
    batch = tail.buffer.take()
    assert batch is not None
    assert batch["seen"] == watches.ITEMS_PER_TURN
    assert batch["items"][0]["bytes"] == 102_400
    assert len(orjson.dumps(batch)) < watches.BATCH_CHARACTERS + tails.DATA_CHARACTERS + 10_000


@pytest.mark.parametrize(
    ("kind", "more", "expected"),
    [
        (interface.Kind.STREAM_END, {"user_id": "s1"}, {"type": "stream end", "stream": "s1", "event": "e"}),
        (interface.Kind.REVISED, {}, {"type": "revision", "event": "e"}),
        (interface.Kind.MEMBER_UPDATED, {"user_id": "ann"}, {"type": "member", "user": "ann", "text": "updated"}),
        (interface.Kind.EVENT, {"body": b""}, {"type": "event", "text": "replaced or deleted later"}),
    ],
)
def test_entries_of_streams_revisions_and_members_have_their_own_words(
    kind: interface.Kind, more: dict[str, Any], expected: dict[str, str]
) -> None:
    entry = entries_of(1)[0]._replace(kind=kind.value, **more)
    found = tails.item(0, entry)
    assert expected.items() <= found.items()
    assert filters.parse({}, None).takes(found)
    assert kind in filters.parse({}, None).kinds


async def test_slow_page_gets_the_number_of_missed_items() -> None:
    tail = tails.Tail("x", EVERYTHING)
    page = tails.Page(tail)
    tail.pages.add(page)
    for _ in range(tails.QUEUED_BATCHES + 3):
        tail.put({"items": [{}], "seen": 5})
    assert await take(page, 1.0) == {"items": [{}], "seen": 5, "missed": 15, **tail.state()}
    page.end()
    for _ in range(tails.QUEUED_BATCHES - 1):
        assert await take(page, 0.0) == {"items": [{}], "seen": 5}
    assert await page.next(0.0) is None


async def test_slow_page_gets_the_state_that_a_missed_batch_told() -> None:
    tail = tails.Tail("x", EVERYTHING)
    page = tails.Page(tail)
    tail.pages.add(page)
    page.is_begun = tail.reads_log = True
    tail.put_state()
    for _ in range(tails.QUEUED_BATCHES):
        tail.put({"items": [{}], "seen": 5})
    assert await take(page, 1.0) == {"items": [{}], "seen": 5, "missed": 0, "reads_log": True, "missing": 0}


async def test_lease_that_is_not_renewed_ends(pair: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's worker that died renews nothing."""
    one, two = pair
    monkeypatch.setattr(watches, "LEASE_S", 0.3)
    watches.Watches(two.hub, "other")
    body = orjson.dumps({"id": "x", "to": "#tail-gone", "filter": EVERYTHING.to_json()})
    await one.hub.engine.append([interface.Publication("", watches.WATCH, body, interface.Kind.CONTROL)])
    await watched(two)

    async def is_over() -> bool:
        return two.hub.activity.tap is None

    await waiting.until_async(is_over, 10, "the lease is over")


async def test_more_filters_than_a_worker_serves_are_refused(pair: tuple[Worker, Worker], monkeypatch: Any) -> None:
    one, _ = pair
    monkeypatch.setattr(tails, "MOST_TAILS", 1)
    here = tails.Tails(one.hub, "one")
    async with here.open(EVERYTHING):
        with pytest.raises(tails.TooManyTails):
            async with here.open(filters.parse({"channel": "other"}, None)):
                pass


async def test_chosen_channel_is_traced_while_a_page_looks(pair: tuple[Worker, Worker]) -> None:
    one, two = pair
    here = tails.Tails(one.hub, "one")
    watches.Watches(two.hub, "other")
    async with here.open(filters.parse({"channel": "orders", "app": "1"}, None)):
        await watched(one, two)
        assert two.hub.recorder.is_traced("1", "orders")
        assert not two.hub.recorder.is_traced("1", "news")


async def test_reader_renews_the_interest_of_the_log(
    pair: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tails, "KEEP_S", 0.0)
    one, _ = pair
    consume, kept = one.hub.engine.consume, asyncio.Event()

    async def consume_transiently(*arguments: Any, **more: Any) -> interface.Consumer:
        assert more == {"transient": True}
        consumer = await consume(*arguments, **more)

        async def keep(_position: int) -> None:
            kept.set()

        monkeypatch.setattr(consumer, "keep", keep)
        return consumer

    monkeypatch.setattr(one.hub.engine, "consume", consume_transiently)
    async with tails.Tails(one.hub, "one").open(EVERYTHING):
        await asyncio.wait_for(kept.wait(), 30)


async def test_reader_that_meets_an_unexpected_error_reports_it_and_starts_again(
    pair: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = pair
    here = tails.Tails(one.hub, "one")
    takes = here._take
    failed: list[None] = []

    def fail_once(partition: int, entries: Sequence[interface.Entry]) -> None:
        if not failed:
            failed.append(None)
            raise RuntimeError("a fault")
        takes(partition, entries)

    monkeypatch.setattr(here, "_take", fail_once)
    async with here.open(EVERYTHING) as page:
        async with asyncio.timeout(30):
            while "problem" not in (batch := await take(page, 1.0)):
                continue
        assert batch["problem"] == "The log cannot be read: internal error"

        async def is_seen() -> bool:
            await one.hub.engine.append([event("after")])
            return any(item["channel"] == "after" for item in (await take(page, 1.0))["items"])

        await waiting.until_async(is_seen, 30, "an event of the reader that started again")


async def test_event_after_the_begin_of_a_tail_is_shown(pair: tuple[Worker, Worker]) -> None:
    """Also one whose filter wants other entries than the tails before it."""
    one, two = pair
    here = tails.Tails(one.hub, "one")
    watches.Watches(two.hub, "other")
    async with here.open(filters.parse({"types": "refusals"}, None)) as refusals:
        assert await refusals.begin(30) == {"reads_log": True, "missing": 0}
        async with here.open(filters.parse({"types": "events"}, None)) as page:
            assert await page.begin(30) == {"reads_log": True, "missing": 0}
            await two.hub.publish([event("orders")])
            assert [item["channel"] for item in await collect(page, bool)] == ["orders"]


async def test_item_of_another_worker_after_the_begin_is_shown(pair: tuple[Worker, Worker]) -> None:
    one, two = pair
    here = tails.Tails(one.hub, "one")
    watches.Watches(two.hub, "other")
    async with here.open(filters.parse({"types": "refusals"}, None)) as page:
        assert await page.begin(30) == {"reads_log": True, "missing": 0}
        two.hub.activity.refused("subscription", "wrong_signature", "Invalid signature")
        assert [item["type"] for item in await collect(page, bool)] == [activity.REFUSAL]


async def test_worker_that_does_not_confirm_is_missing_until_it_does(pair: tuple[Worker, Worker]) -> None:
    one, two = pair
    here = tails.Tails(one.hub, "one")
    async with here.open(EVERYTHING) as page:
        await watched(one)
        found = await page.begin(0.5)
        assert found["missing"] >= 1
        watches.Watches(two.hub, "other")
        async with asyncio.timeout(30):
            while (await take(page, 1.0)).get("missing") != 0:
                continue


async def test_log_that_is_not_read_any_more_is_reported(
    pair: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair
    here = tails.Tails(one.hub, "one")
    watches.Watches(two.hub, "other")

    def fail(_partition: int, _entries: Sequence[interface.Entry]) -> None:
        monkeypatch.undo()
        raise RuntimeError("a fault")

    async with here.open(EVERYTHING) as page:
        await page.begin(30)
        monkeypatch.setattr(here, "_take", fail)
        states: list[bool] = []
        async with asyncio.timeout(30):
            while states != [False, True]:
                states += [batch["reads_log"] for batch in [await take(page, 1.0)] if "reads_log" in batch]


async def test_problem_of_the_log_is_not_one_of_a_tail_that_needs_no_log(
    pair: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its page would show it until the connection is lost, because the state of that tail does not change."""
    one, two = pair
    here = tails.Tails(one.hub, "one")
    watches.Watches(two.hub, "other")

    def fail(_partition: int, _entries: Sequence[interface.Entry]) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(here, "_take", fail)
    async with here.open(EVERYTHING) as page, here.open(filters.parse({"types": "refusals"}, None)) as refusals:
        await refusals.begin(30)
        async with asyncio.timeout(30):
            while "problem" not in await take(page, 1.0):
                continue
        two.hub.activity.refused("subscription", "wrong_signature", "Invalid signature")
        async with asyncio.timeout(30):
            while not (batch := await take(refusals, 1.0))["items"]:
                assert "problem" not in batch


async def test_reader_that_ends_late_leaves_the_state_of_the_next_one(
    pair: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = pair
    here = tails.Tails(one.hub, "one")
    watches.Watches(two.hub, "other")
    cancelled, may_end, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
    consume = one.hub.engine.consume

    async def consume_slowly(*arguments: Any, **more: Any) -> interface.Consumer:
        monkeypatch.undo()
        consumer = await consume(*arguments, **more)

        async def end_late(_most: int, _within_s: float) -> Sequence[interface.Entry]:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
                await may_end.wait()
                ended.set()

        monkeypatch.setattr(consumer, "next", end_late)
        return consumer

    monkeypatch.setattr(one.hub.engine, "consume", consume_slowly)
    async with here.open(EVERYTHING) as page:
        assert (await page.begin(30))["reads_log"]
    async with asyncio.timeout(30):
        await cancelled.wait()
    async with here.open(EVERYTHING) as page:
        assert (await page.begin(30))["reads_log"]
        may_end.set()
        async with asyncio.timeout(30):
            await ended.wait()
        assert len(here._reading) == one.hub.engine.partitions


async def test_log_is_read_again_after_a_move_to_another_store(
    pair: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new store may have more partitions."""
    one, two = pair
    here = tails.Tails(one.hub, "one")
    watches.Watches(two.hub, "other")
    read: set[int] = set()

    class Store:
        partitions = 3

        def __getattr__(self, name: str) -> Any:
            return getattr(old, name)

        async def consume(self, name: str, partition: int, *arguments: Any, **more: Any) -> interface.Consumer:
            read.add(partition)
            return await old.consume(name, 0, *arguments, **more)

    old = one.hub.engine
    async with here.open(EVERYTHING) as page:
        await page.begin(30)
        monkeypatch.setattr(one.hub, "engine", Store())
        async with asyncio.timeout(30):
            while read != {0, 1, 2}:
                await asyncio.sleep(0.01)
        monkeypatch.undo()


async def test_page_is_not_live_while_the_worker_goes_over_to_another_store(tmp_path: Path) -> None:
    worker = await Worker(tmp_path / "old").start()
    await until_known(worker)
    here = tails.Tails(worker.hub, "one")
    async with here.open(EVERYTHING) as page:
        assert await page.begin(30) == {"reads_log": True, "missing": 0}
        await worker.hub.go_over(local_engine.LocalEngine(tmp_path / "new"))
        here.resume()
        states: list[dict[str, Any]] = []
        async with asyncio.timeout(30):
            while not states or states[-1] != {"reads_log": True, "missing": 0}:
                batch = await take(page, 1.0)
                states += [{name: batch[name] for name in ("reads_log", "missing")}] if "reads_log" in batch else []
        assert {"reads_log": False, "missing": 1} in states
        await worker.hub.publish([event("after")])
        assert [item["channel"] for item in await collect(page, bool)] == ["after"]
    await worker.hub.stop()


async def test_pages_get_one_encoding_of_a_batch(pair: tuple[Worker, Worker]) -> None:
    one, _ = pair
    here = tails.Tails(one.hub, "one")
    async with here.open(EVERYTHING) as first, here.open(EVERYTHING) as second:
        next(iter(here._tails.values())).put({"items": [], "seen": 1})
        assert await first.next(30) is await second.next(30)


async def test_many_pages_get_half_as_many_batches(
    pair: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tails.Tails(pair[0].hub, "one")
    monkeypatch.setattr(tails, "CROWD", 1)
    async with here.open(EVERYTHING):
        assert here._turn_s == watches.TURN_S
        async with here.open(EVERYTHING):
            assert here._turn_s == 2 * watches.TURN_S
