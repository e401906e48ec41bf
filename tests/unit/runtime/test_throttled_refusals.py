"""A flood of refused requests gets some lines in a minute, and other lines pass."""

from __future__ import annotations

import logging
from typing import Any

from fanfare.runtime.log_throttle import ThrottledRefusals


def record(name: str, message: str, *args: object, exc_info: Any = None, **more: object) -> logging.LogRecord:
    made = logging.LogRecord(name, logging.WARNING, "", 0, message, args, exc_info)
    made.__dict__.update(more)
    return made


def access(path: str, status: int) -> logging.LogRecord:
    return record("uvicorn.access", '%s - "%s %s HTTP/%s" %d', "192.0.2.1:1", "GET", path, "1.1", status)


def not_found(path: str = "/x") -> logging.LogRecord:
    return record("django.request", "Not Found: %s", path, status_code=404)


def test_flood_of_404s_is_some_lines_and_a_count() -> None:
    now = 0.0
    throttle = ThrottledRefusals(clock=lambda: now)
    for make in (not_found, lambda: access("/x", 404)):
        assert sum(throttle.filter(make()) for _ in range(1_000)) == ThrottledRefusals.BURST
    now = 61.0
    for make, line in (
        (not_found, "Not Found: /x (980 more since the last line)"),
        (lambda: access("/x", 404), '192.0.2.1:1 - "GET /x (980 more since the last line) HTTP/1.1" 404'),
    ):
        first = make()
        assert throttle.filter(first)
        assert first.getMessage() == line


def test_each_status_has_lines_of_its_own() -> None:
    throttle = ThrottledRefusals(clock=lambda: 0.0)
    for _ in range(100):
        throttle.filter(access("/x", 404))
    assert throttle.filter(access("/x", 403))


def test_other_lines_pass_unchanged() -> None:
    throttle = ThrottledRefusals(clock=lambda: 0.0)
    for made in (
        access("/x", 200),
        record("django.request", "Internal Server Error: %s", "/x", status_code=500),
        record("fanfare.hub", "A line with %d", 404),
    ):
        before = made.getMessage()
        assert all(throttle.filter(made) for _ in range(100))
        assert made.getMessage() == before


def test_refused_host_has_no_traceback_and_a_long_path_is_cut() -> None:
    throttle = ThrottledRefusals()
    error = ValueError("wrong")
    refused = record("django.security.DisallowedHost", "A wrong host: 100%", exc_info=(type(error), error, None))
    assert throttle.filter(refused)
    assert (refused.exc_info, refused.getMessage()) == (None, "A wrong host: 100%")
    long = not_found("/" + "x" * 10_000)
    assert throttle.filter(long)
    assert len(long.getMessage()) == ThrottledRefusals.CHARACTERS + 1
