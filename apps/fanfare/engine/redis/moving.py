"""The Redis engine as the old or the new store of a move.

The mark of a move is in the record of the partitions, for processes that start, and in the state of each partition, for
the scripts of running processes. While the old store is frozen, the mark of a partition expires: if the mover dies, the
store accepts writes again.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgpack

from fanfare.engine import errors, interface, moves
from fanfare.engine.redis import address, entries, scripts
from fanfare.engine.redis.queries import Store

TIMEOUT_S: Final = 5.0
FROZEN_MS: Final = int(moves.FROZEN_S * 1000) + 7_000
PAGE: Final = 1_000
SCANNED: Final = 10_000  # keys in one call: about 5 ms of the server
SLACK: Final = 200  # entries that a stream may get while it is read

LEFT_S: Final = 60  # a move that has not ended so long after its decision was near was interrupted

# Writes the mark of a partition. ARGV: the mark that must be there or '', the new one, how long it lasts (0: for good),
# LEFT_S. Returns 1, or 0 where another mark is there or the expected one is over. A move that was interrupted in its
# last steps may have left a mark for good.
_FREEZE: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local deadline, mark = string.match(redis.call('HGET', KEYS[1], 'moved') or '', '^(%d+) (.*)$')
if deadline and deadline ~= '0' and tonumber(deadline) <= now then
    deadline, mark = nil, nil
end
if mark == ARGV[2] then
    return 1
end
if ARGV[1] == '' and deadline == '0' then
    local found = cjson.decode(mark)
    if found.what == 'leaving' and found.at < clock[1] - ARGV[4] then
        mark = nil
    end
end
if (mark or '') ~= ARGV[1] then
    return 0
end
local till = ARGV[3] == '0' and 0 or now + ARGV[3]
redis.call('HSET', KEYS[1], 'moved', string.format('%d ', till) .. ARGV[2])
return 1
"""
_THAW: Final = """
local mark = string.match(redis.call('HGET', KEYS[1], 'moved') or '', '^%d+ (.*)$')
if mark == ARGV[1] or mark == ARGV[2] then
    redis.call('HDEL', KEYS[1], 'moved')
end
"""
_RUN_ID: Final = "return string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') .. redis.call('TIME')[1]"


class _State(NamedTuple):
    """Of a partition, see scripts/common.lua."""

    generation: bytes | None
    top: int
    trimmed: int
    mark_ms: int


class RedisStore(moves.Store):
    keeps_ids = False

    def __init__(self, url: str, partitions: int) -> None:
        self._address = address.parse(url)
        self._store = Store(self._address, partitions, TIMEOUT_S)
        self._store.is_moving = True
        self.public = self._address.public
        self.partitions = partitions
        self._prefixes = [address.key_prefix(self._address.prefix, index, partitions) for index in range(partitions)]
        self._generations = [address.random_name(16) for _ in range(partitions)]
        self._tops = [0] * partitions
        self._frozen: list[str] = []  # marks that partitions may have until the move is decided
        self._listed: list[_State] = []  # when `streams` or `changed` was called

    @contextlib.contextmanager
    def _client(self) -> Iterator[Any]:
        with self._store.client() as client:
            yield client

    @property
    def _meta(self) -> str:
        return self._store.meta

    def mark(self) -> moves.Mark | None:
        with self._client() as client:
            text = client.hget(self._meta, "mark")
        return moves.Mark.parse(text) if text else None

    def workers(self) -> int:
        with self._client() as client:
            now_ms = int(client.eval("return redis.call('TIME')[1]", 1, self._prefixes[0] + "state")) * 1000
            return int(client.zcount(self._prefixes[0] + "workers", now_ms, "+inf"))

    def close(self) -> None:
        self._store.close()

    def _names(self, client: Any, kinds: frozenset[str]) -> dict[str, dict[int, list[str]]]:
        """The rest of each key of these kinds, such as 1:news of h:1:news, by kind and partition."""
        found: dict[str, dict[int, list[str]]] = {kind: {} for kind in kinds}
        prefix = self._address.prefix
        form = re.compile(rf"{re.escape(prefix)}:\{{[^}}]*\.(\d+)\.\d+\}}:([a-z]+):(.*)".encode(), re.DOTALL)
        initials = "".join(sorted({kind[0] for kind in kinds}))  # the server sends fewer names than all
        for key in client.scan_iter(match=f"{prefix}:{{*}}:[{initials}]*", count=SCANNED):
            parts = form.fullmatch(key)
            if parts is not None and (of_kind := found.get(parts[2].decode())) is not None:
                of_kind.setdefault(int(parts[1]), []).append(parts[3].decode())
        return found

    # -- the old store -------------------------------------------------------------------------------------------------

    def streams(self) -> moves.Streams:
        with self._client() as client:
            self._listed = self._states(client)  # before the names: a stream that begins meanwhile may lack among them
            return self._heads(client, self._names(client, frozenset("h"))["h"])

    def changed(self) -> moves.Streams | None:
        """From the entries of the last seconds, and the streams that began without one."""
        with self._client() as client:
            listed, self._listed = self._listed, self._states(client)
            names = {
                partition: self._written(client, partition, before, now)
                for partition, (before, now) in enumerate(zip(listed, self._listed, strict=True))
            }
            # Compared after the reads: a heartbeat may have trimmed the log between them.
            for before, now in zip(listed, self._states(client), strict=True):
                if now.generation != before.generation or now.trimmed > before.top:
                    return None
                if now.mark_ms - before.mark_ms >= scripts.BORN_MS:
                    return None
            return self._heads(client, names)

    def _states(self, client: Any) -> list[_State]:
        pipe = client.pipeline(transaction=False)
        for prefix in self._prefixes:
            pipe.hmget(prefix + "state", "generation", "top", "trimmed", "mark")
        return [_State(found[0], *(int(number or 0) for number in found[1:])) for found in pipe.execute()]

    def _written(self, client: Any, partition: int, before: _State, now: _State) -> list[str]:
        """The channels of the kept entries between two states, and of the streams that began without an entry."""
        after, upto = before.top, now.top
        born = client.zrangebyscore(self._prefixes[partition] + "born", before.mark_ms, "+inf")
        names: dict[str, None] = dict.fromkeys(name.decode() for name in born)
        while after < upto:
            found = client.xrange(f"{self._prefixes[partition]}log", f"({after}-0", f"{upto}-0", count=PAGE)
            if not found:
                break
            after = int(found[-1][0].partition(b"-")[0])
            for entry in self._read([fields[b"e"] for _, fields in found]):
                if entry.offset is not None:
                    names[f"{entry.app}:{entry.channel}"] = None
        return list(names)

    def _heads(self, client: Any, names: dict[int, list[str]]) -> moves.Streams:
        found: moves.Streams = {}
        for partition, there in names.items():
            for page in _pages(there):
                generation, values = self._read_many(client, scripts.HEADS, partition, page)
                heads = zip(page, *(values[field::5] for field in range(5)), strict=True)
                for name, birth, offset, size, seconds, length in heads:
                    if not birth or not generation:
                        continue
                    app, channel = _channel(name)
                    top = int(offset)
                    found[app, channel] = moves.Stream(
                        app,
                        channel,
                        epoch_of(generation.decode(), birth.decode()),
                        top,
                        top - length + 1,
                        int(size),
                        int(seconds),
                    )
        return found

    def _read_many(self, client: Any, script: scripts.Script, partition: int, names: Sequence[str]) -> Any:
        """One call reads a page. A pipeline of 200,000 commands would take seconds of this process."""
        return msgpack.unpackb(self._store.run(client, script, partition, *names), raw=True)

    def kept(self, wanted: Sequence[tuple[moves.Stream, int]]) -> Iterator[tuple[moves.Stream, list[interface.Entry]]]:
        with self._client() as client:
            pipe = client.pipeline(transaction=False)
            for stream, after in wanted:
                pipe.lrange(self._list(stream), -(stream.offset - after + SLACK), -1)
            for (stream, after), parts in zip(wanted, pipe.execute(), strict=True):
                found = self._read(parts)
                if len(parts) == stream.offset - after + SLACK and (found[0].offset or 0) > after + 1:
                    found = self._read(client.lrange(self._list(stream), 0, -1))
                yield stream, [one for one in found if after < (one.offset or 0) <= stream.offset]

    def _read(self, parts: Sequence[bytes]) -> list[interface.Entry]:
        found = entries.read_all(parts)
        if len(found) < len(parts):
            raise errors.EngineMisconfigured(
                f"{self.public} has entries of a newer release of Fanfare: move it with that release."
            )
        return found

    def _list(self, stream: moves.Stream) -> str:
        partition = self._store.partition(stream.app, stream.channel)
        return f"{self._prefixes[partition]}l:{stream.app}:{stream.channel}"

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        self._frozen = [moves.Mark(moves.LEAVING, address.random_name(12), "another store", 0).text()]
        try:
            self._note(self._frozen[0], before="")
            yield
        finally:
            marks, self._frozen = self._frozen, []
            with contextlib.suppress(errors.EngineUnavailable), self._client() as client:
                for prefix in self._prefixes:
                    client.eval(_THAW, 1, prefix + "state", *marks)

    def _note(self, mark: str, *, before: str, lasts_ms: int = FROZEN_MS) -> None:
        with self._client() as client:
            for prefix in self._prefixes:
                if not client.eval(_FREEZE, 1, prefix + "state", before, mark, lasts_ms, LEFT_S):
                    raise errors.EngineUnavailable(f"{self.public} is being moved already, or this took too long.")

    def rest(self) -> moves.Rest:
        readings: list[moves.Reading] = []
        unread: list[list[interface.Entry]] = []
        sessions: list[moves.Session] = []
        with self._client() as client:
            names = self._names(client, frozenset(["c", "k", "text"]))
            cached = [
                moves.CachedEvent(*_channel(name), body or None, expires_ms)
                for name, body, expires_ms in self._values(client, "c", names["c"])
            ]
            keys = [
                _key(name, receipt.decode(), expires_ms)
                for name, receipt, expires_ms in self._values(client, "k", names["k"])
            ]
            texts = list(self._texts(client, names["text"]))
            for partition, prefix in enumerate(self._prefixes):
                sessions += _sessions(client, prefix)
                here = []
                transient_ms = (client.time()[0] - interface.CONSUMER_SECONDS + interface.TRANSIENT_SECONDS + 1) * 1000
                for name, value in client.hgetall(prefix + "consumers").items():
                    position, moved_ms, mask, _ = value.split(b" ")
                    if int(moved_ms) > transient_ms:  # others are transient, or their time is almost over
                        here.append(moves.Reading(name.decode(), partition, int(position), int(mask)))
                after = min((one.position for one in here), default=0)
                facts = client.xrange(prefix + "facts", min=f"({after}-0") if here else []
                unread.append(self._read([fields[b"e"] for _, fields in facts]))
                readings += here
        return moves.Rest(keys, cached, sessions, texts, readings, unread, None, 0)

    def _values(self, client: Any, kind: str, names: dict[int, list[str]]) -> Iterator[tuple[str, bytes, int]]:
        """The name, the value and the end (Unix time, ms) of strings."""
        for partition, names_there in names.items():
            for page in _pages(names_there):
                found = self._read_many(client, scripts.STRINGS, partition, [f"{kind}:{name}" for name in page])
                for name, value, expires_ms in zip(page, found[::2], found[1::2], strict=True):
                    if value is not False:
                        yield name, value, expires_ms

    def _texts(self, client: Any, names: dict[int, list[str]]) -> Iterator[moves.Text]:
        for partition, name in ((partition, name) for partition, there in names.items() for name in there):
            prefix = self._prefixes[partition]
            pipe = client.pipeline(transaction=False)
            pipe.hgetall(f"{prefix}text:{name}")
            pipe.lrange(f"{prefix}parts:{name}", 0, -1)
            pipe.zscore(f"{prefix}open", name)
            pipe.pexpiretime(f"{prefix}text:{name}")
            text, parts, lease_ms, forgotten_ms = pipe.execute()
            if not text:
                continue
            channel, _, stream = name.rpartition(" ")
            seq = int(text[b"seq"])
            yield moves.Text(
                *_channel(channel),
                stream,
                int(text[b"state"]),
                seq,
                int(text[b"size"]),
                int(lease_ms) if lease_ms is not None else forgotten_ms,
                int(text[b"offset"]) if b"offset" in text else None,
                text[b"head"],
                text.get(b"body"),
                tuple(enumerate(parts, seq - len(parts) + 1)),
            )

    def leave(self, mark: moves.Mark) -> None:
        if not self._frozen:
            raise errors.EngineUnavailable("The old store is not frozen")
        # Freeze all partitions for good, then decide, then mark them. If this ends before the last one is marked, no
        # partition takes writes that the new store lacks: `left` goes on.
        self._frozen.append(_undecided(mark))
        self._note(self._frozen[1], before=self._frozen[0], lasts_ms=0)
        self._frozen = []  # from here on the move may be decided, so no partition is thawed
        with self._client() as client:
            client.hset(self._meta, "mark", mark.text())
        self.left(mark)

    def left(self, mark: moves.Mark) -> None:
        self._note(mark.text(), before=_undecided(mark), lasts_ms=0)

    # -- the new store -------------------------------------------------------------------------------------------------

    def begin(self, mark: moves.Mark) -> None:
        with self._client() as client:
            if moves.is_in_use(self.mark()) and (self.workers() or any(one.offset for one in self.streams().values())):
                raise errors.EngineMisconfigured(
                    f"{self.public} has a log of its own, or workers: name another prefix (?prefix=NAME)."
                )
            for page in _pages(list(client.scan_iter(match=f"{self._address.prefix}:{{*", count=PAGE))):
                pipe = client.pipeline(transaction=False)
                for key in page:
                    pipe.unlink(key)
                pipe.execute()
            client.hset(
                self._meta,
                mapping={"version": scripts.VERSION, "partitions": self.partitions, "mark": mark.text()},
            )
            for prefix in self._prefixes:
                client.hset(prefix + "state", "moved", f"0 {mark.text()}")

    def put(self, batch: moves.Batch, *, keeps_ids: bool) -> None:
        with self._client() as client:
            pipe = client.pipeline(transaction=False)
            for stream, found in batch:
                name = f"{stream.app}:{stream.channel}"
                partition = self._store.partition(stream.app, stream.channel)
                prefix = self._prefixes[partition]
                pipe.hset(
                    f"{prefix}h:{name}",
                    mapping={
                        "e": f"={self._generations[partition]}:{stream.epoch}",
                        "o": stream.offset,
                        "s": stream.size,
                        "t": stream.seconds,
                        "r": 0,
                    },
                )
                pipe.pexpire(f"{prefix}h:{name}", stream.seconds * scripts.POSITION_OUTLIVES * 1000 + 3_600_000)
                if found:
                    pipe.rpush(f"{prefix}l:{name}", *(self._pack(partition, entry) for entry in found))
                    pipe.pexpire(f"{prefix}l:{name}", stream.seconds * 1000 + 2000)
            pipe.execute()

    def _pack(self, partition: int, entry: interface.Entry) -> bytes:
        self._tops[partition] += 1
        return entries.write(entry._replace(id=self._tops[partition]))

    def forget(self, streams: Iterable[tuple[str, str]]) -> None:
        with self._client() as client:
            pipe = client.pipeline(transaction=False)
            for app, channel in streams:
                prefix = self._prefixes[self._store.partition(app, channel)]
                pipe.unlink(f"{prefix}h:{app}:{channel}")
                pipe.unlink(f"{prefix}l:{app}:{channel}")
            pipe.execute()

    def finish(self, rest: moves.Rest, mark: moves.Mark) -> list[moves.Start]:
        starts = list(self._tops)
        masks: dict[str, int] = {}
        for one in rest.readings:
            masks[one.name] = masks.get(one.name, 0) | one.kinds
        kinds = 0
        for mask in masks.values():
            kinds |= mask
        with self._client() as client:
            pipe = client.pipeline(transaction=False)
            for entry in (entry for part in rest.unread for entry in part):
                partition = self._store.partition(entry.app, entry.channel)
                packed = self._pack(partition, entry._replace(offset=None))
                pipe.xadd(self._prefixes[partition] + "facts", {"e": packed}, id=f"{self._tops[partition]}-0")
            for app, channel, key, position, expires_ms in rest.keys:
                prefix = self._prefixes[self._store.partition(app, channel)]
                pipe.set(f"{prefix}k:{app}:{channel}:{key}", str(position) if position else "-", pxat=expires_ms)
            for app, channel, body, expires_ms in rest.cached:
                prefix = self._prefixes[self._store.partition(app, channel)]
                pipe.set(f"{prefix}c:{app}:{channel}", body or b"", pxat=expires_ms)
            for app, token, record, expires_ms, taken_ms in rest.sessions:
                prefix = self._prefixes[self._store.partition(app, f"#session-{token}")]
                name = f"{app}:{token}"
                fields = {"r": record, "x": expires_ms, "w": "", "h": "", "k": taken_ms}
                pipe.hset(f"{prefix}s:{name}", mapping=fields)
                pipe.pexpireat(f"{prefix}s:{name}", expires_ms + interface.LATE_SECONDS * 1000)
                pipe.zadd(prefix + "sessions", {name: expires_ms})
            for text in rest.texts:
                self._put_text(pipe, text)
            for partition, prefix in enumerate(self._prefixes):
                asked = client.eval(_RUN_ID, 1, prefix + "state").decode()
                run_id, now_s = asked[:40], int(asked[40:])
                top, generation = self._tops[partition], self._generations[partition]
                state = {"server": run_id, "generation": generation, "top": top, "kinds": kinds, "trimmed": top}
                pipe.hset(prefix + "state", mapping={**state, "since": starts[partition], "leases_from": 0, "mark": 0})
                for name, mask in masks.items():
                    value = f"{starts[partition]} {now_s * 1000} {mask} {generation}"
                    pipe.hset(prefix + "consumers", name, value)
            pipe.execute()
        return [moves.Start(index, self._generations[index], starts[index]) for index in range(self.partitions)]

    def _put_text(self, pipe: Any, text: moves.Text) -> None:
        prefix = self._prefixes[self._store.partition(text.app, text.channel)]
        channel = f"{text.app}:{text.channel}"
        name = f"{channel} {text.id}"
        fields = {"state": text.state, "seq": text.seq, "size": text.size, "head": text.head}
        fields |= {"body": text.body} if text.body is not None else {}
        fields |= {"offset": text.offset} if text.offset is not None else {}
        pipe.hset(f"{prefix}text:{name}", mapping=fields)
        if text.parts:
            pipe.rpush(f"{prefix}parts:{name}", *(part for _, part in text.parts))
        if text.state == interface.StreamState.OPEN:
            pipe.zadd(f"{prefix}texts:{channel}", {text.id: "+inf"})
            pipe.zadd(f"{prefix}open", {name: text.until_ms})
            pipe.hincrby(f"{prefix}opened", text.app, 1)
        else:
            pipe.zadd(f"{prefix}texts:{channel}", {text.id: text.until_ms})
            for kind in ("text", "parts"):
                pipe.pexpireat(f"{prefix}{kind}:{name}", text.until_ms)

    def open(self, mark: moves.Mark) -> None:
        with self._client() as client:
            for prefix in self._prefixes:
                client.hdel(prefix + "state", "moved")
            client.hset(self._meta, "mark", mark.text())


def _undecided(mark: moves.Mark) -> str:
    """The mark that partitions have before `mark`."""
    return mark._replace(what=moves.LEAVING).text()


def epoch_of(generation: str, birth: str) -> str:
    """As in scripts/common.lua."""
    if not birth.startswith("="):
        return generation + birth
    moved_in, _, epoch = birth[1:].partition(":")
    return epoch if moved_in == generation else generation + epoch


def _channel(name: str) -> tuple[str, str]:
    app, _, channel = name.partition(":")
    return app, channel


def _key(name: str, receipt: str, expires_ms: int) -> moves.Key:
    app, rest = _channel(name)
    channel, _, key = rest.partition(":")
    return moves.Key(app, channel, key, None if receipt == "-" else interface.Position.parse(receipt), expires_ms)


def _sessions(client: Any, prefix: str) -> Iterator[moves.Session]:
    for page in _pages(client.zrange(prefix + "sessions", 0, -1)):
        pipe = client.pipeline(transaction=False)
        for name in page:
            pipe.hmget(f"{prefix}s:{name.decode()}", "r", "x", "k")
        for name, (record, expires, taken) in zip(page, pipe.execute(), strict=True):
            if record:
                yield moves.Session(*_channel(name.decode()), record, int(expires), int(taken or 0))


def _pages(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for first in range(0, len(values), PAGE):
        yield values[first : first + PAGE]
