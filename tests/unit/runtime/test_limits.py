"""Token bucket, back-off and log throttle."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from fanfare.runtime import log_throttle
from fanfare.runtime.backoff import Backoff, pause_s
from fanfare.runtime.log_throttle import LogThrottle
from fanfare.runtime.token_bucket import TokenBucket
from tests.harness import waiting

LOGGER = logging.getLogger("tests.limits")


def taken(bucket: TokenBucket, tries: int, now: float) -> int:
    return sum(bucket.take(10, 20, now) for _ in range(tries))


def test_bucket_gives_its_burst_at_once_and_its_rate_after_that() -> None:
    bucket = TokenBucket(20, now=0)
    assert taken(bucket, 100, now=0) == 20
    assert taken(bucket, 100, now=0.05) == 0
    assert taken(bucket, 100, now=0.1) == 1
    assert taken(bucket, 100, now=1.1) == 10


def test_bucket_never_holds_more_than_its_burst() -> None:
    bucket = TokenBucket(20, now=0)
    assert taken(bucket, 100, now=1_000_000) == 20


def test_lower_limit_holds_at_once() -> None:
    bucket = TokenBucket(20, now=0)
    assert [bucket.take(1, 2, 0) for _ in range(3)] == [True, True, False]


def test_reserved_token_is_there_after_the_delay() -> None:
    bucket = TokenBucket(2, now=0)
    assert [bucket.reserve(10, 2, now) for now in (0, 0, 0, 0.05)] == pytest.approx([0, 0, 0.1, 0.15])
    assert bucket.reserve(10, 2, now=1_000_000) == 0


def test_pauses_double_up_to_the_longest_and_vary_by_a_quarter() -> None:
    backoff = Backoff(first_s=1, longest_s=60)
    for doubled in (1, 2, 4, 8, 16, 32, 60, 60):
        assert 0.75 * doubled <= backoff.failed() <= doubled
    backoff.succeeded()
    assert backoff.failed() <= 1
    assert pause_s(10**6) <= 60


# -- log throttle ------------------------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_first_line_is_logged_at_once_and_the_next_interval_counts_the_others(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    log = LogThrottle(LOGGER, 10.0, clock=clock)
    for number in range(5):
        log.warning("refused %d", number)
    clock.now = 10.0
    log.warning("refused %d", 5)
    log.warning("refused %d", 6)
    assert caplog.messages == ["refused 0", "refused 5 (4 more since the last line)"]


def test_burst_is_written_in_full(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    log = LogThrottle(LOGGER, 1.0, burst=2, clock=clock)
    for number in range(5):
        log.warning("refused %d", number)
    assert caplog.messages == ["refused 0", "refused 1"]


def test_each_key_has_its_own_interval(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    log = LogThrottle(LOGGER, 1.0, clock=clock)
    for key in ("a", "b", "a"):
        log.warning("refused %s", key, key=key)
    assert caplog.messages == ["refused a", "refused b"]


def test_number_of_keys_is_bounded(clock: Clock) -> None:
    log = LogThrottle(LOGGER, 1.0, clock=clock)
    for number in range(3 * log_throttle.MAX_KEYS):
        log.warning("refused", key=number)
    assert len(log._windows) == log_throttle.MAX_KEYS


async def test_summary_is_written_at_the_end_of_the_interval_without_a_further_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = LogThrottle(LOGGER, 0.02)
    for number in range(5):
        log.warning("refused %d", number)

    async def summarized() -> bool:
        return len(caplog.messages) == 2

    await waiting.until_async(summarized, 5, "the summary")
    assert caplog.messages == ["refused 0", "refused 4 (4 such lines in 0.02 s)"]
    await asyncio.sleep(0.05)
    assert len(caplog.messages) == 2


def test_threads_may_log_at_the_same_time(caplog: pytest.LogCaptureFixture) -> None:
    log = LogThrottle(LOGGER, 60.0)
    threads = [threading.Thread(target=lambda: [log.warning("x") for _ in range(1_000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert caplog.messages == ["x"]
