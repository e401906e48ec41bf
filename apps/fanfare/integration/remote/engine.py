"""The engine of remote mode."""

from __future__ import annotations

import contextlib
import http.client
import re
import uuid
from collections.abc import Awaitable, Iterator, Sequence
from typing import Any, cast
from urllib.parse import quote

import orjson
from asgiref.sync import sync_to_async

from fanfare import conf
from fanfare.applications import registry
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.integration.remote import client, paths, queries, refusals, streams
from fanfare.protocol import revocations, termination

BATCH_EVENTS = 10  # per request; the default of an application's max_batch_events

_MEMBERS = re.compile(r"^Too many members: .* has (\d+), the allowed maximum is (\d+)")

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
    deployment = client.Client(conf.settings.REMOTE_URL, application(), timeout_s=conf.settings.APPEND_TIMEOUT)
    return cast("interface.Engine", RemoteEngine(deployment))


class RemoteEngine:
    """The part of an engine for processes that are no worker. Thread-safe and fork-safe.

    `timeout` of a method: the seconds of the call with its retries, FANFARE_APPEND_TIMEOUT by default.
    """

    is_open = False  # no process of this project is a worker

    def __init__(self, deployment: client.Client) -> None:
        self._deployment = deployment

    def close(self) -> None:
        """Close the idle connections. The next call opens others."""
        self._deployment.close()

    # -- publishing ----------------------------------------------------------------------------------------------------

    def append_blocking(
        self, publications: Sequence[interface.Publication], timeout: float | None = None
    ) -> list[interface.Receipt]:
        """Publish in order, BATCH_EVENTS per request. Each request publishes all of its events or none.

        Raises EngineUnavailable, EngineMisconfigured, and a PublishError for what the other deployment refuses.
        """
        deadline = self._deployment.deadline(timeout)
        events: list[interface.Publication] = []
        for publication in publications:
            if publication.kind is interface.Kind.EVENT:
                events.append(publication)
                if len(events) == BATCH_EVENTS:
                    self._send(events, deadline)
                    events = []
            elif publication.channel in (termination.COMMAND, revocations.COMMAND):
                self._send(events, deadline)
                events = []
                command = self._terminate if publication.channel == termination.COMMAND else self._revoke
                command(publication, deadline)
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
                self._deployment.ask("POST", "events", deadline, body=fields[0])
            else:
                self._deployment.ask("POST", "batch_events", deadline, body={"batch": fields})
        except client.Refused as refused:
            if refused.answer.code == "batch_too_large":  # this application allows only smaller batches
                for event in events:
                    self._send([event], deadline)
                return
            raise refusals.publish_error(refused.answer, fields) from None

    def _terminate(self, command: interface.Publication, deadline: float) -> None:
        body = orjson.loads(command.body)
        reconnect = "1" if body["code"] == termination.TO_RECONNECT else "0"
        path = f"{paths.user(body['user_id'])}/terminate_connections"
        try:
            self._deployment.ask("POST", path, deadline, body={"reconnect": reconnect})
        except client.Refused as refused:
            raise refusals.publish_error(refused.answer, []) from None

    def _revoke(self, command: interface.Publication, deadline: float) -> None:
        body = orjson.loads(command.body)
        fields = {} if body["exp"] is None else {"exp": str(int(body["exp"]) + 1)}
        try:
            self._deployment.ask("POST", f"capabilities/{quote(body['jti'], safe='')}/revoke", deadline, body=fields)
        except client.Refused as refused:
            raise refusals.publish_error(refused.answer, []) from None

    # -- streams -------------------------------------------------------------------------------------------------------

    def write_streams(
        self, writes: Sequence[interface.StreamWrite], timeout: float | None = None
    ) -> list[interface.StreamReceipt]:
        """Send up to `streams.BATCH` appends in a request, and each opening in one of its own. Raises what
        `append_blocking` raises.

        If the other deployment refuses one append of several, its error is in its receipt. A single write raises it:
        a PublishError, TooManyStreams or StreamTooLong.
        """
        deadline = self._deployment.deadline(timeout)
        if len(writes) == 1 or any(write.head is not None for write in writes):
            return [self._write_stream(write, deadline) for write in writes]
        receipts: list[interface.StreamReceipt] = []
        for batch in streams.batches(writes):
            receipts += self._append_to_streams(batch, deadline)
        return receipts

    def open_channel(self, app: str, channel: str, timeout: float | None = None) -> interface.Position:
        return queries.position_of(self._get(f"{paths.channel(channel)}/history", limit="1", open="1")["position"])

    def revise(self, revision: interface.Revision, timeout: float | None = None) -> interface.Position | None:
        deadline = self._deployment.deadline(timeout)
        path = f"{paths.channel(revision.channel)}/history/{quote(str(revision.position), safe='')}/revise"
        author = orjson.loads(orjson.loads(revision.notice)["data"])["by"]
        fields: dict[str, Any] = {"by": author} if author is not None else {}
        if revision.body:
            fields["data"] = orjson.loads(revision.body)["data"]
        else:
            fields["delete"] = "1"
        try:
            answer = self._deployment.ask("POST", path, deadline, body=fields)
        except client.Refused as refused:
            if refused.answer.status == 410:
                return None
            raise refusals.publish_error(refused.answer, [fields]) from None
        return interface.Position(answer["epoch"], answer["offset"])

    def update_member(self, app: str, channel: str, user_id: str, info: str, timeout: float | None = None) -> bool:
        deadline = self._deployment.deadline(timeout)
        path = f"{paths.channel(channel)}/users/{quote(user_id, safe='')}/update"
        try:
            return bool(self._deployment.ask("POST", path, deadline, body={"user_info": orjson.loads(info)})["updated"])
        except client.Refused as refused:
            raise refusals.publish_error(refused.answer, [{"name": channel}]) from None

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
        deadline = self._deployment.deadline(timeout)
        path = f"{paths.channel(channel)}/members/{quote(user_id, safe='')}"
        fields: dict[str, Any] = {"ttl": max(1, round(seconds))}
        if info is not None:
            fields["user_info"] = orjson.loads(info)
        try:
            return bool(self._deployment.ask("POST", path, deadline, body=fields)["joined"])
        except client.Refused as refused:
            numbers = _MEMBERS.search(refused.answer.message)
            if numbers is not None:
                return interface.Refused("member_limit", refused.answer.message, int(numbers[2]), int(numbers[1]))
            raise refusals.publish_error(refused.answer, [{"name": channel}]) from None

    def release_member(self, app: str, channel: str, user_id: str, timeout: float | None = None) -> bool:
        deadline = self._deployment.deadline(timeout)
        path = f"{paths.channel(channel)}/members/{quote(user_id, safe='')}/leave"
        try:
            return bool(self._deployment.ask("POST", path, deadline, body={})["left"])
        except client.Refused as refused:
            raise refusals.publish_error(refused.answer, [{"name": channel}]) from None

    def cancel_stream(self, where: interface.StreamName) -> bool:
        """Whether an open stream was cancelled."""
        path = f"{paths.stream(where.channel, where.id)}/cancel"
        try:
            answer = self._deployment.ask("POST", path, self._deployment.deadline(), body={})
        except client.Refused as refused:
            raise refusals.publish_error(refused.answer, [{"name": where.id}]) from None
        return bool(answer["accepted"])

    def _write_stream(self, write: interface.StreamWrite, deadline: float) -> interface.StreamReceipt:
        path, fields = streams.request(write)
        try:
            answer = self._deployment.ask("POST", path, deadline, body=fields)
        except client.Refused as refused:
            raise refusals.stream_error(refused.answer, write.id) from None
        return streams.receipt(answer, done=answer["accepted"])

    def _append_to_streams(self, batch: Sequence[dict[str, Any]], deadline: float) -> list[interface.StreamReceipt]:
        try:
            answers = self._deployment.ask("POST", "streams/append", deadline, body={"batch": batch})["batch"]
        except client.Refused as refused:  # the whole body is too large
            return [
                interface.StreamReceipt(False, None, error=refusals.stream_error(refused.answer, item["stream"]))
                for item in batch
            ]
        return [self._batch_receipt(item["stream"], answer) for item, answer in zip(batch, answers, strict=True)]

    def _batch_receipt(self, stream: str, answer: dict[str, Any]) -> interface.StreamReceipt:
        if "error" not in answer:
            return streams.receipt(answer, done=answer["accepted"])
        error: Exception
        if answer["status"] in client.RETRIED:
            error = engine_errors.EngineUnavailable(
                f"The deployment at {self._deployment.url} did not append: {answer['error']}"
            )
        else:
            error = refusals.stream_error(client.Answer(answer["status"], answer, http.client.HTTPMessage()), stream)
        return interface.StreamReceipt(False, None, error=error)

    # -- queries -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def queries(self) -> Iterator[interface.Queries]:
        """Queries of the other deployment, one request each. They raise the errors of `append_blocking`."""
        yield queries.RemoteQueries(self._get)

    def _get(self, path: str, **query: str) -> Any:
        """The JSON of a GET below `/apps/ID/`."""
        try:
            return self._deployment.ask("GET", path, self._deployment.deadline(), query=query)
        except client.Refused as refused:
            raise refusals.publish_error(refused.answer, []) from None


def _fields(publication: interface.Publication) -> dict[str, Any]:
    frame = orjson.loads(publication.body)
    fields = {
        "name": frame["event"],
        "channel": publication.channel,
        "data": frame["data"],
        "idempotency_key": publication.idempotency_key or f"remote-{uuid.uuid4().hex}",
    }
    return fields if publication.exclude is None else {**fields, "socket_id": publication.exclude}
