"""What every engine with streams must do, written against the interface alone. See `conformance`."""

from __future__ import annotations

import asyncio
from typing import Any

from fanfare.engine import interface
from tests.unit.engine.conformance import Hire
from tests.unit.engine.workers import APP, Worker

Kind = interface.Kind
State = interface.StreamState
KEPT = interface.Retention(size=100, seconds=60)


def write(after: int, seq: int, size: int, stream: str = "s", channel: str = "c", **more: Any) -> interface.StreamWrite:
    return interface.StreamWrite(APP, channel, stream, after, seq, size, **more)


def opening(stream: str = "s", channel: str = "c", **more: Any) -> interface.StreamWrite:
    return write(0, 0, 0, stream, channel, head=b"head", body=b"open", **more)


def end(after: int, size: int, state: State = State.DONE, stream: str = "s", **more: Any) -> interface.StreamWrite:
    return write(after, after, size, stream, body=b"whole", state=state, seconds=60, **more)


async def put(worker: Worker, *writes: interface.StreamWrite) -> list[interface.StreamReceipt]:
    return await asyncio.to_thread(worker.engine.write_streams, writes)


async def stream(worker: Worker, stream_id: str = "s", channel: str = "c") -> interface.Streamed | None:
    return await worker.engine.ask(lambda queries: queries.stream(APP, channel, stream_id))


class Streams:
    """For the test class of an engine, beside `Conformance`."""

    async def test_pieces_of_a_stream_reach_every_worker_in_order(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        receipts = await put(
            one, opening(), write(0, 1, 2, part=b"he", body=b"1"), write(1, 3, 5, part=b"llo", body=b"2"), end(3, 5)
        )
        assert [receipt.done for receipt in receipts] == [True] * 4
        for worker in (one, two):
            await worker.got("c", b"open", b"1", b"2", b"whole")
            assert [(entry.kind, entry.user_id, entry.offset) for entry in worker.entries] == [
                (interface.Kind.STREAM, "s", None),
                (interface.Kind.STREAM, "s", None),
                (interface.Kind.STREAM, "s", None),
                (interface.Kind.STREAM_END, "s", None),
            ]

    async def test_subscriber_gets_the_parts_of_open_streams_exactly_where_delivery_begins(self, hire: Hire) -> None:
        writing, reading = await hire(), await hire()
        await put(writing, opening())
        numbers = range(1, 60)

        async def append() -> None:
            for number in numbers:
                await put(writing, write(number - 1, number, number, part=b"x", body=b"%d" % number))

        seen = []

        def ready(answer: interface.SubscribeResult | interface.Refused) -> None:
            assert isinstance(answer, interface.SubscribeResult)
            [found] = answer.streams
            delivered = [body for body in reading.bodies("c") if body != b"open"]
            seen.append((len(found.parts), found.seq, len(delivered)))

        appending = asyncio.ensure_future(append())
        while not appending.done():
            answered = len(seen)
            reading.engine.attach(interface.SubscribeRequest(APP, "c", streams=True), ready)
            await reading.until(lambda answered=answered: len(seen) > answered, "the answer")
        await appending
        assert all(parts == seq == delivered for parts, seq, delivered in seen), seen

    async def test_write_is_done_once_and_answers_with_the_stream_as_it_is(self, hire: Hire) -> None:
        worker = await hire()
        piece = write(0, 2, 4, part=b"abcd", body=b"1")
        receipts = await put(worker, opening(), piece, piece, write(5, 6, 9, part=b"late", body=b"2"), opening())
        assert receipts[2:] == [interface.StreamReceipt(False, State.OPEN, 2, 4)] * 3
        assert await stream(worker) == interface.Streamed("s", State.OPEN, 2, 4, b"head", (b"abcd",))
        await worker.got("c", b"open", b"1")
        [unknown] = await put(worker, write(0, 1, 1, "another", part=b"x", body=b"x"))
        assert unknown == interface.StreamReceipt(False, None)

    async def test_ended_stream_is_one_entry_of_the_history(self, hire: Hire) -> None:
        worker = await hire()
        await worker.publish("c", b"before", retention=KEPT)
        await put(worker, opening(), write(0, 1, 2, part=b"hi", body=b"1"), end(1, 2, retention=KEPT))
        await worker.publish("c", b"after", retention=KEPT)
        entries, _ = await worker.read("c", 0, 10)
        assert [(entry.offset, entry.kind, entry.body) for entry in entries] == [
            (1, interface.Kind.EVENT, b"before"),
            (2, interface.Kind.STREAM_END, b"whole"),
            (3, interface.Kind.EVENT, b"after"),
        ]
        assert await stream(worker) == interface.Streamed("s", State.DONE, 1, 2, b"head", (), b"whole", 2)
        receipts = await put(worker, write(1, 2, 3, part=b"!", body=b"2"), opening())
        assert receipts == [interface.StreamReceipt(False, State.DONE, 1, 2)] * 2

    async def test_ended_stream_without_history_is_forgotten_after_its_time(self, hire: Hire) -> None:
        worker = await hire()
        await put(worker, opening(), end(0, 0)._replace(seconds=0))
        await worker.got("c", b"open", b"whole")
        found = await stream(worker)
        assert found is None or found.state is State.DONE

    async def test_interrupted_stream_is_opened_again_and_has_one_entry_in_the_history(self, hire: Hire) -> None:
        worker = await hire()
        await put(worker, opening(), write(0, 1, 2, part=b"he", body=b"1"))
        await put(worker, end(1, 2, State.INTERRUPTED, retention=KEPT))
        again = write(1, 1, 2, head=b"head", part=b"he", body=b"again", replaces=True)
        receipts = await put(worker, again._replace(after=0), again, write(1, 2, 5, part=b"llo", body=b"2"))
        assert [receipt.done for receipt in receipts] == [False, True, True]
        assert await stream(worker) == interface.Streamed("s", State.OPEN, 2, 5, b"head", (b"he", b"llo"), None, 1)
        await put(worker, end(2, 5, retention=KEPT)._replace(body=b"all"))
        entries, _ = await worker.read("c", 0, 10)
        assert [(entry.offset, entry.body) for entry in entries] == [(1, b""), (2, b"all")]

    async def test_replaced_text_drops_the_parts_before(self, hire: Hire) -> None:
        worker = await hire()
        await put(worker, opening(), write(0, 4, 4, part=b"once", body=b"1"))
        await put(worker, write(4, 1, 5, part=b"again", body=b"2", replaces=True))
        assert await stream(worker) == interface.Streamed("s", State.OPEN, 1, 5, b"head", (b"again",))

    async def test_lapsed_streams_are_those_whose_producer_is_silent(self, hire: Hire) -> None:
        worker = await hire()

        async def lapsed() -> list[interface.StreamName]:
            return await worker.engine.ask(lambda queries: queries.lapsed_streams(10))

        await put(worker, opening("silent", seconds=-1), opening("alive"), opening("renewed", seconds=-1))
        await put(worker, write(0, 0, 0, "renewed"))
        assert await lapsed() == [interface.StreamName(APP, "c", "silent")]
        await put(worker, end(0, 0, State.INTERRUPTED, "silent"))
        assert await lapsed() == []

    async def test_open_streams_are_limited_in_a_channel_and_in_an_application(self, hire: Hire) -> None:
        worker = await hire()
        limits: dict[str, Any] = {"max_in_channel": 2, "max_in_app": 3}
        receipts = await put(
            worker,
            opening("1", **limits),
            opening("2", **limits),
            opening("3", **limits),
            opening("4", "d", **limits),
            opening("5", "d", **limits),
        )
        assert [(receipt.done, receipt.limit, receipt.actual) for receipt in receipts] == [
            (True, None, None),
            (True, None, None),
            (False, 2, 2),
            (True, None, None),
            (False, 3, 3),
        ]
        await put(worker, end(0, 0, stream="1"))
        [room] = await put(worker, opening("3", **limits))
        assert room.done

    async def test_parts_of_an_ended_stream_are_kept_where_the_write_says_so(self, hire: Hire) -> None:
        worker = await hire()
        await put(worker, opening(), write(0, 1, 1, part=b"x", body=b"1"), end(1, 1, keeps_parts=True))
        assert await stream(worker) == interface.Streamed("s", State.DONE, 1, 1, b"head", (b"x",), b"whole")


class Updates:
    """For the test class of an engine, beside `Conformance`."""

    async def test_updated_member_does_not_leave_and_later_members_see_the_new_info(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        await one.join("presence-c", "ann", "1.1", info='{"a":1}')
        await two.join("presence-c", "ann", "1.2")
        update = one.engine.update_member
        assert await asyncio.to_thread(update, APP, "presence-c", "ann", '{"a":2}') is True
        assert await asyncio.to_thread(update, APP, "presence-c", "ben", "{}") is False
        for worker in (one, two):
            await worker.until(lambda worker=worker: b'{"a":2}' in worker.bodies("presence-c"), "the update")
            kinds = [(entry.kind, entry.user_id) for entry in worker.entries if entry.channel == "presence-c"]
            assert kinds == [(interface.Kind.MEMBER_ADDED, "ann"), (interface.Kind.MEMBER_UPDATED, "ann")]
        assert await two.members("presence-c") == [interface.Member("ann", '{"a":2}')]


class Openings:
    """For the test class of an engine, beside `Conformance`."""

    async def test_channel_that_kept_nothing_has_a_position_from_which_a_subscriber_recovers(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        opened = await asyncio.to_thread(one.engine.open_channel, APP, "c")
        assert opened.offset == 0
        assert await asyncio.to_thread(two.engine.open_channel, APP, "c") == opened
        await two.publish("c", b"1", retention=KEPT)
        assert await asyncio.to_thread(one.engine.open_channel, APP, "c") == opened._replace(offset=1)
        answer = await two.attach("c", history=interface.RecoveryRequest(after=opened))
        assert isinstance(answer, interface.SubscribeResult)
        assert answer.replayed is not None
        assert (answer.replayed.reason, [entry.body for entry in answer.replayed.entries]) == (None, [b"1"])


class Leases:
    """Members with a time to live. For the test class of an engine, beside `Conformance`."""

    async def test_member_without_renewal_joins_once_and_leaves_once(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        for worker in (one, two):
            worker.engine.listen(APP, "presence-c", True)
        assert await lease(one, "bot", '{"a":1}', seconds=60) is True
        assert await lease(two, "bot", None, seconds=0.2) is False
        for worker in (one, two):
            await worker.until(lambda worker=worker: len(changes(worker)) == 2, "the member has left")
            assert changes(worker) == [(Kind.MEMBER_ADDED, "bot", b'{"a":1}'), (Kind.MEMBER_REMOVED, "bot", b"")]
        assert await one.members("presence-c") == []
        assert await lease(one, "bot", None, seconds=60) is True
        assert await one.members("presence-c") == [interface.Member("bot", "null")]

    async def test_renewal_with_another_info_is_an_update(self, hire: Hire) -> None:
        worker = await hire()
        worker.engine.listen(APP, "presence-c", True)
        for info in ('{"a":1}', '{"a":1}', None, '{"a":2}'):
            await lease(worker, "bot", info, seconds=60)
        await worker.until(lambda: len(changes(worker)) == 2, "the update")
        assert changes(worker)[1] == (Kind.MEMBER_UPDATED, "bot", b'{"a":2}')
        assert await worker.members("presence-c") == [interface.Member("bot", '{"a":2}')]

    async def test_member_leaves_with_the_last_of_lease_and_connection(self, hire: Hire) -> None:
        worker = await hire()
        await worker.join("presence-c", "ann", "1.1", info='{"a":1}')
        assert await lease(worker, "ann", None, seconds=60) is False
        worker.engine.leave(APP, "presence-c", "1.1")
        release = worker.engine.release_member
        assert await worker.members("presence-c") == [interface.Member("ann", '{"a":1}')]
        assert await asyncio.to_thread(release, APP, "presence-c", "ann") is True
        assert await asyncio.to_thread(release, APP, "presence-c", "ann") is False
        await worker.until(lambda: len(changes(worker)) == 2, "the member has left")
        assert await worker.members("presence-c") == []
        assert [kind for kind, _, _ in changes(worker)] == [Kind.MEMBER_ADDED, Kind.MEMBER_REMOVED]

    async def test_lease_outlives_the_worker_that_wrote_it(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        two.engine.listen(APP, "presence-c", True)
        await lease(one, "bot", None, seconds=60)
        await one.engine.close()
        assert await two.members("presence-c") == [interface.Member("bot", "null")]
        assert await lease(two, "bot", None, seconds=0) is False
        await two.until(lambda: len(changes(two)) == 2, "the member has left")

    async def test_lease_is_refused_where_the_channel_is_full(self, hire: Hire) -> None:
        worker = await hire()
        assert await lease(worker, "a", None, seconds=60, limit=1) is True
        assert await lease(worker, "a", None, seconds=60, limit=1) is False
        refused = await lease(worker, "b", None, seconds=60, limit=1)
        assert isinstance(refused, interface.Refused)
        assert (refused.code, refused.limit, refused.actual) == ("member_limit", 1, 1)


async def lease(
    worker: Worker, user_id: str, info: str | None, *, seconds: float, limit: int | None = None
) -> bool | interface.Refused:
    return await asyncio.to_thread(worker.engine.lease_member, APP, "presence-c", user_id, info, seconds, limit=limit)


def changes(worker: Worker) -> list[tuple[interface.Kind, str | None, bytes]]:
    return [(entry.kind, entry.user_id, entry.body) for entry in worker.entries if entry.channel == "presence-c"]


class Revisions:
    """For the test class of an engine, beside `Conformance`."""

    async def test_revised_message_keeps_its_place_and_a_notice_follows(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        receipts = await one.publish("c", b"1", b"2", b"3", retention=KEPT)
        second = receipts[1].position
        assert second is not None
        revision = interface.Revision(APP, "c", second, b"new", b"notice")
        assert await asyncio.to_thread(one.engine.revise, revision) == second._replace(offset=4)
        for worker in (one, two):
            await worker.until(lambda worker=worker: b"notice" in worker.bodies("c"), "the notice")
            assert worker.entries[-1].kind == interface.Kind.REVISED
        entries, top = await one.read("c", 0, 10)
        assert [(entry.offset, entry.body) for entry in entries] == [(1, b"1"), (2, b"new"), (3, b"3"), (4, b"notice")]
        assert top == second._replace(offset=4)

    async def test_message_that_is_not_kept_or_deleted_cannot_be_revised(self, hire: Hire) -> None:
        worker = await hire()
        [receipt] = await worker.publish("c", b"1", retention=KEPT)
        assert receipt.position is not None
        deletion = interface.Revision(APP, "c", receipt.position, b"", b"notice")

        async def revise(**changes: Any) -> interface.Position | None:
            return await asyncio.to_thread(worker.engine.revise, deletion._replace(**changes))

        assert await revise(channel="d") is None
        assert await revise(position=receipt.position._replace(offset=7)) is None
        assert await revise(position=receipt.position._replace(epoch="another")) is None
        assert await revise() is not None
        assert await revise() is None, "deleted"
        assert await revise(position=receipt.position._replace(offset=2)) is None, "a notice"
