from __future__ import annotations

import json
import logging
import sys
from typing import Any

from fanfare.runtime.json_lines import JsonLines


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
