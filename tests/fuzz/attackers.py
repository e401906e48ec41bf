"""Hostile clients: each connects, sends mutated frames, ends its connection badly, and reconnects."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable

from tests.fuzz import frames
from tests.harness import deployments, servers, wire

BATCH = 50  # frames in one write, followed by a ping whose answer shows that all were processed
PATIENCE = 60.0  # seconds for the answer, with eight attackers and the neighbours on two cores
PING = frames.encode(b'{"event":"pusher:ping","data":{}}')
HEAD_BYTES = 65_536

# 1011 is a fault of the server. 1006 stands for the end of a connection without a close frame.
FAULT_CODES = frozenset({1011})


class Tally:
    """The counts of all attackers together. `total`: the number of frames to send."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.frames = 0  # processed by the server
        self.connections = 0
        self.refused: Counter[str] = Counter()  # refused upgrades by status
        self.received = 0  # frames from the server
        self.closed: Counter[int] = Counter()  # close codes from the server

    @property
    def is_over(self) -> bool:
        return self.frames >= self.total


async def attack(
    server: servers.Server, application: deployments.Application, tally: Tally, chance: random.Random
) -> None:
    """One attacker; runs until the tally is complete."""
    while not tally.is_over:
        reader, writer = await asyncio.open_connection(servers.HOST, server.port, limit=2**22)
        try:
            await _upgrade(reader, writer, _target(chance, application.key))
            connection = _Connection(reader, writer, tally)
            await connection.attack(application, chance)
        except _NoUpgrade as refusal:
            tally.refused[refusal.status] += 1
        except (ConnectionError, asyncio.IncompleteReadError):
            tally.closed[1006] += 1
        finally:
            writer.transport.abort()


class _NoUpgrade(Exception):
    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


def _target(chance: random.Random, key: str) -> str:
    """A request target, mostly a valid one, because an invalid one reaches little code."""
    right = f"/app/{key}?protocol=7&client=fuzz&version=1.0"
    if chance.random() < 0.9:
        return right
    odd: tuple[Callable[[], str], ...] = (
        lambda: right + "&rt=1",
        lambda: f"/s/{'t' * chance.randrange(60)}{right}",
        lambda: f"/{'x' * chance.randrange(40)}/%00%ff/..{right}",
        lambda: f"/app/{key[:-1]}?protocol={chance.choice(('7', '3', '-1', 'x', '9' * 40, '%20'))}",
        lambda: f"/app/{key}?{'&'.join(['protocol=7'] * chance.randrange(40))}",
        lambda: "".join(chr(chance.randrange(0x21, 0x7F)) for _ in range(chance.randrange(1, 80))).join("/ ").strip(),
    )
    return chance.choice(odd)()


async def _upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str) -> None:
    lines = (
        f"GET {target} HTTP/1.1",
        f"Host: {servers.HOST}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version: 13",
    )
    writer.write("\r\n".join((*lines, "", "")).encode())
    async with asyncio.timeout(PATIENCE):
        head = await reader.readuntil(b"\r\n\r\n")
    status = head.split(None, 2)[1].decode()
    if status != "101":
        raise _NoUpgrade(status)


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tally: Tally) -> None:
        self._reader = reader
        self._writer = writer
        self._tally = tally

    async def attack(self, application: deployments.Application, chance: random.Random) -> None:
        first = await self._receive()
        if first is None:
            return
        self._tally.connections += 1
        greeting = json.loads(first)
        if greeting["event"] != "pusher:connection_established":
            while await self._receive() is not None:  # refused with an error; wait for the close
                continue
            return
        forge = frames.Forge(chance, application, json.loads(greeting["data"])["socket_id"])
        for _ in range(chance.randrange(1, 2 * frames.FATAL // BATCH)):
            if not await self._batch([forge.message() for _ in range(BATCH)]):
                return
        self._writer.write(forge.last_message())
        self._tally.frames += 1
        if chance.random() < 0.5:  # the other half leave without waiting for an answer
            await self._writer.drain()
            self._writer.write_eof()
            while await self._receive() is not None:
                continue

    async def _batch(self, messages: list[bytes]) -> bool:
        """Whether the connection is still open."""
        self._writer.write(b"".join(messages) + PING)
        await self._writer.drain()
        while (frame := await self._receive()) is not None:
            if frame.startswith(b'{"event":"pusher:pong"'):
                self._tally.frames += len(messages)
                return True
        return False

    async def _receive(self) -> bytes | None:
        """The payload of the next text frame; None after a close."""
        async with asyncio.timeout(PATIENCE):
            while True:
                head = await self._reader.readexactly(2)
                size = head[1] & 0x7F
                if size == 126:
                    size = int.from_bytes(await self._reader.readexactly(2), "big")
                elif size == 127:
                    size = int.from_bytes(await self._reader.readexactly(8), "big")
                payload = await self._reader.readexactly(size)
                opcode = head[0] & 0x0F
                if opcode == wire.CLOSE:
                    self._tally.closed[int.from_bytes(payload[:2], "big") or 1005] += 1
                    return None
                if opcode == wire.TEXT:
                    self._tally.received += 1
                    return payload
