"""A request of the HTTP API: its query, its body, and the parameters of its operation."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, MutableMapping
from typing import Any, NamedTuple
from urllib.parse import unquote, unquote_plus

import orjson

from fanfare.api import refusals
from fanfare.applications import registry

# The types of an ASGI HTTP application, version 3.0 of the interface.
Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

Pairs = list[tuple[str, str]]

MAX_PARAMETERS = 256  # enough for an array of 100 channels; unsigned requests must not cause large sorts

BODY_SECONDS = 30  # for the whole body; 6 MB over a 2 Mbit/s line take 24 s
DRAIN_BYTES = 4 * 1024 * 1024  # read and dropped of a too large body, because senders read the response after its end
SMALL_BODY_BYTES = 1_024  # for operations without parameters in their body: some clients send an empty JSON object

AUTHENTICATION = frozenset({"auth_key", "auth_timestamp", "auth_version", "auth_signature", "body_md5"})
ARRAYS = frozenset({"channels"})  # a list even where the name appears once and without brackets


class Request(NamedTuple):
    """A signed request whose body was read and verified."""

    application: registry.Application
    names: dict[str, str]  # the variable parts of the path, decoded
    query: dict[str, Any]  # str or list[str], without the parameters that sign the request
    body: bytes
    idempotency_key: str | None  # from the header
    address: str = ""  # of the client
    traceparent: str | None = None  # the header of the W3C trace context

    def fields(self) -> dict[str, Any]:
        """The operation's parameters: those of the JSON body, or else those of the query. Raises Invalid."""
        if not self.body:
            return self.query
        try:
            value = orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise refusals.Invalid(f"The request's body is not valid JSON: {error}.", code="invalid_json") from None
        if not isinstance(value, dict):
            raise refusals.Invalid("The request's body must be a JSON object.", code="invalid_json")
        return {**self.query, **value} if self.query else value


# -- the query ---------------------------------------------------------------------------------------------------------


class Query(NamedTuple):
    """A query in the two forms that a client may have signed.

    `sent`: names in lower case, not decoded. `decoded`: the same list if nothing is encoded.
    """

    sent: Pairs
    decoded: Pairs

    @property
    def percent_decoded(self) -> Pairs:
        """Like `decoded`, but a plus stays a plus: some clients encode neither a plus nor a space."""
        return [(unquote(name), unquote(value)) for name, value in self.sent]

    def authentication(self) -> dict[str, str]:
        """The parameters that sign the request, by name. Raises Unauthorized if one appears twice."""
        found: dict[str, str] = {}
        for name, value in self.decoded:
            if name in AUTHENTICATION:
                if name in found:
                    raise refusals.Unauthorized(f"The parameter {name} appears twice.", code="repeated_parameter")
                found[name] = value
        return found

    def arguments(self) -> dict[str, str | list[str]]:
        """All other parameters. `name[]=a&name[]=b` and `name[0]=a&name[1]=b` are lists; else the last value counts."""
        found: dict[str, str | list[str]] = {}
        for name, value in self.decoded:
            if name in AUTHENTICATION:
                continue
            base, bracket, _ = name.partition("[")
            if bracket or base in ARRAYS:
                items = found.get(base)
                if isinstance(items, list):
                    items.append(value)
                else:
                    found[base] = [value]
            else:
                found[name] = value
        return found


def parse_query(query_string: bytes) -> Query:
    """Raises Invalid for more than MAX_PARAMETERS."""
    text = query_string.decode("utf-8", "replace")
    if text.count("&") >= MAX_PARAMETERS:
        raise refusals.Invalid(
            f"The query has {text.count('&') + 1} parameters, the allowed maximum is {MAX_PARAMETERS}.",
            code="too_many_parameters",
        )
    sent: Pairs = []
    for part in text.split("&"):
        if part:
            name, _, value = part.partition("=")
            sent.append((name.lower(), value))
    if "%" not in text and "+" not in text:
        return Query(sent, sent)
    return Query(sent, [(unquote_plus(name).lower(), unquote_plus(value)) for name, value in sent])


# -- the body ----------------------------------------------------------------------------------------------------------


class Head:
    """The headers that describe the body, and those that operations read."""

    __slots__ = ("chunked", "idempotency_key", "length", "traceparent")

    def __init__(self, headers: list[tuple[bytes, bytes]]) -> None:
        self.length: int | None = None  # bytes; None: not declared
        self.chunked = False
        self.idempotency_key: str | None = None
        self.traceparent: str | None = None
        for name, value in headers:
            if name == b"content-length":
                self.length = int(value) if value.isdigit() and len(value) < 20 else None
            elif name == b"transfer-encoding":
                self.chunked = True
            elif name == b"idempotency-key":
                self.idempotency_key = value.decode("latin-1")
            elif name == b"traceparent":
                self.traceparent = value.decode("latin-1")


def small_body_limit(limits: registry.Limits) -> int:
    return SMALL_BODY_BYTES


async def read_body(head: Head, receive: Receive, method: str, limit: int) -> bytes:
    """Read the whole body. `limit`: bytes.

    Raises TooLarge (before reading, if the declared length exceeds the limit by more than DRAIN_BYTES), BodyTimeout and
    Disconnected.
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
        return body  # it arrived with the head, as most bodies do: a timer would cost 5 % of a publication
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _rest(collecting, waits_for)
    except TimeoutError:
        raise refusals.BodyTimeout(f"The request's body did not arrive within {BODY_SECONDS} s.") from None


async def _collect(receive: Receive, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise refusals.Disconnected
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
    """Continue a started coroutine that waits for this future; a plain `await` does not accept it."""
    while True:
        thrown: BaseException | None = None
        try:
            yield waits_for
        except BaseException as error:  # noqa: BLE001 - for the coroutine: a cancellation, or the future's exception
            thrown = error
        try:
            waits_for = begun.send(None) if thrown is None else begun.throw(thrown)
        except StopIteration as end:
            body: bytes = end.value
            return body


def _too_large(size: int, limit: int, *, close: bool) -> refusals.TooLarge:
    """Client libraries look for the words "content of this event" in a 413."""
    return refusals.TooLarge(
        f"The request's body has {size} bytes and exceeds the allowed maximum ({limit} bytes): "
        "the data content of this event, or of this batch, is too large.",
        code="body_too_large",
        close=close,
    )
