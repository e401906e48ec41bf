from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from fanfare.runtime import log_lines
from fanfare.runtime.log_lines import JsonLines, TextLines


def line(message: str, *values: object, exc_info: Any = None, **ids: object) -> dict[str, Any]:
    record = logging.LogRecord("fanfare.x", logging.INFO, __file__, 1, message, values, exc_info)
    record.__dict__.update(ids)
    text = JsonLines().format(record)
    assert "\n" not in text
    found: dict[str, Any] = json.loads(text)
    return found


def test_line_is_one_json_object_with_its_ids() -> None:
    found = line("%s: refused\nnext", "1.2", socket="1.2", channel=None, reason="wrong_signature", other="not shown")
    assert found["message"] == "1.2: refused\nnext"
    assert found["level"] == "INFO"
    assert found["logger"] == "fanfare.x"
    assert found["time"].endswith("+00:00")
    assert (found["socket"], found["reason"]) == ("1.2", "wrong_signature")
    assert {"channel", "other"}.isdisjoint(found)


def test_exception_has_its_traceback() -> None:
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        found = line("failed", exc_info=sys.exc_info())
    assert "ZeroDivisionError" in found["exception"]


def test_text_that_is_no_unicode_is_written_all_the_same() -> None:
    assert line("half: \ud800")["message"] == "half: \\ud800"


def text(message: str, *, exc_info: Any = None, **ids: object) -> str:
    record = logging.LogRecord("fanfare.x", logging.INFO, __file__, 1, message, (), exc_info)
    record.__dict__.update(ids)
    return TextLines(logging.Formatter("%(levelname)s %(message)s")).format(record)


def test_text_line_ends_with_the_ids_that_it_does_not_contain() -> None:
    assert text("1.2: refused", socket="1.2", channel="orders", reason=None) == "INFO 1.2: refused [channel=orders]"
    assert text("started") == "INFO started"


def test_ids_of_a_text_line_stand_before_the_traceback() -> None:
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        lines = text("failed", exc_info=sys.exc_info(), socket="1.2").splitlines()
    assert lines[0] == "INFO failed [socket=1.2]"
    assert lines[-1].startswith("ZeroDivisionError")


def test_text_line_stays_one_line_whatever_a_client_sends() -> None:
    assert "\n" not in text("refused", channel="a\nERROR forged")


def test_line_of_a_request_has_the_id_of_the_header() -> None:
    token = log_lines.scope.set({"headers": [(b"x-request-id", b"f3-a1")]})
    try:
        assert text("done") == "INFO done [request=f3-a1]"
        assert line("done")["request"] == "f3-a1"
    finally:
        log_lines.scope.reset(token)


@pytest.mark.parametrize("sent", [None, b"", b"a b", b"\x1b[2J", b"a" * 129])
def test_request_without_a_usable_id_gets_one_for_all_of_its_lines(sent: bytes | None) -> None:
    token = log_lines.scope.set({"headers": [] if sent is None else [(b"x-request-id", sent)]})
    try:
        first = line("one")["request"]
        assert len(first) == 16
        assert line("two")["request"] == first
    finally:
        log_lines.scope.reset(token)


def test_line_in_a_trace_has_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_lines, "trace_id", lambda: "0af7")
    assert text("done") == "INFO done [trace=0af7]"
    assert line("done")["trace"] == "0af7"
