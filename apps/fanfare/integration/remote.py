"""Remote mode: this project publishes to another Fanfare deployment, over its signed HTTP API.

With FANFARE_REMOTE_URL, FANFARE_REMOTE_APP_ID, FANFARE_REMOTE_KEY and FANFARE_REMOTE_SECRET, the engine of every
process is a `RemoteEngine`: `publish`, `presence` and `history` work as before, and this project needs no application
in its database, no log and no data folder.

A request that fails, or gets 429, 500, 502, 503 or 504, is sent again until FANFARE_APPEND_TIMEOUT has
passed. Every event has an idempotency key, so a repeated request publishes nothing twice. For FAILURE_S after a failed
call, each call makes a single attempt, so that views do not wait for a deployment that is down. Redirects are not
followed, because a signature is valid for one path.

Source: Pusher Channels, "HTTP API".
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import random
import re
import ssl
import threading
import time
import uuid
from collections.abc import Awaitable, Iterator, Sequence
from typing import Any, NamedTuple, cast
from urllib.parse import quote, urlencode, urlsplit

import orjson
from asgiref.sync import sync_to_async

from fanfare import conf, errors
from fanfare.applications import registry
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.hub import event_frames, streams
from fanfare.protocol import names, revocations, signatures, termination

logger = logging.getLogger("fanfare.integration")

BATCH_EVENTS = 10  # per request; the default of an application's max_batch_events
STREAMS = 100  # appends per request: the maximum of the API
STREAM_BYTES = 512 * 1024  # of their JSON: the API takes at least 819,200
HISTORY_PAGE = 500  # events per request: the maximum of the API
IDLE_S = 4.0  # longer idle connections are closed: uvicorn closes them after 5 s
IDLE_CONNECTIONS = 8  # per process
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 1.0  # between two attempts
CONNECT_S = 2.0  # a lost SYN is sent again after 1 s
FAILURE_S = 10.0  # after a failure, in which calls make a single attempt

_RETRIED = frozenset({429, 500, 502, 503, 504})
_NUMBERS = re.compile(r"\((\d+) bytes\): it has (\d+) bytes")
_STREAMS = re.compile(r"^Too many streams: (\d+) are open, the allowed maximum is (\d+)")
_STREAM_LENGTH = re.compile(r"^The stream would have (\d+) UTF-16 code units, the allowed maximum is (\d+)")
_MEMBERS = re.compile(r"^Too many members: .* has (\d+), the allowed maximum is (\d+)")
_ITEM = re.compile(r"^Event (\d+) of the batch: ")

# The other deployment checks the limits of its application.
_UNBOUNDED = 2**31
LIMITS = registry.Limits(
    max_event_bytes=_UNBOUNDED,
    max_channel_name=_UNBOUNDED,
    max_event_name=_UNBOUNDED,
    max_member_bytes=_UNBOUNDED,
    max_user_id=_UNBOUNDED,
    max_watchlist=_UNBOUNDED,
)


def application() -> registry.Application:
    """The application at the other deployment."""
    settings = conf.settings
    return registry.Application(
        id=settings.REMOTE_APP_ID,
        key=settings.REMOTE_KEY,
        secret=settings.REMOTE_SECRET,
        name=settings.REMOTE_URL,
        limits=LIMITS,
    )


def engine() -> interface.Engine:
    """The engine of remote mode, for `fanfare.engine.current.use`. It has the methods that a process without worker
    needs.
    """
    made = RemoteEngine(conf.settings.REMOTE_URL, application(), timeout_s=conf.settings.APPEND_TIMEOUT)
    return cast("interface.Engine", made)


class Answer(NamedTuple):
    """An HTTP response. `body`: the decoded JSON, None if it is not JSON."""

    status: int
    body: Any
    headers: http.client.HTTPMessage

    @property
    def message(self) -> str:
        return str(self.body.get("error", "")) if isinstance(self.body, dict) else ""

    @property
    def code(self) -> str:
        return str(self.body.get("code", "")) if isinstance(self.body, dict) else ""


class RemoteEngine:
    """The part of an engine for processes that are no worker. Thread-safe and fork-safe.

    `url`: of the deployment, with the path of its API. `timeout_s`: of one call with its retries.
    """

    is_open = False  # no process of this project is a worker

    def __init__(self, url: str, target: registry.Application, *, timeout_s: float) -> None:
        self._url = url
        self._target = target
        self._timeout_s = timeout_s
        self._connections = _Connections(url)
        self._failed_at = -FAILURE_S  # monotonic

    def close(self) -> None:
        """Close the idle connections. The next call opens others."""
        self._connections.close()

    # -- publishing ----------------------------------------------------------------------------------------------------

    def append_blocking(
        self, publications: Sequence[interface.Publication], timeout: float | None = None
    ) -> list[interface.Receipt]:
        """Publish in order, BATCH_EVENTS per request. Each request publishes all of its events or none.

        Raises EngineUnavailable, EngineMisconfigured, and a PublishError for what the other deployment refuses.
        """
        deadline = time.monotonic() + (self._timeout_s if timeout is None else timeout)
        events: list[interface.Publication] = []
        for publication in publications:
            if publication.kind is interface.Kind.EVENT:
                events.append(publication)
                if len(events) == BATCH_EVENTS:
                    self._send(events, deadline)
                    events = []
            elif publication.channel == termination.COMMAND:
                self._send(events, deadline)
                events = []
                self._terminate(publication, deadline)
            elif publication.channel == revocations.COMMAND:
                self._revoke(publication, deadline)
            # Other commands are for workers of this project, which has none.
        self._send(events, deadline)
        return [interface.Receipt(None, duplicate=False) for _ in publications]

    def append(
        self, publications: Sequence[interface.Publication], *, budget: interface.Budget | None = None
    ) -> Awaitable[list[interface.Receipt]]:
        """`append_blocking` for coroutines."""
        return sync_to_async(self.append_blocking, thread_sensitive=False)(publications)

    def _send(self, events: Sequence[interface.Publication], deadline: float) -> None:
        if not events:
            return
        fields = [_fields(event) for event in events]
        try:
            if len(fields) == 1:
                self._ask("POST", "events", deadline, body=fields[0])
            else:
                self._ask("POST", "batch_events", deadline, body={"batch": fields})
        except _Refused as refused:
            if refused.answer.code == "batch_too_large":  # this application allows only smaller batches
                for event in events:
                    self._send([event], deadline)
                return
            raise _publish_error(refused.answer, fields) from None

    def _terminate(self, command: interface.Publication, deadline: float) -> None:
        body = orjson.loads(command.body)
        reconnect = "1" if body["code"] == termination.TO_RECONNECT else "0"
        path = f"users/{quote(body['user_id'], safe='')}/terminate_connections"
        try:
            self._ask("POST", path, deadline, body={"reconnect": reconnect})
        except _Refused as refused:
            raise _publish_error(refused.answer, []) from None

    def _revoke(self, command: interface.Publication, deadline: float) -> None:
        body = orjson.loads(command.body)
        fields = {} if body["exp"] is None else {"exp": str(int(body["exp"]) + 1)}
        try:
            self._ask("POST", f"capabilities/{quote(body['jti'], safe='')}/revoke", deadline, body=fields)
        except _Refused as refused:
            raise _publish_error(refused.answer, []) from None

    # -- streams -------------------------------------------------------------------------------------------------------

    def write_streams(
        self, writes: Sequence[interface.StreamWrite], timeout: float | None = None
    ) -> list[interface.StreamReceipt]:
        """One request for up to STREAMS appends, and one for each opening. Raises what `append_blocking` raises.

        If the other deployment refuses one append of several, its error is in its receipt. A single write raises it:
        a PublishError, TooManyStreams or StreamTooLong.
        """
        deadline = time.monotonic() + (self._timeout_s if timeout is None else timeout)
        if len(writes) == 1 or any(write.head is not None for write in writes):
            return [self._write_stream(write, deadline) for write in writes]
        receipts: list[interface.StreamReceipt] = []
        for batch in _stream_batches(writes):
            receipts += self._append_to_streams(batch, deadline)
        return receipts

    def open_channel(self, app: str, channel: str, timeout: float | None = None) -> interface.Position:
        return _position(self.get(f"{_path(channel)}/history", limit="1", open="1")["position"])

    def revise(self, revision: interface.Revision, timeout: float | None = None) -> interface.Position | None:
        deadline = time.monotonic() + (self._timeout_s if timeout is None else timeout)
        path = f"{_path(revision.channel)}/history/{quote(str(revision.position), safe='')}/revise"
        author = orjson.loads(orjson.loads(revision.notice)["data"])["by"]
        fields: dict[str, Any] = {"by": author} if author is not None else {}
        if revision.body:
            fields["data"] = orjson.loads(revision.body)["data"]
        else:
            fields["delete"] = "1"
        try:
            answer = self._ask("POST", path, deadline, body=fields)
        except _Refused as refused:
            if refused.answer.status == 410:
                return None
            raise _publish_error(refused.answer, [fields]) from None
        return interface.Position(answer["epoch"], answer["offset"])

    def update_member(self, app: str, channel: str, user_id: str, info: str, timeout: float | None = None) -> bool:
        deadline = time.monotonic() + (self._timeout_s if timeout is None else timeout)
        path = f"{_path(channel)}/users/{quote(user_id, safe='')}/update"
        try:
            return bool(self._ask("POST", path, deadline, body={"user_info": orjson.loads(info)})["updated"])
        except _Refused as refused:
            raise _publish_error(refused.answer, [{"name": channel}]) from None

    def lease_member(
        self,
        app: str,
        channel: str,
        user_id: str,
        info: str | None,
        seconds: float,
        *,
        limit: int | None = None,
        timeout: float | None = None,
    ) -> bool | interface.Refused:
        deadline = time.monotonic() + (self._timeout_s if timeout is None else timeout)
        path = f"{_path(channel)}/members/{quote(user_id, safe='')}"
        fields: dict[str, Any] = {"ttl": max(1, round(seconds))}
        if info is not None:
            fields["user_info"] = orjson.loads(info)
        try:
            return bool(self._ask("POST", path, deadline, body=fields)["joined"])
        except _Refused as refused:
            numbers = _MEMBERS.search(refused.answer.message)
            if numbers is not None:
                return interface.Refused("member_limit", refused.answer.message, int(numbers[2]), int(numbers[1]))
            raise _publish_error(refused.answer, [{"name": channel}]) from None

    def release_member(self, app: str, channel: str, user_id: str, timeout: float | None = None) -> bool:
        deadline = time.monotonic() + (self._timeout_s if timeout is None else timeout)
        path = f"{_path(channel)}/members/{quote(user_id, safe='')}/leave"
        try:
            return bool(self._ask("POST", path, deadline, body={})["left"])
        except _Refused as refused:
            raise _publish_error(refused.answer, [{"name": channel}]) from None

    def cancel_stream(self, where: interface.StreamName) -> bool:
        """Whether an open stream was cancelled."""
        path = f"{_path(where.channel)}/streams/{quote(where.id, safe='')}/cancel"
        try:
            answer = self._ask("POST", path, time.monotonic() + self._timeout_s, body={})
        except _Refused as refused:
            raise _publish_error(refused.answer, [{"name": where.id}]) from None
        return bool(answer["accepted"])

    def _write_stream(self, write: interface.StreamWrite, deadline: float) -> interface.StreamReceipt:
        path, fields = _stream_request(write)
        try:
            answer = self._ask("POST", path, deadline, body=fields)
        except _Refused as refused:
            raise _stream_error(refused.answer, write.id) from None
        return _stream_receipt(answer, done=answer["accepted"])

    def _append_to_streams(self, batch: Sequence[dict[str, Any]], deadline: float) -> list[interface.StreamReceipt]:
        try:
            answers = self._ask("POST", "streams/append", deadline, body={"batch": batch})["batch"]
        except _Refused as refused:  # the whole body is too large
            return [
                interface.StreamReceipt(False, None, error=_stream_error(refused.answer, item["stream"]))
                for item in batch
            ]
        return [self._batch_receipt(item["stream"], answer) for item, answer in zip(batch, answers, strict=True)]

    def _batch_receipt(self, stream: str, answer: dict[str, Any]) -> interface.StreamReceipt:
        if "error" not in answer:
            return _stream_receipt(answer, done=answer["accepted"])
        error: Exception
        if answer["status"] in _RETRIED:
            error = engine_errors.EngineUnavailable(f"The deployment at {self._url} did not append: {answer['error']}")
        else:
            error = _stream_error(Answer(answer["status"], answer, http.client.HTTPMessage()), stream)
        return interface.StreamReceipt(False, None, error=error)

    # -- queries -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def queries(self) -> Iterator[interface.Queries]:
        """Queries of the other deployment, one request each. They raise the errors of `append_blocking`."""
        yield RemoteQueries(self)

    def get(self, path: str, **query: str) -> Any:
        """The JSON of a GET below `/apps/ID/`."""
        try:
            return self._ask("GET", path, time.monotonic() + self._timeout_s, query=query)
        except _Refused as refused:
            raise _publish_error(refused.answer, []) from None

    # -- requests ------------------------------------------------------------------------------------------------------

    def _ask(
        self, method: str, path: str, deadline: float, *, query: dict[str, str] | None = None, body: Any = None
    ) -> Any:
        """The JSON of a 2xx response. Raises _Refused for a 4xx response that the call itself caused."""
        is_retried = time.monotonic() - self._failed_at >= FAILURE_S
        pause = FIRST_PAUSE_S
        while True:
            reason, wait = "", 0.0
            try:
                answer = self._attempt(method, path, query or {}, body, deadline)
            except (OSError, http.client.HTTPException) as error:
                reason = f"{type(error).__name__}: {error}"
            else:
                if answer.status not in _RETRIED:
                    self._failed_at = -FAILURE_S
                    return self._checked(answer)
                reason = f"it answered {answer.status} {answer.message}".rstrip()
                wait = _retry_after(answer)
            wait = max(wait, pause * random.uniform(0.75, 1.0))  # noqa: S311  (not all processes at once)
            if not is_retried or time.monotonic() + wait >= deadline:
                self._failed_at = time.monotonic()
                raise engine_errors.EngineUnavailable(
                    f"The deployment at {self._url} (FANFARE_REMOTE_URL) did not accept the request: {reason}"
                )
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _attempt(self, method: str, path: str, query: dict[str, str], body: Any, deadline: float) -> Answer:
        data = b"" if body is None else orjson.dumps(body)
        target = self._signed(method, path, query, data)
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if data else {})
        for connection, is_fresh in self._connections.take():
            try:
                if is_fresh:
                    connection.connect()
                connection.sock.settimeout(max(deadline - time.monotonic(), 0.05))
                connection.request(method, target, data or None, headers)
                response = connection.getresponse()
                text = response.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                if is_fresh:
                    raise
                continue  # the server has closed the idle connection
            except BaseException:
                connection.close()
                raise
            if response.will_close:
                connection.close()
            else:
                self._connections.give_back(connection)
            return Answer(response.status, _json(text), response.headers)
        raise AssertionError("the last connection is fresh")

    def _signed(self, method: str, path: str, query: dict[str, str], data: bytes) -> str:
        """The request target with its signature."""
        path = f"{self._connections.prefix}/apps/{quote(self._target.id, safe='')}/{path}"
        signed = {
            **query,
            "auth_key": self._target.key,
            "auth_timestamp": str(int(time.time())),
            "auth_version": "1.0",
        }
        if data:
            signed["body_md5"] = hashlib.md5(data, usedforsecurity=False).hexdigest()
        lines = f"{method}\n{path}\n" + "&".join(f"{name}={value}" for name, value in sorted(signed.items()))
        signature = signatures.sign(self._target.secret, lines)
        return f"{path}?{urlencode({**signed, 'auth_signature': signature}, quote_via=quote)}"

    def _checked(self, answer: Answer) -> Any:
        if 200 <= answer.status < 300 and answer.body is not None:
            return answer.body
        if 300 <= answer.status < 400:
            raise engine_errors.EngineMisconfigured(
                f"FANFARE_REMOTE_URL is {self._url!r}, which redirects to {answer.headers.get('Location')!r}: "
                "set it to the URL of the deployment itself."
            )
        if answer.code == "":
            raise engine_errors.EngineMisconfigured(
                f"FANFARE_REMOTE_URL is {self._url!r}, which answers {answer.status} without the JSON of Fanfare: "
                "is it the URL of a Fanfare deployment, with its path?"
            )
        if answer.status == 401:
            hint = "set the clock of this machine" if answer.code == "expired_timestamp" else "check both settings"
            raise errors.NoApplication(
                f"{self._url} does not accept FANFARE_REMOTE_KEY and FANFARE_REMOTE_SECRET for the application "
                f"{self._target.id} ({answer.code}): {_without_signature(answer.message)} Remedy: {hint}."
            )
        if answer.status in (403, 404):
            raise errors.NoApplication(
                f"{self._url}, application {self._target.id} (FANFARE_REMOTE_APP_ID): {answer.message}"
            )
        raise _Refused(answer)


class RemoteQueries(interface.Queries):
    """See `interface.Queries`."""

    def __init__(self, remote: RemoteEngine) -> None:
        self._remote = remote

    def channels(self, app: str, prefix: str = "") -> dict[str, interface.ChannelCounts]:
        found = self._remote.get("channels", filter_by_prefix=prefix, info=_counts(prefix))["channels"]
        return {name: _channel_counts(counts) for name, counts in found.items()}

    def channel(self, app: str, channel: str) -> interface.ChannelCounts:
        return _channel_counts(self._remote.get(_path(channel), info=_counts(channel)))

    def members(self, app: str, channel: str) -> list[interface.Member]:
        users = self._remote.get(f"{_path(channel)}/users", with_user_info="1")["users"]
        return [interface.Member(user["id"], orjson.dumps(user.get("user_info")).decode()) for user in users]

    def present(self, app: str, channel: str, user_ids: Sequence[str]) -> set[str]:
        if channel != interface.USERS:
            return {member.user_id for member in self.members(app, channel)}.intersection(user_ids)
        return {user_id for user_id in user_ids if self._remote.get(f"users/{quote(user_id, safe='')}")["online"]}

    def cached(self, app: str, channel: str) -> interface.Cached | None:
        cached = self._remote.get(_path(channel), info="cache")["cache"]
        if cached is None:
            return None
        return interface.Cached(
            event_frames.event("", channel, cached["data"]), cached["ttl"]
        )  # the API does not return the event name

    def stream(self, app: str, channel: str, stream_id: str) -> interface.Streamed | None:
        """The stream as far as the API describes it: a producer needs its text, state and number."""
        found = self._remote.get(f"{_path(channel)}/streams/{quote(stream_id, safe='')}")
        receipt = _stream_receipt(found, done=False)
        if receipt.state is None:
            return None
        parts = (found.get("text", "").encode(),)
        return interface.Streamed(stream_id, receipt.state, receipt.seq, receipt.size, b"{}", parts)

    def read(
        self, app: str, channel: str, after: int, limit: int, *, before: int | None = None, newest_first: bool = False
    ) -> tuple[list[interface.Entry], interface.Position | None]:
        """Supports only `newest_first` without `after`, as `history.events` calls it."""
        entries: list[interface.Entry] = []
        query = {"direction": "backwards"}
        position = None
        if before is not None:
            top = self._history(channel, {**query, "limit": "1"})
            if top is None or top["position"] is None:
                return [], None
            epoch, _, _ = top["position"].partition(":")
            query["before"] = f"{epoch}:{before}"
        while len(entries) < limit:
            page = self._history(channel, {**query, "limit": str(min(limit - len(entries), HISTORY_PAGE))})
            if page is None:
                break
            position = position or page["position"]
            entries += [_entry(app, channel, item) for item in page["items"]]
            if page["next"] is None:
                break
            query["before"] = page["next"]
        return entries, None if position is None else _position(position)

    def _history(self, channel: str, query: dict[str, str]) -> Any:
        """A page of the history; None if the channel keeps none."""
        try:
            return self._remote.get(f"{_path(channel)}/history", **query)
        except _NoHistory:
            return None


class _Connections:
    """The open connections of this process to one server."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.prefix = parts.path.rstrip("/")
        self._host = parts.hostname or ""
        self._port = parts.port
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._lock = threading.Lock()
        self._idle: list[tuple[float, http.client.HTTPConnection]] = []  # since when
        self._pid = os.getpid()

    def take(self) -> Iterator[tuple[http.client.HTTPConnection, bool]]:
        """Connections to try in turn. The last one is new and not connected yet."""
        while (kept := self._kept()) is not None:
            yield kept, False
        if self._tls is None:
            yield http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_S), True
        else:
            yield http.client.HTTPSConnection(self._host, self._port, timeout=CONNECT_S, context=self._tls), True

    def give_back(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if len(self._idle) < IDLE_CONNECTIONS and self._pid == os.getpid():
                self._idle.append((time.monotonic(), connection))
                return
        connection.close()

    def close(self) -> None:
        while (kept := self._kept()) is not None:
            kept.close()

    def _kept(self) -> http.client.HTTPConnection | None:
        with self._lock:
            if self._pid != os.getpid():  # a fork: the parent uses these sockets
                self._idle, self._pid = [], os.getpid()
            while self._idle:
                since, connection = self._idle.pop()
                if time.monotonic() - since < IDLE_S:
                    return connection
                connection.close()
        return None


class _Refused(Exception):
    """A 4xx response that the call itself caused."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.message)
        self.answer = answer


class _NoHistory(errors.PublishError):
    """No channel rule keeps a history of the channel."""


def _fields(publication: interface.Publication) -> dict[str, Any]:
    frame = orjson.loads(publication.body)
    fields = {
        "name": frame["event"],
        "channel": publication.channel,
        "data": frame["data"],
        "idempotency_key": publication.idempotency_key or f"remote-{uuid.uuid4().hex}",
    }
    return fields if publication.exclude is None else {**fields, "socket_id": publication.exclude}


def _stream_request(write: interface.StreamWrite) -> tuple[str, dict[str, Any]]:
    """The path and the body of the request that does the same as this write at the other deployment."""
    path = f"{_path(write.channel)}/streams"
    data = orjson.loads(write.body)["data"] if write.body else None
    is_sealed = data is not None and names.is_encrypted(write.channel)
    text: dict[str, Any] = {}
    if is_sealed:
        text = {"data": data, "length": write.size}
    elif write.part:
        text = {"text": write.part.decode()}
    if write.head is not None:
        head = streams.Head.parse(write.head)
        fields = {"name": head.event, "id": write.id, "seq": write.seq, "meta": head.meta, "closings": head.closings}
        return path, {**fields, **text}
    fields = {"seq": write.seq, "after": write.after, **text}
    if write.replaces:
        fields["at"] = 0
    if write.state is not interface.StreamState.OPEN:
        fields["state"] = write.state.name.lower()
        if data is not None and not is_sealed and "error" in (ended := orjson.loads(data)):
            fields["error"] = ended["error"]
    return f"{path}/{quote(write.id, safe='')}/append", fields


def _stream_batches(writes: Sequence[interface.StreamWrite]) -> Iterator[list[dict[str, Any]]]:
    """The bodies of requests that append to several streams: at most STREAMS appends with STREAM_BYTES of JSON. A
    larger append has a request of its own.
    """
    batch: list[dict[str, Any]] = []
    size = 0
    for write in writes:
        _, fields = _stream_request(write)
        item = {"channel": write.channel, "stream": write.id, **fields}
        item_size = len(orjson.dumps(item))
        if batch and (len(batch) == STREAMS or size + item_size > STREAM_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item_size
    if batch:
        yield batch


def _stream_receipt(answer: dict[str, Any], *, done: bool) -> interface.StreamReceipt:
    state = None if answer["state"] is None else interface.StreamState[answer["state"].upper()]
    return interface.StreamReceipt(done, state, answer["seq"], answer["length"])


def _stream_error(answer: Answer, stream: str) -> errors.FanfareError:
    """The exception that a refused write would raise without remote mode."""
    if numbers := _STREAMS.search(answer.message):
        return errors.TooManyStreams(int(numbers[1]), int(numbers[2]))
    if numbers := _STREAM_LENGTH.search(answer.message):
        return errors.StreamTooLong(int(numbers[1]), int(numbers[2]))
    return _publish_error(answer, [{"name": stream}])


def _publish_error(answer: Answer, events: Sequence[dict[str, Any]]) -> errors.PublishError:
    """The exception that the call would raise without remote mode."""
    item = _ITEM.match(answer.message)
    event = events[int(item[1])] if item is not None and int(item[1]) < len(events) else (events or [{}])[0]
    if answer.status == 413:
        numbers = _NUMBERS.search(answer.message)
        size = len(str(event.get("data", "")).encode())
        limit, size = (int(numbers[1]), int(numbers[2])) if numbers is not None else (0, size)
        return errors.DataTooLarge(str(event.get("name", "")), size, limit)
    if answer.code == "not_enabled":
        return _NoHistory(answer.message)
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


def _retry_after(answer: Answer) -> float:
    """The seconds of the Retry-After header, at most LONGEST_PAUSE_S."""
    value = answer.headers.get("Retry-After") or ""
    return min(float(value), LONGEST_PAUSE_S) if value.isascii() and value.isdecimal() else 0.0


def _json(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _without_signature(message: str) -> str:
    """The first line: a message about a signature quotes the string that was signed."""
    return message.split("\n", 1)[0][:300]


def _path(channel: str) -> str:
    return f"channels/{quote(channel, safe='')}"


def _counts(channel: str) -> str:
    return "subscription_count,user_count" if names.is_presence(channel) else "subscription_count"


def _channel_counts(counts: dict[str, Any]) -> interface.ChannelCounts:
    return interface.ChannelCounts(counts.get("subscription_count", 0), counts.get("user_count", 0))


def _entry(app: str, channel: str, item: dict[str, Any]) -> interface.Entry:
    user_id = item.get("user_id")
    kind = interface.Kind.EVENT if user_id is None else interface.Kind.CLIENT_EVENT
    body = event_frames.event(item["event"], channel, item["data"], user_id)
    return interface.Entry(0, kind, app, channel, item["offset"], user_id, None, body)


def _position(text: str) -> interface.Position:
    epoch, _, offset = text.partition(":")
    return interface.Position(epoch, int(offset))
