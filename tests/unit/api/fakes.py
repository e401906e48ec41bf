"""What stands in for a worker under the API's tests, and a client of it that needs no network."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import hashlib
import hmac
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fanfare.api import asgi
from fanfare.applications import registry
from fanfare.engine import errors, interface
from fanfare.hub import activity, traces
from fanfare.hub import hub as hubs
from fanfare.runtime import supervisor

NOW = 1_700_000_000  # Unix seconds, the API's clock in tests
APPLICATION = registry.Application(id="3", key="278d425bdf160c739803", secret="7ad3773142a6692b25b8")


class Partitioned:
    """What the recorder of traces asks of an engine."""

    def partition(self, app: str, channel: str) -> int:
        return 0


@dataclass
class Engine:
    """Answers questions from tables that a test fills."""

    counts: dict[str, interface.ChannelCounts] = field(default_factory=dict)
    joined: dict[str, list[interface.Member]] = field(default_factory=dict)
    holding: dict[str, interface.Cached] = field(default_factory=dict)
    kept: dict[str, list[interface.Entry]] = field(default_factory=dict)  # the oldest first, with offsets from 1
    streams: dict[str, interface.Streamed] = field(default_factory=dict)  # by id
    writes: list[interface.StreamWrite] = field(default_factory=list)
    leases: list[tuple[str, str, str | None, float]] = field(default_factory=list)  # channel, user, info, seconds
    epoch: str = "e"
    down: str = ""  # the reason why nothing can be asked or published
    broken: bool = False  # an unexpected exception

    async def ask(self, query: Callable[[Any], Any]) -> Any:
        return query(self)

    def channels(self, app: str, prefix: str = "") -> dict[str, interface.ChannelCounts]:
        self._ask(app)
        return {name: counts for name, counts in self.counts.items() if name.startswith(prefix)}

    def channel(self, app: str, channel: str) -> interface.ChannelCounts:
        self._ask(app)
        return self.counts.get(channel, interface.ChannelCounts(0, 0))

    def cached(self, app: str, channel: str) -> interface.Cached | None:
        self._ask(app)
        return self.holding.get(channel)

    def members(self, app: str, channel: str, limit: int | None = None) -> list[interface.Member]:
        self._ask(app)
        return self.joined.get(channel, [])

    def present(self, app: str, channel: str, user_ids: Sequence[str]) -> set[str]:
        self._ask(app)
        return {member.user_id for member in self.joined.get(channel, [])}.intersection(user_ids)

    def read(
        self,
        app: str,
        channel: str,
        after: int,
        limit: int,
        *,
        before: int | None = None,
        newest_first: bool = False,
        max_bytes: int | None = None,
    ) -> tuple[list[interface.Entry], interface.Position | None]:
        self._ask(app)
        if channel not in self.kept:
            return [], None
        top = len(self.kept[channel])
        entries = [entry for entry in self.kept[channel] if after < (entry.offset or 0) < (before or top + 1)]
        return entries[:: -1 if newest_first else 1][:limit], interface.Position(self.epoch, top)

    def stream(self, app: str, channel: str, stream_id: str) -> interface.Streamed | None:
        self._ask(app)
        return self.streams.get(stream_id)

    @contextlib.contextmanager
    def queries(self) -> Iterator[Engine]:
        yield self

    def write_streams(self, writes: Sequence[interface.StreamWrite]) -> list[interface.StreamReceipt]:
        self.work()
        self.writes += writes
        return [interface.StreamReceipt(True, write.state, write.seq, write.size) for write in writes]

    def update_member(self, app: str, channel: str, user_id: str, info: str) -> bool:
        self._ask(app)
        return True

    def lease_member(
        self, app: str, channel: str, user_id: str, info: str | None, seconds: float, *, limit: int | None = None
    ) -> bool | interface.Refused:
        self._ask(app)
        users = len(self.joined.get(channel, []))
        if limit is not None and users >= limit:
            return interface.Refused("member_limit", "too many", limit, users)
        self.leases.append((channel, user_id, info, seconds))
        return True

    def release_member(self, app: str, channel: str, user_id: str) -> bool:
        self._ask(app)
        return True

    def open_channel(self, app: str, channel: str) -> interface.Position:
        self._ask(app)
        return interface.Position(self.epoch, len(self.kept.setdefault(channel, [])))

    def revise(self, revision: interface.Revision) -> interface.Position | None:
        self.work()
        return interface.Position(self.epoch, len(self.kept[revision.channel]) + 1)

    def keep(self, channel: str, *bodies: bytes, user_id: str | None = None) -> None:
        kept = self.kept.setdefault(channel, [])
        kind = interface.Kind.EVENT if user_id is None else interface.Kind.CLIENT_EVENT
        for body in bodies:
            offset = len(kept) + 1
            kept.append(interface.Entry(offset, kind, APPLICATION.id, channel, offset, user_id, None, body))

    def _ask(self, app: str) -> None:
        assert app == APPLICATION.id
        self.work()

    def work(self) -> None:
        if self.down:
            raise errors.EngineUnavailable(self.down)
        if self.broken:
            raise ZeroDivisionError


@dataclass
class Hub:
    """Keeps what was published: one list for each call, because a call is what is atomic.

    An idempotency key that was there is answered as a duplicate. All publications are made in the same second.
    """

    engine: Engine = field(default_factory=Engine)
    published: list[list[interface.Publication]] = field(default_factory=list)
    engine_fails_after_publishing: str = ""
    counters: collections.Counter[str] = field(default_factory=collections.Counter)
    spent: collections.Counter[str] = field(default_factory=collections.Counter)  # publications under a budget
    tops: collections.Counter[str] = field(default_factory=collections.Counter)  # offsets, by channel
    activity: activity.Activity = field(default_factory=activity.Activity)
    recorder: traces.Recorder = field(default_factory=lambda: traces.Recorder(Partitioned()))  # type: ignore[arg-type]

    def publish_then(
        self,
        publications: Sequence[interface.Publication],
        then: interface.Appended,
        *,
        budget: interface.Budget | None = None,
    ) -> None:
        published = supervisor.as_future(self.publish(publications, budget=budget))
        published.add_done_callback(functools.partial(hubs._call, then))

    async def publish(
        self, publications: Sequence[interface.Publication], *, budget: interface.Budget | None = None
    ) -> list[interface.Receipt]:
        self.engine.work()
        if budget is not None:
            spent = self.spent[budget.app] + len(publications)
            if spent > budget.per_second:
                raise errors.OverBudget(budget.per_second, spent)
            self.spent[budget.app] = spent
        known = {(each.channel, each.idempotency_key) for call in self.published for each in call}
        self.published.append(list(publications))
        self.engine.down = self.engine_fails_after_publishing
        return [
            interface.Receipt(
                position=self._position(each),
                duplicate=each.idempotency_key is not None and (each.channel, each.idempotency_key) in known,
            )
            for each in publications
        ]

    def _position(self, publication: interface.Publication) -> interface.Position | None:
        if publication.retention is None:
            return None
        self.tops[publication.channel] += 1
        return interface.Position("e", self.tops[publication.channel])

    def count(self, name: str, n: int = 1) -> None:
        self.counters[name] += n

    @property
    def commands(self) -> list[interface.Publication]:
        """The commands to all workers, in order."""
        return [each for call in self.published for each in call if each.kind is interface.Kind.CONTROL]

    @property
    def frames(self) -> list[dict[str, Any]]:
        """All that subscribers got, in order."""
        return [json.loads(each.body) for call in self.published for each in call if each.kind is interface.Kind.EVENT]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Speaks ASGI to the API. `received` counts how often the API asked for a piece of a body."""

    def __init__(self, api: asgi.Api) -> None:
        self.api = api
        self.received = 0

    async def request(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        *,
        headers: Iterable[tuple[bytes, bytes]] = (),
        chunks: Sequence[bytes] | None = None,
        disconnects: bool = False,
        stalls: bool = False,
    ) -> Answer | None:
        """`target`: path and query as in the request line; `chunks`: the body as it comes, after which the client may
        go away or say nothing more. None if nothing was sent.
        """
        path, _, query = target.partition("?")
        left = [body] if chunks is None else list(chunks)
        sent: list[Any] = []
        declared = [(b"content-length", b"%d" % len(body))] if chunks is None else [(b"transfer-encoding", b"chunked")]
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode("utf-8", "surrogateescape"),
            "headers": [*declared, *headers],
            "client": ("192.0.2.1", 4711),
        }

        async def receive() -> Any:
            self.received += 1
            if not left and stalls:
                await asyncio.Event().wait()
            if not left:
                assert disconnects, "the API reads on after the end of the body"
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left) or disconnects or stalls}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.api(scope, receive, send)
        if not sent:
            return None
        start, end = sent
        assert start["type"] == "http.response.start"
        assert end["type"] == "http.response.body"
        received_headers = {name.decode(): value.decode() for name, value in start["headers"]}
        assert received_headers.get("content-length") == (None if start["status"] == 204 else str(len(end["body"])))
        return Answer(start["status"], received_headers, end["body"])

    async def post(self, route: str, body: Any, *, query: dict[str, str] | None = None, **options: Any) -> Answer:
        """A signed POST to `/apps/3/` + route; `body` is bytes or becomes JSON."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        path = f"/apps/{APPLICATION.id}/{route}"
        answer = await self.request("POST", signed("POST", path, raw, query=query), raw, **options)
        assert answer is not None
        return answer

    async def ask(self, method: str, path: str, **options: Any) -> Answer:
        """A signed request without a body for any path."""
        answer = await self.request(method, signed(method, path, **options))
        assert answer is not None
        return answer

    async def get(self, route: str, **query: str) -> Answer:
        """A signed GET of `/apps/3/` + route."""
        answer = await self.request("GET", signed("GET", f"/apps/{APPLICATION.id}/{route}", query=query))
        assert answer is not None
        return answer


def signature(text: str, secret: str = APPLICATION.secret) -> str:
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def parameters(body: bytes = b"", **changed: str | None) -> dict[str, str]:
    """What signs a request, without the signature. None takes one away."""
    values = {
        "auth_key": APPLICATION.key,
        "auth_timestamp": str(NOW),
        "auth_version": "1.0",
        "body_md5": hashlib.md5(body, usedforsecurity=False).hexdigest() if body else None,
        **changed,
    }
    return {name: value for name, value in values.items() if value is not None}


def signed(
    method: str, path: str, body: bytes = b"", *, query: dict[str, str] | None = None, **changed: str | None
) -> str:
    """A request line's target. Nothing is escaped: what is in it needs no escaping, or the test is about that."""
    pairs = sorted({**parameters(body, **changed), **(query or {})}.items())
    joined = "&".join(f"{name}={value}" for name, value in pairs)
    text = f"{method}\n{path}\n{joined}"
    return f"{path}?{joined}&auth_signature={signature(text)}"
