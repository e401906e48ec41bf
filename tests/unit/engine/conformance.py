"""What every engine must do, written against the interface alone.

A test class of an engine inherits `Conformance` and provides the fixture `hire`, which opens one more worker of the
same deployment.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import ANY

import pytest

from fanfare.engine import errors, interface
from tests.unit.engine.workers import APP, Worker, soon

Hire = Callable[[], Awaitable[Worker]]
KEPT = interface.Retention(size=100, seconds=60)


class Conformance:
    """`hire()` opens one more worker of the same deployment; all are closed after the test."""

    # -- the log -------------------------------------------------------------------------------------------------------

    async def test_publication_reaches_every_worker_and_its_own(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        await one.publish("news", b"a")
        await one.got("news", b"a")
        await two.got("news", b"a")

    async def test_all_workers_see_one_order(self, hire: Hire) -> None:
        workers = [await hire() for _ in range(3)]
        await asyncio.gather(
            *(
                worker.publish("news", f"{index}-{n}".encode())
                for n in range(50)
                for index, worker in enumerate(workers)
            )
        )
        for worker in workers:
            await worker.until(lambda worker=worker: len(worker.entries) == 150, "all entries")
        assert workers[0].entries == workers[1].entries == workers[2].entries
        assert [entry.id for entry in workers[0].entries] == sorted(entry.id for entry in workers[0].entries)

    async def test_publications_of_one_call_are_adjacent_and_in_order(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        await asyncio.gather(*(worker.publish("c", b"1", b"2", b"3") for worker in (one, two) for _ in range(20)))
        await one.until(lambda: len(one.entries) == 120, "all entries")
        assert one.bodies("c") == [b"1", b"2", b"3"] * 40

    async def test_entries_of_other_channels_are_not_delivered(self, hire: Hire) -> None:
        """From the answer to a subscription on all are, and after the last subscriber left none is."""
        one, two = await hire(), await hire()
        two.engine.set_subscribers(APP, "subscribed", 1)
        assert isinstance(await two.attach("subscribed"), interface.SubscribeResult)
        two.engine.listen(APP, "listened", True)
        for channel in ("other", "subscribed", "listened"):
            await one.publish(channel, b"1")
        await one.publish("end", b"1")
        await two.until(lambda: two.bodies("end") == [b"1"], "the first end")
        two.engine.set_subscribers(APP, "subscribed", 0)
        two.engine.listen(APP, "listened", False)
        for channel in ("other", "subscribed", "listened"):
            await one.publish(channel, b"2")
        await one.publish("end", b"2")
        await two.until(lambda: two.bodies("end") == [b"1", b"2"], "the second end")
        events = [(entry.channel, entry.body) for entry in two.entries if entry.kind == interface.Kind.EVENT]
        assert [one for one in events if one[0] != "end"] == [("subscribed", b"1"), ("listened", b"1")]

    async def test_message_reaches_only_the_workers_that_listen_to_its_mailbox(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        two.engine.listen("", "mailbox", True)
        await one.engine.append([interface.Publication("", "mailbox", b"1", interface.Kind.MESSAGE)])
        await one.publish("end", b"")
        for worker in (one, two):
            await worker.got("end", b"")
        assert two.bodies("mailbox") == [b"1"]
        assert one.bodies("mailbox") == []
        assert await two.channels("") == {}, "a listener is not counted"

    async def test_command_reaches_every_worker(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        await one.publish("command", b"1", kind=interface.Kind.CONTROL)
        for worker in (one, two):
            await worker.got("command", b"1")

    async def test_worker_starts_at_the_newest_entry(self, hire: Hire) -> None:
        one = await hire()
        await one.publish("news", b"old")
        two = await hire()
        await one.publish("news", b"new")
        await two.got("news", b"new")

    async def test_entry_has_the_fields_of_its_publication(self, hire: Hire) -> None:
        one = await hire()
        await one.publish("c", "é☃".encode(), kind=interface.Kind.CONTROL, user_id="u", exclude="1.2")
        await one.until(lambda: one.entries, "the entry")
        entry = one.entries[0]
        assert entry[1:8] == (interface.Kind.CONTROL, APP, "c", None, "u", "1.2", "é☃".encode())
        assert abs(entry.created_ms / 1000 - time.time()) < 60

    async def test_receipt_has_the_id_of_the_entry(self, hire: Hire) -> None:
        one = await hire()
        receipts = [
            *await one.publish("c", b"1", b"2"),
            *await one.publish("kept", b"3", retention=interface.Retention(10, 60)),
        ]
        await one.until(lambda: len(one.entries) == 3, "the entries")
        assert [receipt.id for receipt in receipts] == [entry.id for entry in one.entries]

    async def test_large_backlog_is_delivered_in_order_and_in_several_steps(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        bodies = [str(n).encode() + b" " * 5_000 for n in range(400)]
        await one.publish("c", *bodies)
        await two.until(lambda: len(two.entries) == 400, "all entries")
        assert two.bodies("c") == bodies
        assert len(two.reads) > 1, "2 MB must not be one step of the loop"

    async def test_post_keeps_the_order_and_reports_only_failures(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        failures: list[str] = []
        for number in range(10):
            one.engine.post(interface.Publication(APP, "c", b"posted %d" % number), failures.append)
            await one.publish("c", b"published %d" % number)
        await two.until(lambda: len(two.entries) == 20, "all entries")
        assert two.bodies("c") == [b"%b %d" % (way, n) for n in range(10) for way in (b"posted", b"published")]
        assert failures == []
        await one.engine.close()
        one.engine.post(interface.Publication(APP, "c", b"late"), failures.append)
        await one.until(lambda: failures, "the failure")
        assert len(failures) == 1

    # -- positions -----------------------------------------------------------------------------------------------------

    async def test_offsets_of_a_kept_channel_are_gapless_over_workers(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        receipts = await asyncio.gather(
            *(worker.publish("kept", b"x", retention=KEPT) for _ in range(20) for worker in (one, two))
        )
        positions = [receipt.position for [receipt] in receipts]
        assert sorted(position.offset for position in positions if position) == list(range(1, 41))
        assert len({position.epoch for position in positions if position}) == 1
        await two.until(lambda: len(two.entries) == 40, "all entries")
        assert [entry.offset for entry in two.entries] == list(range(1, 41))

    async def test_channel_without_history_has_no_position(self, hire: Hire) -> None:
        one = await hire()
        [receipt] = await one.publish("plain", b"x")
        assert receipt.position is None
        assert await one.read("plain", 0, 10) == ([], None)

    async def test_history_is_read_after_an_offset_oldest_or_newest_first(self, hire: Hire) -> None:
        one = await hire()
        for n in range(1, 6):
            await one.publish("kept", str(n).encode(), retention=KEPT)
        entries, top = await one.read("kept", 2, 2)
        assert [entry.body for entry in entries] == [b"3", b"4"]
        assert top is not None
        assert top.offset == 5
        newest, _ = await one.read("kept", 0, 2, newest_first=True)
        assert [entry.offset for entry in newest] == [5, 4]

    async def test_history_is_bounded_by_its_size(self, hire: Hire) -> None:
        one = await hire()
        for n in range(1, 8):
            await one.publish("kept", str(n).encode(), retention=interface.Retention(3, 60))
        entries, top = await one.read("kept", 0, 100)
        assert [entry.offset for entry in entries] == [5, 6, 7]
        assert top is not None
        assert top.offset == 7

    async def test_history_is_read_before_an_offset_for_the_next_page(self, hire: Hire) -> None:
        one = await hire()
        await one.publish("kept", b"1", b"2", b"3", b"4", b"5", retention=KEPT)
        entries, _ = await one.read("kept", 0, 2, before=4, newest_first=True)
        assert [entry.body for entry in entries] == [b"3", b"2"]

    @pytest.mark.parametrize(("max_bytes", "count"), [(1, 1), (9, 1), (10, 2), (11, 2), (390, 40), (10_000, 40)])
    @pytest.mark.parametrize("newest_first", [False, True])
    async def test_read_ends_with_the_entry_that_exceeds_its_bytes(
        self, hire: Hire, max_bytes: int, count: int, *, newest_first: bool
    ) -> None:
        one = await hire()
        await one.publish("kept", *[b"%010d" % n for n in range(1, 41)], retention=KEPT)
        entries, top = await one.read("kept", 0, 40, newest_first=newest_first, max_bytes=max_bytes)
        offsets = range(40, 0, -1) if newest_first else range(1, 41)
        assert [entry.offset for entry in entries] == list(offsets)[:count]
        assert top is not None

    # -- recovery ------------------------------------------------------------------------------------------------------

    async def test_recovery_gives_exactly_the_missed_entries(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        receipts = await one.publish("kept", b"1", b"2", b"3", retention=KEPT)
        position = receipts[0].position
        assert position is not None
        replayed = await replay(two, after=position)
        assert [entry.body for entry in replayed.entries] == [b"2", b"3"]
        assert (replayed.count, replayed.complete, replayed.reason) == (2, True, None)
        assert replayed.position == receipts[2].position
        assert (await replay(two, after=replayed.position)).entries == ()

    async def test_recovery_is_refused_with_a_reason_and_never_partial(self, hire: Hire) -> None:
        one = await hire()
        receipts = await one.publish("kept", *[b"%d" % n for n in range(1, 11)], retention=interface.Retention(5, 60))
        top = receipts[-1].position
        assert top is not None
        epoch = top.epoch
        for after, more, reason in (
            (interface.Position(epoch, 4), {}, "position_expired"),
            (interface.Position("another_", 9), {}, "epoch_changed"),
            (interface.Position(epoch, 11), {}, "epoch_changed"),
            (interface.Position(epoch, 5), {"max_entries": 4}, "too_many"),
            (interface.Position(epoch, 5), {"max_bytes": 5}, "too_many"),
        ):
            replayed = await replay(one, after=after, **more)
            assert (replayed.reason, replayed.entries, replayed.position) == (reason, (), top)
        assert (await replay(one, after=interface.Position(epoch, 5), max_entries=5)).count == 5
        assert (await replay(one, channel="never", after=top)).reason == "epoch_changed"

    async def test_channel_without_entries_has_a_position_from_its_first_recovery_request_on(self, hire: Hire) -> None:
        """A client that subscribed before the first entry can recover."""
        one, two = await hire(), await hire()
        before = await replay(one, channel="new")
        assert before.position is not None
        assert (before.position.offset, before.entries, before.reason) == (0, (), None)
        assert (await replay(two, channel="new")).position == before.position
        receipts = await two.publish("new", b"1", b"2", retention=KEPT)
        assert receipts[-1].position == interface.Position(before.position.epoch, 2)
        assert [entry.body for entry in (await replay(one, channel="new", after=before.position)).entries] == [
            b"1",
            b"2",
        ]

    async def test_entries_over_their_age_are_not_recovered(self, hire: Hire) -> None:
        one = await hire()
        [receipt, _] = await one.publish("kept", b"1", b"2", retention=interface.Retention(10, 0))
        assert receipt.position is not None
        await asyncio.sleep(0.01)
        assert (await replay(one, after=receipt.position)).reason == "position_expired"

    async def test_rewind_gives_the_newest_entries(self, hire: Hire) -> None:
        one = await hire()
        await one.publish("kept", b"1", b"2", b"3", retention=KEPT)
        newest = await replay(one, rewind=interface.Rewind(count=2, seconds=0))
        assert [entry.body for entry in newest.entries] == [b"2", b"3"]
        assert newest.complete
        assert len((await replay(one, rewind=interface.Rewind(count=0, seconds=60))).entries) == 3

    async def test_long_recovery_comes_in_chunks_while_more_is_published(self, hire: Hire) -> None:
        """The last chunk reaches the tail: what comes after it is delivered, and nothing twice."""
        one, two = await hire(), await hire()
        retention = interface.Retention(10_000, 60)
        [first] = await one.publish("kept", b"0", retention=retention)
        await one.publish("kept", *[b"%d" % n + b" " * 2000 for n in range(1, 1500)], retention=retention)
        publishing = asyncio.ensure_future(
            asyncio.gather(*(one.publish("kept", b"%d" % n, retention=retention) for n in range(1500, 1800)))
        )
        got: list[int] = []
        after, continued, chunks = first.position, False, 0
        live_from = None
        while live_from is None:
            mark: list[int] = []
            replayed = await replay(
                two,
                after=after,
                continued=continued,
                max_entries=10_000,
                max_bytes=10_000_000,
                at=lambda mark=mark: mark.append(len(two.entries)),
            )
            assert replayed.reason is None
            got += [int(entry.body) for entry in replayed.entries]
            assert after is not None
            after, continued = interface.Position(after.epoch, got[-1] + 1), True
            chunks += 1
            if replayed.complete:
                live_from = mark[0]
        await publishing
        await two.publish("kept", b"1800", retention=retention)
        await two.until(lambda: int(two.entries[-1].body) == 1800, "the last one")
        got += [int(entry.body) for entry in two.entries[live_from:]]
        assert got == list(range(1, 1801))
        assert chunks > 5

    async def test_clients_that_come_back_together_share_their_reads(self, hire: Hire) -> None:
        one = await hire()
        [first, *_] = await one.publish("kept", *[b"x"] * 100, retention=KEPT)
        answers = await asyncio.gather(*(replay(one, after=first.position) for _ in range(50)))
        assert {len(answer.entries) for answer in answers} == {99}
        assert one.engine.statistics()["history_reads"] == 1
        assert one.engine.statistics()["history_shared"] == 49

    async def test_session_is_kept_over_workers_until_it_expires(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        for record in (b"old", b"new"):
            one.engine.save_session(APP, "token", record, 60)
        assert await one.engine.load_session(APP, "token") == b"new"
        assert await two.engine.load_session(APP, "token") == b"new"
        assert await two.engine.load_session("2", "token") is None
        one.engine.save_session(APP, "token", b"late", 0)
        assert await one.engine.load_session(APP, "token") == b"late"
        one.engine.save_session(APP, "token", b"gone", -interface.LATE_SECONDS)
        assert await one.engine.load_session(APP, "token") is None

    async def test_take_session_answers_the_record_and_the_holder_before(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        assert await one.engine.take_session(APP, "token", "1.1") == interface.Taken(None, None, None)
        one.engine.save_session(APP, "token", b"record", 60, holder="1.1")
        written = asyncio.Event()
        one.engine.when_written(written.set)
        await soon(written.wait())
        assert await two.engine.take_session(APP, "token", "2.1") == interface.Taken(b"record", "1.1", None)
        assert (await two.engine.take_session("2", "token", "2.2")).holder is None

    async def test_only_the_previous_holder_gets_session_taken(self, hire: Hire) -> None:
        one, two, three = await hire(), await hire(), await hire()
        await one.engine.take_session(APP, "token", "1.1")
        await two.engine.take_session(APP, "token", "2.1")
        taken = await three.engine.take_session(APP, "token", "3.1")
        assert taken.changed_s is not None
        for worker, holder in ((one, "1.1"), (two, "2.1")):
            await worker.until(lambda worker=worker, holder=holder: taken_from(worker, holder), "the entry")
        assert taken_from(one, "1.1") == [{"token": "token", "changed_s": None}]
        assert taken_from(two, "2.1") == [{"token": "token", "changed_s": taken.changed_s}]
        assert not taken_from(three, "3.1")

    async def test_released_session_has_no_holder(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        await one.engine.take_session(APP, "token", "1.1")
        one.engine.save_session(APP, "token", b"last", 60, holder="1.1", release=True)
        one.engine.save_session(APP, "other", b"record", 60)
        assert await one.engine.take_session(APP, "other", "1.2") == interface.Taken(b"record", None, None)
        assert await two.engine.take_session(APP, "token", "2.1") == interface.Taken(b"last", None, None)

    async def test_record_of_a_previous_holder_does_not_replace_the_newer_one(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        await one.engine.take_session(APP, "token", "1.1")
        await two.engine.take_session(APP, "token", "2.1")
        two.engine.save_session(APP, "token", b"newer", 60, holder="2.1")
        await two.engine.take_session(APP, "another", "2.2")  # the record is written
        one.engine.save_session(APP, "token", b"older", 60, holder="1.1")
        one.engine.save_session(APP, "token", b"older", 60, holder="1.1", release=True)
        await one.engine.take_session(APP, "another", "1.2")
        assert await two.engine.take_session(APP, "token", "2.3") == interface.Taken(b"newer", "2.1", ANY)

    async def test_session_of_a_closed_worker_has_no_holder(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        await one.engine.take_session(APP, "token", "1.1")
        one.engine.save_session(APP, "token", b"record", 60, holder="1.1")
        await one.engine.close()
        assert await two.engine.take_session(APP, "token", "2.1") == interface.Taken(b"record", None, None)

    async def test_when_written_is_called_after_earlier_writes(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        one.engine.save_session(APP, "token", b"record", 60)
        written = asyncio.Event()
        one.engine.when_written(written.set)
        await soon(written.wait())
        assert await two.engine.load_session(APP, "token") == b"record"

    async def test_idempotency_key_publishes_once_and_answers_the_same(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        [first] = await one.publish("c", b"a", idempotency_key="k", retention=KEPT)
        [again] = await two.publish("c", b"b", idempotency_key="k", retention=KEPT)
        assert again.position == first.position
        assert (first.duplicate, again.duplicate) == (False, True)
        [elsewhere] = await one.publish("d", b"a", idempotency_key="k")
        assert not elsewhere.duplicate
        await two.until(lambda: two.bodies("d"), "the last entry")
        assert two.bodies("c") == [b"a"]

    async def test_budget_holds_for_all_workers_and_refuses_whole_calls(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        budget = interface.Budget(APP, 10)
        publications = [interface.Publication(APP, "c", b"x")] * 4
        outcomes = await asyncio.gather(
            *(worker.engine.append(publications, budget=budget) for worker in (one, two) for _ in range(6)),
            return_exceptions=True,
        )
        refused = [outcome for outcome in outcomes if isinstance(outcome, errors.OverBudget)]
        # Twelve calls of four within one second, or on both sides of its end.
        assert len(refused) in (10, 8)
        assert (refused[0].limit, refused[0].actual) == (10, 12)
        await two.publish("end", b"")
        await two.until(lambda: two.bodies("end"), "the end")
        assert len(two.bodies("c")) == 4 * (12 - len(refused))

    # -- presence ------------------------------------------------------------------------------------------------------

    async def test_snapshot_has_the_new_member_and_those_of_other_workers_in_order(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        assert await one.join("presence-c", "ann", "1.1") == ["ann"]
        assert await two.join("presence-c", "bob", "1.2") == ["ann", "bob"]
        assert [member.user_id for member in await one.members("presence-c")] == ["ann", "bob"]

    async def test_only_the_first_and_last_connection_of_a_user_are_announced(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        await one.join("presence-c", "ann", "1.1", info='{"n":1}')
        await two.join("presence-c", "ann", "1.2", info='{"n":2}')
        assert [member.info for member in await one.members("presence-c")] == ['{"n":2}']
        one.engine.leave(APP, "presence-c", "1.1")
        await one.written()
        await two.join("presence-c", "bob", "1.3")
        two.engine.leave(APP, "presence-c", "1.2")
        await one.until(lambda: len(one.entries) == 3, "three changes")
        assert [(entry.kind, entry.user_id, entry.body) for entry in one.entries] == [
            (interface.Kind.MEMBER_ADDED, "ann", b'{"n":1}'),
            (interface.Kind.MEMBER_ADDED, "bob", b"null"),
            (interface.Kind.MEMBER_REMOVED, "ann", b""),
        ]

    async def test_delivery_continues_a_snapshot_without_gap_or_repeat(self, hire: Hire) -> None:
        """At `ready`, the members that were announced so far are exactly those of the snapshot; twenty joiners at
        once."""
        one, two = await hire(), await hire()
        workers = [one, two]
        checked = 0

        def check(worker: Worker) -> Callable[[interface.SubscribeResult | interface.Refused], None]:
            def ready(answer: interface.SubscribeResult | interface.Refused) -> None:
                nonlocal checked
                assert isinstance(answer, interface.SubscribeResult)
                announced = [entry.user_id for entry in worker.entries if entry.kind == interface.Kind.MEMBER_ADDED]
                assert announced == [member.user_id for member in answer.members]
                checked += 1

            return ready

        for n in range(40):
            worker = workers[n % 2]
            member = interface.Member(f"user-{n}", "null")
            worker.engine.attach(interface.SubscribeRequest(APP, "presence-c", f"1.{n}", member=member), check(worker))
            if n % 7 == 0:
                await asyncio.sleep(0)
        await one.until(lambda: checked == 40, "all answers")

    async def test_member_limit_counts_users_and_not_their_connections(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        await one.join("presence-c", "ann", "1.1", member_limit=2)
        await two.join("presence-c", "bob", "1.2", member_limit=2)
        await one.join("presence-c", "bob", "1.3", member_limit=2)
        refused = await two.attach("presence-c", "1.4", "cid", member_limit=2)
        assert isinstance(refused, interface.Refused)
        assert (refused.code, refused.limit, refused.actual) == ("member_limit", 2, 2)
        assert [member.user_id for member in await two.members("presence-c")] == ["ann", "bob"]

    async def test_second_join_of_a_socket_changes_the_info_and_announces_nothing(self, hire: Hire) -> None:
        one = await hire()
        await one.join("presence-c", "ann", "1.1", info="1")
        await one.join("presence-c", "ann", "1.1", info="2")
        one.engine.leave(APP, "presence-c", "1.1")
        await one.until(lambda: len(one.entries) == 2, "one arrival, one departure")
        assert await one.members("presence-c") == []

    async def test_join_after_a_leave_of_the_same_socket_wins(self, hire: Hire) -> None:
        one = await hire()
        await one.join("presence-c", "ann", "1.1")
        one.engine.leave(APP, "presence-c", "1.1")
        assert await one.join("presence-c", "ann", "1.1") == ["ann"]
        assert [entry.kind for entry in one.entries] == [1, 2, 1]

    async def test_join_of_a_socket_as_another_user_ends_the_membership_of_the_first(self, hire: Hire) -> None:
        """The leave of the first user could not be written."""
        one = await hire()
        await one.join("presence-c", "ann", "1.1")
        assert await one.join("presence-c", "bob", "1.1") == ["bob"]
        assert [(entry.kind, entry.user_id) for entry in one.entries] == [(1, "ann"), (2, "ann"), (1, "bob")]

    # -- counts --------------------------------------------------------------------------------------------------------

    async def test_counts_are_those_of_all_workers(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        one.engine.set_subscribers(APP, "news", 3)
        two.engine.set_subscribers(APP, "news", 4)
        two.engine.set_subscribers(APP, "sport", 1)
        await one.attach("news")
        await two.attach("sport")
        assert await one.channels(APP) == {
            "news": interface.ChannelCounts(7, 0),
            "sport": interface.ChannelCounts(1, 0),
        }
        one.engine.set_subscribers(APP, "news", 0)
        assert await one.channel("news") == interface.ChannelCounts(4, 0)

    async def test_worker_reads_its_own_counts_at_once(self, hire: Hire) -> None:
        one = await hire()
        for count in range(1, 30):
            one.engine.set_subscribers(APP, "news", count)
            assert (await one.channel("news")).subscriptions == count

    async def test_channels_are_filtered_by_prefix_and_application(self, hire: Hire) -> None:
        one = await hire()
        for app, channel in ((APP, "private-a"), (APP, "private-é"), (APP, "presence-a"), ("2", "private-a")):
            one.engine.set_subscribers(app, channel, 1)
        one.engine.set_subscribers(APP, interface.CONNECTIONS, 9)
        assert sorted(await one.channels(APP, "private-")) == ["private-a", "private-é"]
        assert sorted(await one.channels(APP)) == ["presence-a", "private-a", "private-é"]
        assert await one.channels("3") == {}

    async def test_channels_are_searched_page_by_page(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        names = [f"room-{number:02}" for number in range(7)]
        for worker in (one, two):
            for name in (*names, "news", *(f"#server-to-user-room-{user}" for user in range(5))):
                worker.engine.set_subscribers(APP, name, 2)
            worker.engine.set_subscribers(APP, interface.CONNECTIONS, 9)
            await worker.channel("news")  # what the worker set is written now
        first = await one.engine.ask(lambda queries: queries.search(APP, "room-", "", 4))
        rest = await two.engine.ask(lambda queries: queries.search(APP, "room-", first[-1][0], 4))
        assert [name for name, _ in first + rest] == names
        assert {counts for _, counts in first + rest} == {interface.ChannelCounts(4, 0)}
        assert await one.engine.ask(lambda queries: queries.search(APP, "_", "", 3)) == [], "it is no pattern"

    async def test_users_are_counted_beside_connections(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        one.engine.set_subscribers(APP, "presence-c", 2)
        await one.join("presence-c", "ann", "1.1")
        await one.join("presence-c", "bob", "1.2")
        two.engine.set_subscribers(APP, "presence-c", 1)
        await two.join("presence-c", "ann", "1.3")
        assert await two.channel("presence-c") == interface.ChannelCounts(3, 2)
        assert await two.channels(APP, "presence-") == {"presence-c": interface.ChannelCounts(3, 2)}

    async def test_connections_are_admitted_up_to_the_limit_of_all_workers(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        answers: list[bool] = []
        for worker in (one, two):
            for count in (1, 2):
                worker.engine.set_subscribers(APP, interface.CONNECTIONS, count)
                worker.engine.admit(
                    APP, 3, lambda answer: answers.append(isinstance(answer, interface.SubscribeResult))
                )
        await one.until(lambda: len(answers) == 4, "four answers")
        assert sorted(answers) == [False, True, True, True]

    async def test_any_thread_runs_queries_with_or_without_an_open_engine(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        for worker, user in ((one, "ann"), (two, "bob")):
            worker.engine.set_subscribers(APP, "presence-c", 1)
            await worker.join("presence-c", user, f"1.{user}")
        await one.publish("kept", b"1", b"2", b"3", retention=KEPT)

        def ask(engine: interface.Engine) -> None:
            with engine.queries() as questions:
                assert questions.channel(APP, "presence-c") == interface.ChannelCounts(2, 2)
                assert questions.channels(APP, "presence-") == {"presence-c": interface.ChannelCounts(2, 2)}
                assert [member.user_id for member in questions.members(APP, "presence-c")] == ["ann", "bob"]
                assert questions.present(APP, "presence-c", ["bob", "cid"]) == {"bob"}
                assert questions.present(APP, "presence-c", [str(n) for n in range(2_000)] + ["ann"]) == {"ann"}
                assert questions.present("2", "presence-c", ["bob"]) == set()
                entries, top = questions.read(APP, "kept", 0, 2, before=3, newest_first=True)
                assert [entry.body for entry in entries] == [b"2", b"1"]
                assert top is not None
                assert top.offset == 3

        await asyncio.gather(*(asyncio.to_thread(ask, worker.engine) for worker in (one, two) for _ in range(3)))
        await one.engine.close()
        await two.got("kept", b"1", b"2", b"3")  # that others read and closed did not disturb it

    # -- what changes for the whole deployment -------------------------------------------------------------------------

    async def test_channel_is_occupied_and_vacated_once_for_all_workers(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        for worker in (one, two):
            worker.engine.set_subscribers(APP, "news", 1)
            worker.engine.set_subscribers(APP, interface.CONNECTIONS, 1)
            await worker.attach("news")
        one.engine.set_subscribers(APP, "news", 2)
        for worker in (one, two):
            worker.engine.set_subscribers(APP, "news", 0)
            await worker.channels(APP)
        await one.until(lambda: len(one.entries) >= 2, "both")
        assert [(entry.kind, entry.channel) for entry in one.entries] == [
            (interface.Kind.OCCUPIED, "news"),
            (interface.Kind.VACATED, "news"),
        ]

    async def test_closed_worker_vacates_its_channels(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        for worker, channels in ((one, ("a", "b")), (two, ("b",))):
            for channel in channels:
                worker.engine.set_subscribers(APP, channel, 1)
            await worker.attach(channels[0])
        await one.engine.close()
        await two.until(lambda: two.entries[-1].kind == interface.Kind.VACATED, "the end of a")
        assert [entry.channel for entry in two.entries if entry.kind == interface.Kind.VACATED] == ["a"]

    async def test_announced_counts_are_those_of_all_workers_and_follow_changes(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        for worker, count in ((one, 1), (two, 1), (one, 3), (one, 3), (two, 0)):
            worker.engine.set_subscribers(APP, "news", count, announce=True)
            await worker.attach("news", "1.1")
        await one.until(lambda: len(counts(one)) == 4, "four counts")
        assert counts(one) == [b"1", b"2", b"4", b"3"]

    async def test_counts_above_the_bound_are_announced_now_and_then_and_at_last(self, hire: Hire) -> None:
        one = await hire()
        for count in (150, 151, 152, 153):
            one.engine.set_subscribers(APP, "news", count, announce=True)
            await one.attach("news")
        assert counts(one) == [b"150"]
        await one.until(lambda: counts(one) == [b"150", b"153"], "the last change", within=10)

    async def test_snapshot_counts_the_new_subscriber(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        for expected, worker in enumerate((one, two), 1):
            worker.engine.set_subscribers(APP, "news", 1)
            answer = await worker.attach("news", counted=True)
            assert answer == interface.SubscribeResult(subscribers=expected)

    # -- cached events -------------------------------------------------------------------------------------------------

    async def test_cache_channel_holds_its_newest_event(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        for body in (b"old", b"new"):
            await one.publish("cache-c", body, cache_seconds=60)
        await one.publish("cache-c", b"not cached")
        assert await two.attach("cache-c", cached=True) == interface.SubscribeResult(cached=b"new")
        held = await two.cached("cache-c")
        assert held is not None
        assert held.body == b"new"
        assert 55 <= held.ttl <= 60
        assert await two.cached("cache-d") is None

    async def test_cached_event_expires(self, hire: Hire) -> None:
        one = await hire()
        await one.publish("cache-c", b"x", cache_seconds=0)
        assert await one.cached("cache-c") is None
        assert await one.attach("cache-c", cached=True) == interface.SubscribeResult()

    async def test_delivery_continues_a_snapshot_of_the_cache(self, hire: Hire) -> None:
        """A subscriber that comes while events are published gets the newest delivered one, then those after it."""
        one, two = await hire(), await hire()
        await one.publish("cache-c", b"0", cache_seconds=60)

        async def publish() -> None:
            for n in range(1, 30):
                await one.publish("cache-c", b"%d" % n, cache_seconds=60)

        publishing = asyncio.ensure_future(publish())
        compared: list[tuple[bytes | None, bytes]] = []

        def ready(answer: object) -> None:
            assert isinstance(answer, interface.SubscribeResult)
            compared.append((answer.cached, (two.bodies("cache-c") or [b"0"])[-1]))

        asked = 0
        while not publishing.done():
            two.engine.attach(interface.SubscribeRequest(APP, "cache-c", durable=asked % 2 == 0, cached=True), ready)
            asked += 1
            await asyncio.sleep(0)
        await publishing
        await two.until(lambda: len(compared) == asked, "all answers")
        assert [cached for cached, _ in compared] == [delivered for _, delivered in compared]
        assert len({cached for cached, _ in compared}) > 1

    async def test_cache_miss_is_announced_once_until_an_event_is_published(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        for worker in (one, two, one):
            await worker.attach("cache-c", cached=True)
        await one.publish("cache-c", b"x", cache_seconds=0)
        await two.attach("cache-c", cached=True)
        await two.attach("cache-c", cached=True)
        miss = interface.Kind.CACHE_MISS
        await one.until(lambda: [entry.kind for entry in one.entries].count(miss) == 2, "the second miss")
        await two.publish("end", b"")
        await one.until(lambda: one.bodies("end"), "the end")
        assert [entry.kind for entry in one.entries] == [miss, interface.Kind.EVENT, miss, interface.Kind.EVENT]

    # -- users ---------------------------------------------------------------------------------------------------------

    async def test_watched_user_is_online_while_one_of_its_connections_is_signed_in(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        watch = ("ann", "bob", "cid")
        await one.join(interface.USERS, "ann", "1.1")
        await one.join(interface.USERS, "ann", "1.2")
        answer = await two.attach(interface.USERS, "2.1", "bob", watch=watch)
        assert isinstance(answer, interface.SubscribeResult)
        assert sorted(answer.online) == ["ann", "bob"]
        assert answer.members == ()
        for socket_id in ("1.1", "1.2"):
            one.engine.leave(APP, interface.USERS, socket_id)
        await two.until(lambda: two.entries[-1].kind == interface.Kind.MEMBER_REMOVED, "ann goes offline")
        assert [entry.user_id for entry in two.entries] == ["ann", "bob", "ann"]
        assert await two.channels(APP) == {}

    # -- consumers that must see every entry ---------------------------------------------------------------------------

    async def test_consumer_reads_its_kinds_from_the_newest_entry_on(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        await one.publish("c", b"before", kind=interface.Kind.CLIENT_EVENT)
        consumer = await two.engine.consume(
            "outbox", one.engine.partition(APP, "c"), frozenset([interface.Kind.CLIENT_EVENT])
        )
        for n in range(3):
            await one.publish("c", b"event %d" % n)
            await one.publish("c", b"client %d" % n, kind=interface.Kind.CLIENT_EVENT)
        found = [*await consumer.next(2, 5), *await consumer.next(2, 5)]
        assert [entry.body for entry in found] == [b"client 0", b"client 1", b"client 2"]
        assert [entry.id for entry in found] == sorted(entry.id for entry in found)
        assert await consumer.next(2, 0) == []

    async def test_consumer_of_no_kinds_follows_the_log(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        consumer = await two.engine.consume("outbox", one.engine.partition(APP, "c"), frozenset())
        await one.publish("c", b"1", b"2")
        await two.got("c", b"1", b"2")
        assert await consumer.next(10, 0) == []
        everything = await one.engine.consume("signals", one.engine.partition(APP, "c"), frozenset())
        assert consumer.position == everything.position

    async def test_entries_of_a_kind_of_a_newer_release_stop_no_reader(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        consumer = await two.engine.consume("outbox", one.engine.partition(APP, "c"), frozenset([interface.Kind.EVENT]))
        newer = interface.NEWEST_KIND + 1
        await one.publish("c", b"1", b"2", b"3", kind=newer, retention=KEPT)
        await one.publish("c", b"4", retention=KEPT)
        assert [entry.body for entry in await consumer.next(1, 20)] == [b"4"]
        await two.got("c", b"1", b"2", b"3", b"4")
        assert [entry.kind for entry in two.entries if entry.channel == "c"] == [newer, newer, newer, 0]

    async def test_consumer_waits_for_an_entry(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        consumer = await two.engine.consume("outbox", one.engine.partition(APP, "c"), frozenset([interface.Kind.EVENT]))
        assert await consumer.next(10, 0.01) == []
        waiting = asyncio.ensure_future(consumer.next(10, 30))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await one.publish("c", b"x")
        assert [entry.body for entry in await asyncio.wait_for(waiting, 20)] == [b"x"]

    async def test_later_consumer_begins_at_the_kept_position(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        kinds = frozenset([interface.Kind.EVENT])
        consumer = await one.engine.consume("outbox", one.engine.partition(APP, "c"), kinds)
        await one.publish("c", b"1", b"2", b"3")
        first = (await consumer.next(1, 5))[0]
        await consumer.keep(first.id)
        consumer.close()
        later = await two.engine.consume("outbox", one.engine.partition(APP, "c"), kinds)
        assert (later.log_id, later.position) == (consumer.log_id, first.id)
        assert [entry.body for entry in await later.next(10, 5)] == [b"2", b"3"]
        again = await two.engine.consume("outbox", one.engine.partition(APP, "c"), kinds, after=0)
        assert again.position == first.id
        await again.drop()
        assert (await one.engine.consume("outbox", one.engine.partition(APP, "c"), kinds)).position >= first.id + 2

    async def test_new_consumer_may_begin_after_an_earlier_entry(self, hire: Hire) -> None:
        """Entries from before its beginning are there, whatever kinds other consumers wanted meanwhile."""
        one, two = await hire(), await hire()
        partition = one.engine.partition(APP, "c")
        first = await one.publish("c", b"0")
        await one.publish("c", b"1", kind=interface.Kind.CLIENT_EVENT)
        other = await one.engine.consume("signals", partition, frozenset([interface.Kind.EVENT]))
        await one.publish("c", b"2")
        await one.publish("c", b"3", kind=interface.Kind.CLIENT_EVENT)
        both = frozenset([interface.Kind.EVENT, interface.Kind.CLIENT_EVENT])
        consumer = await two.engine.consume("outbox", partition, both, after=first[0].id)
        await one.publish("c", b"4", kind=interface.Kind.CLIENT_EVENT)
        await one.publish("c", b"5")
        found: list[bytes] = []
        while found[-1:] != [b"5"]:
            found += [entry.body for entry in await consumer.next(10, 5)]
        assert found == [b"1", b"2", b"3", b"4", b"5"]
        assert [entry.body for entry in await other.next(10, 5)] == [b"2", b"5"]

    async def test_transient_consumer_begins_at_the_newest_entry(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        kinds = frozenset([interface.Kind.EVENT])
        await one.publish("c", b"before")
        consumer = await two.engine.consume("tail", one.engine.partition(APP, "c"), kinds, transient=True)
        await one.publish("c", b"1", b"2")
        found = [*await consumer.next(1, 30), *await consumer.next(1, 30)]
        assert [entry.body for entry in found] == [b"1", b"2"]
        await consumer.keep(found[0].id)
        await one.publish("c", b"3")
        assert [entry.body for entry in await consumer.next(10, 30)] == [b"3"]
        consumer.close()
        again = await one.engine.consume("tail", one.engine.partition(APP, "c"), kinds, transient=True)
        await one.publish("c", b"4")
        assert [entry.body for entry in await again.next(10, 30)] == [b"4"]

    async def test_terms_of_a_lease_grow(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        terms = []
        for worker in (one, two, one):
            lease = await asyncio.wait_for(worker.engine.lease("outbox"), 10)
            terms.append(lease.term)
            lease.release()
        assert terms == sorted(set(terms))

    async def test_waiting_for_a_lease_ends_with_the_engine(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        held = await one.engine.lease("outbox")
        waiting = asyncio.ensure_future(two.engine.lease("outbox"))
        await asyncio.sleep(0)
        await two.engine.close()
        held.release()
        with pytest.raises(errors.EngineUnavailable):
            await asyncio.wait_for(waiting, 10)
        (await asyncio.wait_for(one.engine.lease("outbox"), 10)).release()

    async def test_lease_is_lost_when_its_worker_closes(self, hire: Hire) -> None:
        one = await hire()
        lease = await one.engine.lease("outbox")
        await one.engine.close()
        assert lease.lost.is_set()

    async def test_lease_passes_on_to_a_waiting_worker(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        held = await one.engine.lease("outbox")
        waiting = asyncio.ensure_future(two.engine.lease("outbox"))
        other = await two.engine.lease("another")
        assert not waiting.done()
        await one.engine.close()
        taken = await asyncio.wait_for(waiting, 10)
        assert not taken.lost.is_set()
        held.release()
        for lease in (taken, other):
            lease.release()

    async def test_cancelled_wait_for_a_lease_keeps_no_lease(self, hire: Hire) -> None:
        """It is cancelled before the store is asked, or before its answer is there."""
        one, two = await hire(), await hire()
        for turns in (0, 1, 2, 3, 5, 8):
            waiting = asyncio.ensure_future(one.engine.lease("outbox"))
            for _ in range(turns):
                await asyncio.sleep(0)
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                (await waiting).release()
            (await asyncio.wait_for(two.engine.lease("outbox"), 10)).release()

    # -- life and death ------------------------------------------------------------------------------------------------

    async def test_members_and_counts_of_a_closed_worker_are_removed(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        one.engine.set_subscribers(APP, "presence-c", 1)
        await one.join("presence-c", "ann", "1.1")
        await two.join("presence-c", "bob", "1.2")
        await one.engine.close()
        gone = interface.Kind.MEMBER_REMOVED
        await two.until(lambda: any(entry.kind == gone for entry in two.entries), "the departure")
        assert [entry.user_id for entry in two.entries if entry.kind == gone] == ["ann"]
        assert await two.channel("presence-c") == interface.ChannelCounts(0, 1)

    async def test_members_with_a_limit_are_distinct_users(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        for number, user in enumerate(["dora", "ann", "cem", "bob"]):
            await one.join("presence-c", user, f"1.{number}")
        await two.join("presence-c", "ann", "2.1")
        assert [member.user_id for member in await one.members("presence-c")] == ["dora", "ann", "cem", "bob"]
        everyone = await one.members("presence-c", 4)
        assert sorted(member.user_id for member in everyone) == ["ann", "bob", "cem", "dora"]
        some = await one.members("presence-c", 3)
        assert len({member.user_id for member in some}) == 3
        assert set(some) < set(everyone)
        assert await one.members("presence-none", 3) == []

    async def test_blocking_append_from_another_thread_reaches_the_workers(self, hire: Hire) -> None:
        one, two = await hire(), await hire()
        publication = interface.Publication(APP, "c", b"x")
        [receipt] = await asyncio.to_thread(one.engine.append_blocking, [publication])
        assert not receipt.duplicate
        await two.got("c", b"x")

    async def test_closed_engine_refuses_publications(self, hire: Hire) -> None:
        one = await hire()
        await one.engine.close()
        await one.engine.close()
        try:
            await one.publish("c", b"x")
        except errors.EngineUnavailable:
            return
        raise AssertionError("a publication was acknowledged by a closed engine")

    async def test_engine_can_be_opened_again(self, hire: Hire) -> None:
        one = await hire()
        await one.publish("c", b"1")
        await one.engine.close()
        await one.open()
        await one.publish("c", b"2")
        await one.until(lambda: one.bodies("c")[-1:] == [b"2"], "an event of the second life")

    async def test_open_engine_is_healthy_and_counts(self, hire: Hire) -> None:
        one = await hire()
        await one.publish("c", b"x")
        await one.got("c", b"x")
        assert one.engine.health().ok
        assert one.engine.statistics()["entries"] == 1


def taken_from(worker: Worker, holder: str) -> list[Any]:
    """The bodies of the SESSION_TAKEN entries for a holder of this worker."""
    taken = interface.Kind.SESSION_TAKEN
    return [json.loads(entry.body) for entry in worker.entries if entry.kind == taken and entry.user_id == holder]


def counts(worker: Worker) -> list[bytes]:
    """The COUNT entries that it was handed."""
    return [entry.body for entry in worker.entries if entry.kind == interface.Kind.COUNT]


async def replay(
    worker: Worker, *, channel: str = "kept", at: Callable[[], None] | None = None, **history: Any
) -> interface.RecoveryResult:
    """Attach with a history; `at` is called at the instant of the answer."""
    answered: asyncio.Future[interface.RecoveryResult] = asyncio.get_running_loop().create_future()

    def ready(answer: interface.SubscribeResult | interface.Refused) -> None:
        assert isinstance(answer, interface.SubscribeResult)
        assert answer.replayed is not None
        if at is not None:
            at()
        answered.set_result(answer.replayed)

    wanted = interface.SubscribeRequest(APP, channel, durable=False, history=interface.RecoveryRequest(**history))
    worker.engine.attach(wanted, ready)
    return await soon(answered)
