"""Reading a request's body, never more of it than was agreed."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any

from fanfare.api import asgi, errors

BODY_SECONDS = 30  # from the first byte asked for to the last; a 6 MB batch over a 2 Mbit/s line takes 24
DRAIN_BYTES = 4 * 1024 * 1024  # read and dropped of a body that is too large: a sender reads no answer before


class Head:
    """What the headers say about the body, and the one header that an operation reads."""

    __slots__ = ("chunked", "idempotency_key", "length")

    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.length: int | None = None  # bytes; None: not declared
        self.chunked = False
        self.idempotency_key: str | None = None
        for name, value in headers:
            if name == b"content-length":
                self.length = int(value) if value.isdigit() and len(value) < 20 else None
            elif name == b"transfer-encoding":
                self.chunked = True
            elif name == b"idempotency-key":
                self.idempotency_key = value.decode("latin-1")


async def read(head: Head, receive: asgi.Receive, method: str, limit: int) -> bytes:
    """The whole body. `limit` in bytes.

    Raises TooLarge (before anything is read if the declared length is beyond reason), BodyTimeout, Disconnected.
    """
    if not head.length and not head.chunked and method != "POST":
        return b""
    if head.length is not None and head.length > limit + DRAIN_BYTES:
        raise _too_large(head.length, limit, close=True)
    collecting = _collect(receive, limit)
    try:
        waits_for = collecting.send(None)
    except StopIteration as end:
        body: bytes = end.value
        return body  # it came with the head, as nearly all do: a timer that nobody needs is 5 % of a publication
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _rest(collecting, waits_for)
    except TimeoutError:
        raise errors.BodyTimeout(f"The request's body did not arrive within {BODY_SECONDS} s.") from None


async def _collect(receive: asgi.Receive, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise errors.Disconnected
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        elif size > limit + DRAIN_BYTES:
            raise _too_large(size, limit, close=True)
        if not message.get("more_body", False):
            break
    if size > limit:
        raise _too_large(size, limit, close=False)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


@types.coroutine
def _rest(begun: Coroutine[Any, Any, bytes], waits_for: Any) -> Generator[Any, Any, bytes]:
    """Await a coroutine that has been begun and waits for this future; a plain `await` refuses it."""
    while True:
        thrown: BaseException | None = None
        try:
            yield waits_for
        except BaseException as error:  # noqa: BLE001 - it is for the coroutine: a cancellation, or the future's own
            thrown = error
        try:
            waits_for = begun.send(None) if thrown is None else begun.throw(thrown)
        except StopIteration as end:
            body: bytes = end.value
            return body


def _too_large(size: int, limit: int, *, close: bool) -> errors.TooLarge:
    """The words "content of this event" are what client libraries look for in a 413."""
    return errors.TooLarge(
        f"The request's body has {size} bytes and exceeds the allowed maximum ({limit} bytes): "
        "the data content of this event, or of this batch, is too large.",
        code="body_too_large",
        close=close,
    )
