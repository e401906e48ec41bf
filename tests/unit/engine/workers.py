"""Several workers of one deployment in one process: each has an engine of its own and records its deliveries."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from fanfare.engine import errors, interface
from tests.harness import waiting

T = TypeVar("T")

APP = "1"
ANSWER_S = 5.0
APPS = (APP, "7")  # the second one is the default application of the tests with a database
CHANNELS = (
    *("a", "b", "c", "d", "cache-c", "calm", "end", "kept", "long", "new", "news", "plain", "presence-c", "short"),
    *("orders", "kept-orders", "private-encrypted-orders", "#server-to-user-42"),
)


async def soon(awaitable: Awaitable[T]) -> T:
    """The result of what an engine does at once unless it never does it."""
    return await asyncio.wait_for(awaitable, ANSWER_S * waiting.SLACK)


class Worker:
    """An open engine and all that it delivered."""

    def __init__(self, engine: interface.Engine) -> None:
        self.engine = engine
        self.entries: list[interface.Entry] = []
        self.reads: list[Sequence[interface.Entry]] = []
        self.gaps: list[str] = []

    async def open(self, *, listening: bool = True) -> Worker:
        """Become a worker, and with `listening` get the entries of all `CHANNELS`."""
        await self.engine.open(self._deliver, lambda reason, _partition: self.gaps.append(reason))
        for app in APPS if listening else ():
            for channel in CHANNELS:
                self.engine.listen(app, channel, True)
        return self

    def _deliver(self, entries: Sequence[interface.Entry]) -> None:
        self.entries.extend(entries)
        self.reads.append(entries)

    def bodies(self, channel: str) -> list[bytes]:
        return [entry.body for entry in self.entries if entry.channel == channel]

    async def publish(self, channel: str, *bodies: bytes, **more: object) -> list[interface.Receipt]:
        return await self.engine.append(
            [interface.Publication(APP, channel, body, **more) for body in bodies]  # type: ignore[arg-type]
        )

    async def publish_when_back(self, *bodies: bytes, within: float = 60, **more: object) -> list[interface.Receipt]:
        """`publish` to the channel kept, repeated while the store is away: health stays green for a moment then."""

        async def try_to() -> list[interface.Receipt]:
            try:
                return await self.publish("kept", *bodies, **more)
            except errors.EngineUnavailable:
                return []

        return await waiting.until_async(try_to, within, "the store takes an event")

    async def attach(
        self, channel: str, socket_id: str = "1.1", user_id: str | None = None, info: str = "null", **more: Any
    ) -> interface.SubscribeResult | interface.Refused:
        """Attach and wait for the answer; `more` are fields of the SubscribeRequest."""
        answered: asyncio.Future[interface.SubscribeResult | interface.Refused] = (
            asyncio.get_running_loop().create_future()
        )
        member = None if user_id is None else interface.Member(user_id, info)
        self.engine.attach(
            interface.SubscribeRequest(APP, channel, socket_id, member=member, **more), answered.set_result
        )
        return await soon(answered)

    async def join(self, channel: str, user_id: str, socket_id: str, **more: Any) -> list[str]:
        """Attach as a member; the ids in the snapshot."""
        answer = await self.attach(channel, socket_id, user_id, **more)
        assert isinstance(answer, interface.SubscribeResult), answer
        return [member.user_id for member in answer.members]

    async def written(self) -> None:
        """What this worker has changed so far is in the store."""
        written = asyncio.Event()
        self.engine.when_written(written.set)
        await soon(written.wait())

    async def members(self, channel: str, limit: int | None = None) -> list[interface.Member]:
        return await self.engine.ask(lambda queries: queries.members(APP, channel, limit))

    async def channel(self, channel: str) -> interface.ChannelCounts:
        return await self.engine.ask(lambda queries: queries.channel(APP, channel))

    async def channels(self, app: str = APP, prefix: str = "") -> dict[str, interface.ChannelCounts]:
        return await self.engine.ask(lambda queries: queries.channels(app, prefix))

    async def cached(self, channel: str) -> interface.Cached | None:
        return await self.engine.ask(lambda queries: queries.cached(APP, channel))

    async def read(
        self, channel: str, after: int, limit: int, **more: Any
    ) -> tuple[list[interface.Entry], interface.Position | None]:
        return await self.engine.ask(lambda queries: queries.read(APP, channel, after, limit, **more))

    async def got(self, channel: str, *bodies: bytes) -> None:
        """Wait until exactly these came on a channel."""
        await self.until(lambda: len(self.bodies(channel)) >= len(bodies), f"{bodies} on {channel}")
        assert self.bodies(channel) == list(bodies)

    async def until(self, condition: Callable[[], object], what: str, within: float = 15) -> None:
        async def look() -> object:
            return condition()

        await waiting.until_async(look, within, what)


Hire = Callable[[], "asyncio.Future[Worker]"]
