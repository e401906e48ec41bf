"""Leaves from presence channels are repeated until the store has confirmed the newest one of each socket."""

from __future__ import annotations

import collections

from fanfare.engine import leaves

KEY = ("1", "presence-c", "1.1")


def test_failed_leave_is_repeated_until_it_is_written() -> None:
    counters: collections.Counter[str] = collections.Counter()
    of_worker = leaves.Leaves(counters)
    of_worker.begin(KEY)(False)
    assert of_worker.failed() == [KEY]
    again = of_worker.begin(KEY)
    assert of_worker.failed() == []  # while it is being written
    again(True)
    assert of_worker.failed() == []
    assert counters == {"leaves_retried": 1}


def test_leave_before_another_join_is_not_repeated() -> None:
    of_worker = leaves.Leaves(collections.Counter())
    settled = of_worker.begin(KEY)
    of_worker.joined(KEY)
    settled(False)
    assert of_worker.failed() == []


def test_answer_to_an_older_leave_does_not_settle_a_later_one() -> None:
    of_worker = leaves.Leaves(collections.Counter())
    older = of_worker.begin(KEY)
    of_worker.joined(KEY)
    later = of_worker.begin(KEY)
    older(True)
    later(False)
    assert of_worker.failed() == [KEY]
