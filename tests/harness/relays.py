"""A way to a server that can be cut: every connection through it is reset at once."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from tests.harness import servers


class Relay:
    """Passes bytes between its own port and a server's, in a thread with a loop of its own."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._pass_on, servers.HOST, 0), self._loop
        ).result(5)
        self.port = int(self._server.sockets[0].getsockname()[1])

    def url(self, path: str) -> str:
        return f"http://{servers.HOST}:{self.port}{path}"

    def cut(self) -> None:
        """Reset every connection. New ones are let through."""

        async def reset() -> None:
            for writer in self._open:
                writer.transport.abort()

        asyncio.run_coroutine_threadsafe(reset(), self._loop).result(5)

    def stop(self) -> None:
        self.cut()
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(servers.HOST, self._target)
        self._open |= {writer, there_writer}
        try:
            await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))
        finally:
            self._open -= {writer, there_writer}
            writer.transport.abort()
            there_writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


@contextlib.contextmanager
def relayed(server: servers.Server) -> Iterator[Relay]:
    relay = Relay(server.port)
    try:
        yield relay
    finally:
        relay.stop()
