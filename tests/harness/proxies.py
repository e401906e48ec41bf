"""A TCP proxy between a client and a server whose connections a test can reset."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Iterator

from tests.harness import servers, threads

CHUNK_BYTES = 65_536

# While the server restarts, the proxy holds new connections and tries again, as a load balancer does. pusher-js waits
# 15 s after a refused attempt, and the tests are not about that wait.
CONNECT_SECONDS = 10.0
RETRY_SECONDS = 0.1

# SO_LINGER on with 0 s: close() sends a TCP reset and drops what is in the buffers of both directions, as a middlebox
# does that lost its connection table.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class TcpProxy:
    """Forwards connections to `target()`, the server's current port: it changes when the server restarts.

    `life_s`: each connection is reset after a random time in this range; None means never. `tls`: for
    connections from clients.
    """

    def __init__(
        self,
        target: Callable[[], int],
        life_s: tuple[float, float] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.port = 0
        self.resets = 0
        self.life_s = life_s
        self.upstream_ports: list[int] = []  # local ports of the connections to the server, oldest first
        self._target = target
        self._tls = tls
        self._open: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[TcpProxy]:
        server = await asyncio.start_server(self._accepted, servers.HOST, 0, limit=CHUNK_BYTES, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.reset_all()
            await asyncio.gather(*self._open, return_exceptions=True)

    def url(self, path: str) -> str:
        return f"http://{servers.HOST}:{self.port}{path}"

    def reset_all(self) -> None:
        """Reset every open connection. New ones are accepted."""
        for ends in self._open.values():
            self._reset(ends)

    def _reset(self, ends: list[asyncio.StreamWriter]) -> None:
        self.resets += bool(ends)
        for end in ends:
            end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            end.transport.abort()
        ends.clear()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        ends = self._open[task] = [writer]
        try:
            up_reader, up_writer = await self._connect()
            if not ends:  # reset_all() ran while this was connecting
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
            pass  # the server did not come back; the client sees its connection close
        finally:
            del self._open[task]
            for end in ends:
                end.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        deadline = asyncio.get_running_loop().time() + CONNECT_SECONDS
        while True:
            try:
                return await asyncio.open_connection(servers.HOST, self._target(), limit=CHUNK_BYTES)
            except OSError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(RETRY_SECONDS)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()


class ThreadedProxy:
    """A TcpProxy for synchronous tests."""

    def __init__(self, running: threads.InThread[TcpProxy]) -> None:
        self._running = running

    @property
    def port(self) -> int:
        return self._running.resource.port

    def url(self, path: str) -> str:
        return self._running.resource.url(path)

    def reset_all(self) -> None:
        self._running.do(self._running.resource.reset_all)


@contextlib.contextmanager
def in_front_of(server: servers.Server, tls: ssl.SSLContext | None = None) -> Iterator[ThreadedProxy]:
    """A running proxy to `server`, in its own thread."""
    with threads.in_thread(TcpProxy(lambda: server.port, tls=tls).running()) as running:
        yield ThreadedProxy(running)
