"""Token buckets and the log that they throttle."""

from __future__ import annotations

import logging

import pytest

from fanfare.protocol import rates, throttled


def taken(bucket: rates.TokenBucket, tries: int, now: float) -> int:
    return sum(bucket.take(10, 20, now) for _ in range(tries))


def test_a_bucket_gives_its_burst_at_once_and_its_rate_after_that() -> None:
    bucket = rates.TokenBucket(20, now=0)
    assert taken(bucket, 100, now=0) == 20
    assert taken(bucket, 100, now=0.05) == 0
    assert taken(bucket, 100, now=0.1) == 1
    assert taken(bucket, 100, now=1.1) == 10


def test_a_bucket_never_holds_more_than_its_burst() -> None:
    bucket = rates.TokenBucket(20, now=0)
    assert taken(bucket, 100, now=1_000_000) == 20


def test_a_lower_limit_holds_at_once() -> None:
    bucket = rates.TokenBucket(20, now=0)
    assert [bucket.take(1, 2, 0) for _ in range(3)] == [True, True, False]


def test_a_throttled_log_tells_how_much_it_left_out(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    log = throttled.Log(logging.getLogger("tests.throttled"), per_second=2, clock=lambda: now)
    with caplog.at_level(logging.INFO, "tests.throttled"):
        for number in range(5):
            log.info("refused %d", number)
        now = 1.0
        log.info("refused %d", 5)
        log.info("refused %d", 6)
    assert caplog.messages == ["refused 0", "refused 1", "refused 5 (3 more were not logged)", "refused 6"]
