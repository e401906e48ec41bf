"""stream(): one message of a channel that grows, such as the answer of a language model.

    async with fanfare.stream("private-chat-7", "answer", meta={"by": "assistant"}) as answer:
        async for token in model:
            await answer.append(token)

and in code without an event loop:

    with fanfare.stream("private-chat-7", "answer") as answer:
        for token in model:
            answer.append(token)

`append` only puts the text into a buffer. One thread of the process, the flusher, writes the buffers of all streams
once per window (40 ms by default), in one commit. So a token costs a producer a microsecond, and 150 tokens a second of
one stream cost 25 events.

At the end of the block the stream is `done`, after an exception `failed`, and after the cancellation of its task
`interrupted`. If the producer dies, the stream is `interrupted` when its lease expires.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Final

import orjson
from asgiref.sync import sync_to_async

from fanfare import errors
from fanfare.applications import registry
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.integration import payloads, publishing, target
from fanfare.integration.remote import engine as remote_engine
from fanfare.integration.stream_producer import Producer
from fanfare.protocol import names, publications, refusals
from fanfare.protocol import streams as rules

__all__ = ["AsyncStream", "Stream", "acancel_stream", "cancel_stream", "stream"]

State = interface.StreamState

END_S: Final = 10.0  # that the end of the block waits for the log


class stream:  # noqa: N801  (used like a function)
    """A message of `channel` that grows: `with` in a view or a task, `async with` in a coroutine.

    `event`: the name of its events. `id`: 1 to 100 letters, digits and `_ - = @ , . ; :`, by default a random one; a
    stream that is open, failed or interrupted is continued. `meta`: data for the page beside the text, as JSON.
    `app`: an application or its id, by default the project's default application.

    Raises a PublishError for a wrong argument; StreamClosed for an id whose stream is done, StreamCancelled for a
    cancelled one, TooManyStreams, and EngineUnavailable.
    """

    def __init__(
        self,
        channel: str,
        event: str,
        *,
        id: str | None = None,  # noqa: A002  (what it is called everywhere)
        meta: Any = None,
        app: target.App = None,
    ) -> None:
        self._arguments = (channel, event, id, meta, app)
        self._producer: Producer  # once the block was entered

    def __enter__(self) -> Stream:
        publishing.refuse_event_loop("with fanfare.stream", "async with fanfare.stream")
        self._producer = _prepare(*self._arguments)
        self._producer.open()
        return Stream(self._producer)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = self._producer.end_after(error)
        if ended is not None:
            _result(ended, error)

    async def __aenter__(self) -> AsyncStream:
        # The database belongs to the thread of this context; a wait for the log must not block it.
        producer = await sync_to_async(_prepare, thread_sensitive=True)(*self._arguments)
        try:
            await sync_to_async(producer.open, thread_sensitive=False)()
        except asyncio.CancelledError as error:
            producer.end_after(error)  # the thread of `open` runs on, and no `__aexit__` follows
            raise
        self._producer = producer
        return AsyncStream(producer)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = self._producer.end_after(error)
        if ended is None:
            return
        if isinstance(error, asyncio.CancelledError):
            return  # the flusher continues; the loop may be about to close
        done, _ = await asyncio.wait({asyncio.wrap_future(ended)}, timeout=END_S)
        for future in done:
            future.exception()  # asyncio logs one that is not asked for, at any later time
        _result(ended, error, timeout_s=0)


def _result(ended: Future[None], error: BaseException | None, timeout_s: float = END_S) -> None:
    """Raise the error that kept the stream from being ended, unless the block raises one itself."""
    try:
        ended.result(timeout_s)
    except (errors.FanfareError, TimeoutError) as failure:
        if error is None:
            if isinstance(failure, TimeoutError):
                raise engine_errors.EngineUnavailable(
                    f"Timed out after {END_S:g} s waiting for the log to store the stream's end; the write is retried."
                ) from None
            raise


class _Handle:
    """The attributes and methods of both kinds of producers that do not block."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    @property
    def id(self) -> str:
        return self._producer.where.id

    @property
    def text(self) -> str:
        """Everything that was appended, also by an earlier producer."""
        return self._producer.text

    @property
    def seq(self) -> int:
        """The number of the newest token."""
        return self._producer.seq

    @property
    def is_resumed(self) -> bool:
        """Whether an earlier producer has begun the stream."""
        return self._producer.is_resumed

    @property
    def is_cancelled(self) -> bool:
        return isinstance(self._producer.failure, errors.StreamCancelled)

    def restart(self) -> None:
        """Drop the text: the next append begins the text again, with the number 1."""
        self._producer.restart()

    def fail(self, error: str) -> None:
        """End the stream as failed, with a message for its readers. Later appends raise StreamClosed."""
        # An exception in place of its text, or half a character in it, must not keep the stream from its end.
        self._producer.end(State.FAILED, str(error).encode(errors="backslashreplace").decode())

    def done(self) -> None:
        """End the stream before the end of the block."""
        self._producer.end(State.DONE)

    def cancel(self) -> None:
        """End the stream as cancelled."""
        self._producer.end(State.CANCELLED)


class Stream(_Handle):
    """The stream in a `with` block, as `stream()` returns it."""

    def append(self, text: str, seq: int | None = None) -> None:
        """Add text. `seq`: the token's number, 1, 2, 3, …, by default the next one. A token that the stream already
        has is dropped, so a task that is run again may send all tokens again.

        Raises StreamCancelled, StreamClosed, StreamConflict, StreamTooLong, UnencodableData, and EngineUnavailable if
        the log could not be written for 30 s.
        """
        self._producer.append(text, seq)
        while self._producer.is_full:
            time.sleep(0.005)


class AsyncStream(_Handle):
    """The stream in an `async with` block, as `stream()` returns it."""

    async def append(self, text: str, seq: int | None = None) -> None:
        """See `Stream.append`."""
        self._producer.append(text, seq)
        while self._producer.is_full:  # noqa: ASYNC110  (the flusher is a thread)
            await asyncio.sleep(0.005)


# -- ending from outside -----------------------------------------------------------------------------------------------


def cancel_stream(channel: str, stream_id: str, *, app: target.App = None) -> bool:
    """Cancel a stream: its producer's next append raises StreamCancelled. False: no such stream is open.

    Raises InvalidName, NoApplication, EngineUnavailable, CalledOnEventLoop.
    """
    publishing.refuse_event_loop("cancel_stream", "acancel_stream")
    return _cancel(target.application(app), channel, stream_id)


async def acancel_stream(channel: str, stream_id: str, *, app: target.App = None) -> bool:
    """`cancel_stream` for coroutines."""
    application = await sync_to_async(target.application)(app)
    return await sync_to_async(_cancel, thread_sensitive=False)(application, channel, stream_id)


def _cancel(application: registry.Application, channel: str, stream_id: str) -> bool:
    _check(application, channel, "cancel", stream_id)
    where = interface.StreamName(application.id, channel, stream_id)
    engine = target.engine()
    if isinstance(engine, remote_engine.RemoteEngine):
        return engine.cancel_stream(where)
    before = rules.end_blocking(engine, application, where, State.CANCELLED)
    return before is not None and before.state is State.OPEN


# -- arguments ---------------------------------------------------------------------------------------------------------


def _check(application: registry.Application, channel: str, event: str, stream_id: str | None) -> None:
    for what, name in (("channel", channel), ("event", event)):
        if not isinstance(name, str):
            raise errors.InvalidName(f"The {what} is of type {type(name).__name__}; it must be a str.")
    try:
        names.check_publishable_channel(channel, application.limits.max_channel_name)
        publications.check_event_name(event, application.limits)
        rules.check_channel(channel)
        if stream_id is not None:
            rules.check_id(stream_id)
    except refusals.PusherError as error:
        raise errors.InvalidName(f"{error}.") from error


def _prepare(channel: str, event: str, stream_id: str | None, meta: Any, app: target.App) -> Producer:
    application = target.application(app)
    _check(application, channel, event, stream_id)
    try:
        meta = None if meta is None else orjson.loads(payloads.json_text(meta))
    except TypeError as error:
        raise errors.UnencodableData(f"The meta of the stream has no JSON form: {error}.") from error
    return Producer(application, channel, event, stream_id=stream_id, meta=meta)
