"""The exceptions of calls that the deployment refused: those that the calls raise without remote mode."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fanfare import errors
from fanfare.integration.remote.client import Answer

_NUMBERS = re.compile(r"\((\d+) bytes\): it has (\d+) bytes")
_STREAMS = re.compile(r"^Too many streams: (\d+) are open, the allowed maximum is (\d+)")
_STREAM_LENGTH = re.compile(r"^The stream would have (\d+) UTF-16 code units, the allowed maximum is (\d+)")
_ITEM = re.compile(r"^Event (\d+) of the batch: ")


class NoHistory(errors.PublishError):
    """No channel rule keeps a history of the channel."""


def stream_error(answer: Answer, stream: str) -> errors.FanfareError:
    """The exception that a refused write would raise without remote mode."""
    if numbers := _STREAMS.search(answer.message):
        return errors.TooManyStreams(int(numbers[1]), int(numbers[2]))
    if numbers := _STREAM_LENGTH.search(answer.message):
        return errors.StreamTooLong(int(numbers[1]), int(numbers[2]))
    return publish_error(answer, [{"name": stream}])


def publish_error(answer: Answer, events: Sequence[dict[str, Any]]) -> errors.PublishError:
    """The exception that the call would raise without remote mode."""
    item = _ITEM.match(answer.message)
    event = events[int(item[1])] if item is not None and int(item[1]) < len(events) else (events or [{}])[0]
    if answer.status == 413:
        numbers = _NUMBERS.search(answer.message)
        size = len(str(event.get("data", "")).encode())
        limit, size = (int(numbers[1]), int(numbers[2])) if numbers is not None else (0, size)
        return errors.DataTooLarge(str(event.get("name", "")), size, limit)
    if answer.code == "not_enabled":
        return NoHistory(answer.message)
    if answer.code == "invalid_data":
        return errors.UnencodableData(answer.message)
    if answer.code == "invalid_user_id":
        return errors.InvalidUser(answer.message)
    if answer.code in (
        "invalid_channel",
        "invalid_name",
        "reserved_name",
        "invalid_socket_id",
        "invalid_idempotency_key",
    ):
        return errors.InvalidName(answer.message)
    return errors.PublishError(answer.message)
