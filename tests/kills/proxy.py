"""A TCP proxy between one client and the server, whose connections break when they are told to."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable

from tests.harness import servers

CHUNK_BYTES = 65_536

# As a load balancer holds a connection while its server restarts. pusher-js does nothing for 15 s after an attempt that
# was refused, and a client that is away is not tested.
HELD_S = 10.0
AGAIN_S = 0.1

# A close sends a reset and throws away what is under way in both directions, as a middlebox does that forgot a
# connection.
RESET = struct.pack("ii", 1, 0)

Port = Callable[[], int]


class Proxy:
    """`target`: the server's port of this moment; it has another one after a restart. `life_s`: a connection is reset
    after a random time between these."""

    def __init__(self, target: Port, life_s: tuple[float, float] | None = None) -> None:
        self.port = 0
        self.resets = 0
        self.life_s = life_s
        self.upstream_ports: list[int] = []  # our own ports of the connections to the server, in their order
        self._target = target
        self._open: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._accepted, servers.HOST, 0, limit=CHUNK_BYTES)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.reset_all()
            await asyncio.gather(*self._open, return_exceptions=True)

    def reset_all(self) -> None:
        for ends in self._open.values():
            self._reset(ends)

    def _reset(self, ends: list[asyncio.StreamWriter]) -> None:
        self.resets += bool(ends)
        for end in ends:
            end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            end.transport.abort()
        ends.clear()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        ends = self._open[task] = [writer]
        try:
            up_reader, up_writer = await self._connect()
            if not ends:  # it was cut meanwhile
                up_writer.transport.abort()
                return
            ends.append(up_writer)
            self.upstream_ports.append(up_writer.get_extra_info("sockname")[1])
            life_s = random.uniform(*self.life_s) if self.life_s else None
            pumps = [asyncio.create_task(_pump(reader, up_writer)), asyncio.create_task(_pump(up_reader, writer))]
            await asyncio.wait(pumps, timeout=life_s, return_when=asyncio.FIRST_COMPLETED)
            if not any(pump.done() for pump in pumps):
                self._reset(ends)
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)
        except OSError:
            pass  # the server stays away: the client is told by the end of its connection
        finally:
            del self._open[task]
            for end in ends:
                end.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        deadline = asyncio.get_running_loop().time() + HELD_S
        while True:
            try:
                return await asyncio.open_connection(servers.HOST, self._target(), limit=CHUNK_BYTES)
            except OSError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(AGAIN_S)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
