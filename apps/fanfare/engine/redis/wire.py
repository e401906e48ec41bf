"""One connection to a server: RESP3, commands and messages on the same socket.

Replies and messages of one connection share an output buffer in the server, so a reply follows every message that was
published before its command ran, and precedes all that later commands publish; the messages of the command itself
precede or follow it. `on_messages` and the callback of a reply are therefore called where the bytes are parsed, in
their order, and never through an awaiting task: a task would see the reply after later messages.
"""

from __future__ import annotations

import asyncio
import collections
import logging
from collections.abc import Callable, Iterable
from typing import Any, Final

import hiredis

from fanfare.engine import errors
from fanfare.engine.redis import address

logger = logging.getLogger(__name__)

_pack: Callable[[tuple[bytes | str | int, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]

SLICE_CHANNELS: Final = 500  # in one SSUBSCRIBE

Reply = Callable[[Any], object]  # with an instance of hiredis.ReplyError if the server refused, or EngineUnavailable
OnLost = Callable[[BaseException | None], None]
OnDropped = Callable[[bytes], None]
OnMessages = Callable[[list[tuple[bytes, bytes]]], None]  # (channel, payload) in their order


class _Subscribing:
    """A SSUBSCRIBE or SUNSUBSCRIBE under way: confirmed by one push for each channel, refused by one reply."""

    __slots__ = ("kind", "left", "refused")

    def __init__(self, kind: bytes, left: int, refused: Reply) -> None:
        self.kind = kind
        self.left = left
        self.refused = refused


class Wire(asyncio.Protocol):
    """`on_dropped(channel)`: the server ended a subscription by itself, as it does when a cluster moves its slot."""

    def __init__(self, on_messages: OnMessages, on_lost: OnLost, on_dropped: OnDropped) -> None:
        self.messages = 0
        self.reads = 0
        self._on_messages = on_messages
        self._on_lost = on_lost
        self._on_dropped = on_dropped
        self._reader = hiredis.Reader(protocolError=ConnectionError, replyError=hiredis.ReplyError)
        self._transport: asyncio.Transport | None = None
        self._expected: collections.deque[Reply | _Subscribing] = collections.deque()
        self._out: list[bytes] = []
        self._flushing: asyncio.Handle | None = None

    # -- out -----------------------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def call(self, reply: Reply, *arguments: bytes | str | int) -> None:
        """Send a command at the end of this turn of the loop; `reply` gets the answer."""
        if not self.is_open:
            reply(errors.EngineUnavailable("The connection to Redis is closed"))
            return
        data = _pack(arguments)  # first: where it raises, no answer is expected
        self._expected.append(reply)
        self._send(data)

    def subscribe(self, channels: Iterable[str], refused: Reply, *, on: bool = True) -> None:
        """Start or stop messages of channels, all of one slot. What is appended afterwards is delivered."""
        verb = "SSUBSCRIBE" if on else "SUNSUBSCRIBE"
        names = list(channels)
        if not self.is_open:
            return
        for start in range(0, len(names), SLICE_CHANNELS):
            part = names[start : start + SLICE_CHANNELS]
            data = _pack((verb, *part))
            self._expected.append(_Subscribing(verb.lower().encode(), len(part), refused))
            self._send(data)

    async def ask(self, *arguments: bytes | str | int, timeout_s: float = address.CONNECT_S) -> Any:
        """A command and its answer, for the start of a connection. Raises hiredis.ReplyError, EngineUnavailable."""
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def reply(answer: Any) -> None:
            if answered.done():
                return
            if isinstance(answer, Exception):
                answered.set_exception(answer)
            else:
                answered.set_result(answer)

        self.call(reply, *arguments)
        async with asyncio.timeout(timeout_s):
            return await answered

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _send(self, data: bytes) -> None:
        self._out.append(data)
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Write the buffered commands: one write for each turn of the loop."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._out and self._transport is not None:
            out, self._out = self._out, []
            self._transport.write(b"".join(out))

    # -- in ------------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        self.reads += 1
        messages: list[tuple[bytes, bytes]] = []
        try:
            while (item := self._reader.gets()) is not False:
                if type(item) is hiredis.PushNotification:
                    if item[0] == b"smessage":
                        messages.append((item[1], item[2]))
                    else:
                        self._confirmed(item)
                    continue
                if messages:
                    self._hand_over(messages)
                    messages = []
                self._replied(item)
            if messages:
                self._hand_over(messages)
        except Exception as error:
            # After any failure, the replies that follow would be matched to the wrong requests.
            logger.exception("The connection to Redis is closed because of a fault in handling its data")
            self._lose(error)

    def _hand_over(self, messages: list[tuple[bytes, bytes]]) -> None:
        self.messages += len(messages)
        self._on_messages(messages)

    def _confirmed(self, item: list[Any]) -> None:
        head = self._expected[0] if self._expected else None
        if isinstance(head, _Subscribing) and head.kind == item[0]:
            head.left -= 1
            if not head.left:
                self._expected.popleft()
        elif item[0] == b"sunsubscribe":
            self._on_dropped(item[1])

    def _replied(self, item: Any) -> None:
        if not self._expected:
            raise ConnectionError("Redis sent a reply without a request")
        head = self._expected.popleft()
        if isinstance(head, _Subscribing):
            head.refused(item)
        else:
            head(item)

    def connection_lost(self, error: BaseException | None) -> None:
        self._lose(error)

    def _lose(self, error: BaseException | None) -> None:
        if self._transport is None:
            return
        self._transport.abort()
        self._transport = None
        expected, self._expected = self._expected, collections.deque()
        failure = errors.EngineUnavailable("The connection to Redis was lost before it answered")
        for each in expected:
            if not isinstance(each, _Subscribing):
                try:
                    each(failure)
                except Exception:
                    # The others get their answer, and the connection is opened again.
                    logger.exception("The loss of the connection to Redis could not be handled")
        self._on_lost(error)


async def connect(
    where: address.Address,
    server: tuple[str, int],
    name: str,
    make: Callable[[], Wire],
) -> Wire:
    """Open, authenticate and name a connection. Raises OSError, EngineUnavailable, hiredis.ReplyError."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(address.CONNECT_S):
            if where.form == "unix":
                _, wire = await loop.create_unix_connection(make, where.path)
            else:
                _, wire = await loop.create_connection(make, *server, ssl=where.ssl_context())
    except TimeoutError as error:
        raise errors.EngineUnavailable(f"{server[0]}:{server[1]} does not accept the connection in time") from error
    try:
        login = ("AUTH", where.user or "default", where.password) if where.password else ()
        await wire.ask("HELLO", "3", *login, "SETNAME", name)
        if where.db:
            await wire.ask("SELECT", where.db)
    except BaseException as error:
        wire.abort()
        if isinstance(error, TimeoutError):
            raise errors.EngineUnavailable("Redis accepts the connection and does not answer") from error
        raise
    return wire
