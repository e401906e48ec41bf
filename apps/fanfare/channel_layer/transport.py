"""How the layers of a process reach the log: mailboxes that they listen to, and messages into mailboxes.

In a worker of the server the hub reads the log. In any other process that receives (Channels' `runworker`, a test
without a server) the first receiver opens an engine. A process that only sends opens nothing.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from fanfare.channel_layer import errors, messages
from fanfare.engine import current, interface
from fanfare.engine import errors as engine_errors
from fanfare.hub import hub as hubs
from fanfare.runtime.supervisor import Supervisor

logger = logging.getLogger(__name__)

T = TypeVar("T")
Receive = Callable[[messages.Message], None]  # a method of a layer


class Transport:
    """One per process, except in tests."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None  # of the receivers
        self._mailboxes: dict[str, list[weakref.WeakMethod[Receive]]] = {}
        # One of these reads the log on `loop`, if there is one.
        self._hub: hubs.Hub | None = None
        self._own: interface.Engine | None = None  # opened here, and closed here
        self._supervisor = Supervisor(logger)
        self._opening: asyncio.Task[None] | None = None

    # -- receiving -----------------------------------------------------------------------------------------------------

    def serve(self, hub: hubs.Hub) -> None:
        """Receive through the hub of this process, on the running loop. Call it before the hub starts."""
        self.loop, self._hub = asyncio.get_running_loop(), hub
        for mailbox in self._mailboxes:
            self._listen(mailbox)

    def leave(self) -> None:
        """The hub has stopped."""
        self.loop = self._hub = None

    def is_here(self) -> bool:
        """Whether the running loop is the one of the receivers, the only one that may change what they hold."""
        return self.loop is asyncio.get_running_loop()

    async def receiving(self) -> None:
        """Return when messages that are sent from now on arrive. Raises WrongLoop, and what Engine.open raises."""
        loop = asyncio.get_running_loop()
        if self._opening is not None and self.loop is loop:
            await asyncio.shield(self._opening)
        if self.loop is loop:
            return
        if self.loop is not None and not self.loop.is_closed():
            raise errors.WrongLoop(
                "This process receives on another event loop. Consumers run on the loop of the server; elsewhere, "
                "receive on one loop only."
            )
        self.loop = loop
        # Shielded: the receiver that came first may be cancelled, and the others wait for the same.
        self._opening = self._supervisor.spawn(
            "opening of the channel layer's log", self._open(), expected=(engine_errors.EngineError,)
        )
        await asyncio.shield(self._opening)

    async def on_receiving_loop(self, function: Callable[[], Awaitable[T]]) -> T:
        """Run a coroutine function on the loop of the receivers, from any other loop, or here if nothing receives."""
        if self.loop is None or self.is_here():
            return await function()

        async def run() -> T:
            return await function()

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(run(), self.loop))

    def follow(self, mailbox: str, receive: Receive) -> None:
        """Call a method of a layer with each message that is sent to a mailbox from now on. The reference is weak."""
        if not self.follows(mailbox, receive):
            self._mailboxes.setdefault(mailbox, []).append(weakref.WeakMethod(receive))
        self._listen(mailbox)

    def follows(self, mailbox: str, receive: Receive) -> bool:
        return any(one() == receive for one in self._mailboxes.get(mailbox, ()))

    def ignore(self, mailbox: str, receive: Receive) -> None:
        """Idempotent."""
        known = [one for one in self._mailboxes.get(mailbox, ()) if one() not in (None, receive)]
        if known:
            self._mailboxes[mailbox] = known
        elif self._mailboxes.pop(mailbox, None) is not None:
            self._ignore(mailbox)

    async def kept(self, mailbox: str, limit: int) -> list[messages.Message]:
        """The newest messages that the log keeps of a mailbox, oldest first. Raises EngineUnavailable."""
        engine = self._engine()

        def read(queries: interface.Queries) -> list[interface.Entry]:
            return queries.read("", mailbox, 0, limit, newest_first=True)[0]

        entries = await engine.ask(read) if engine is not None else []
        return [messages.unpacked(entry.body) for entry in reversed(entries)]

    async def close(self) -> None:
        """End what `receiving` began, on its loop, and nothing else. Idempotent."""
        engine, self._own = self._own, None
        if engine is not None:
            if self._hub is None:
                self.loop = None
            await engine.close()

    async def _open(self) -> None:
        try:
            engine = current.another()
            for mailbox in self._mailboxes:
                engine.listen("", mailbox, True)
            await engine.open(self._deliver, self._on_gap)
        except BaseException:
            self.loop = None
            raise
        finally:
            self._opening = None
        self._own = engine

    def _engine(self) -> interface.Engine | None:
        return self._hub.engine if self._hub is not None else self._own

    def _listen(self, mailbox: str) -> None:
        if self._hub is not None:
            self._hub.on_message(mailbox, functools.partial(self._receive, mailbox))
        elif self._own is not None:
            self._own.listen("", mailbox, True)

    def _ignore(self, mailbox: str) -> None:
        if self._hub is not None:
            self._hub.ignore(mailbox)
        elif self._own is not None:
            self._own.listen("", mailbox, False)

    def _deliver(self, entries: Sequence[interface.Entry]) -> None:
        if self._hub is not None:
            return  # a server has started in this process since: its messages must not come twice
        for entry in entries:
            if entry.kind == interface.Kind.MESSAGE:
                try:
                    self._receive(entry.channel, entry.body)
                except Exception:
                    # As in the hub: a fault of one message must not take the others of this read with it.
                    logger.exception("A message of the channel layer could not be delivered")

    def _receive(self, mailbox: str, body: bytes) -> None:
        message = messages.unpacked(body)
        for reference in list(self._mailboxes.get(mailbox, ())):
            receive = reference()
            if receive is not None:
                receive(message)

    def _on_gap(self, reason: str, _partition: int | None) -> None:
        logger.warning("Messages of the channel layer may have been missed: %s", reason)

    def spawn(self, name: str, coroutine: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine of a layer without waiting for it; an engine that is away is logged."""
        self._supervisor.spawn(name, coroutine, expected=(engine_errors.EngineError,))

    def count(self, name: str, n: int) -> None:
        """Into the statistics of this worker, where the process is one."""
        if self._hub is not None:
            self._hub.count(name, n)

    # -- sending -------------------------------------------------------------------------------------------------------

    async def post(
        self,
        mailbox: str,
        message: messages.Message,
        *,
        once: str | None = None,
        retention: interface.Retention | None = None,
    ) -> bool:
        """Send a message to a mailbox, from any loop of any process. Raises EngineUnavailable.

        `once`: a key under which only one message can be sent. False: it was not this one. `retention`: the log keeps
        it for processes that begin to listen later.
        """
        publication = interface.Publication(
            app="",
            channel=mailbox,
            body=message.packed(),
            kind=interface.Kind.MESSAGE,
            idempotency_key=once,
            retention=retention,
        )
        engine = self._engine()
        if engine is not None and self.is_here():
            (receipt,) = await engine.append([publication])
        else:
            (receipt,) = await asyncio.to_thread(current.current().append_blocking, [publication])
        return not receipt.duplicate


process_transport = Transport()
