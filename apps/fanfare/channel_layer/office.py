"""How the layers of this process reach the log.

In a worker of the server the hub reads the log, and hands over what is for the layers. In any other process that
receives (Channels' `runworker`, a test without a server) the first receiver opens an engine. A process that only
sends opens nothing.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Sequence
from typing import Protocol

from fanfare.channel_layer import envelopes, errors
from fanfare.engine import current, interface
from fanfare.hub import hub as hubs

logger = logging.getLogger(__name__)


class Layer(Protocol):
    """A receiver of envelopes."""

    prefix: str

    def deliver(self, envelope: envelopes.Envelope) -> None:
        """Called on the loop that receives, in the log's order."""


class Office:
    """One per process, but for tests."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None  # the one on which is received
        self._layers: weakref.WeakSet[Layer] = weakref.WeakSet()
        # One of these reads the log on `loop`, if there is one.
        self._hub: hubs.Hub | None = None
        self._own: interface.Engine | None = None  # opened here, and closed here
        self._opening: asyncio.Task[None] | None = None

    def register(self, layer: Layer) -> None:
        """Deliver to this layer. The reference is weak."""
        self._layers.add(layer)

    # -- receiving -----------------------------------------------------------------------------------------------------

    def serve(self, hub: hubs.Hub) -> None:
        """Receive through the hub of this process, on the running loop. Call it before the hub starts."""
        hub.on_control(envelopes.COMMAND, lambda _app, body: self._hand_over(body))
        self.loop, self._hub = asyncio.get_running_loop(), hub

    def leave(self) -> None:
        """The hub has stopped."""
        self.loop = self._hub = None

    async def receiving(self) -> None:
        """Return when what is sent from now on arrives here. Raises WrongLoop, and what Engine.open raises."""
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
        # Shielded: the one that came first may be cancelled, and the others wait for the same.
        self._opening = asyncio.create_task(self._open(), name="channel layer: opens the log")
        await asyncio.shield(self._opening)

    async def close(self) -> None:
        """End what `receiving` began, on its loop; nothing else. Idempotent."""
        engine, self._own = self._own, None
        if engine is not None:
            if self._hub is None:
                self.loop = None
            await engine.close()

    async def _open(self) -> None:
        try:
            engine = current.another()
            await engine.open(self._deliver, self._on_gap)
        except BaseException:
            self.loop = None
            raise
        finally:
            self._opening = None
        self._own = engine

    def _deliver(self, entries: Sequence[interface.Entry]) -> None:
        if self._hub is not None:
            return  # a server has started in this process since: what it hands over must not come twice
        for entry in entries:
            if entry.kind == interface.Kind.CONTROL and entry.channel == envelopes.COMMAND:
                try:
                    self._hand_over(entry.body)
                except Exception:
                    # As in the hub: one message's mistake must not take the others of this read with it.
                    logger.exception("A message of the channel layer could not be handed over")

    def _on_gap(self, reason: str, _partition: int | None) -> None:
        logger.warning("Messages of the channel layer may have been missed: %s", reason)

    def _hand_over(self, body: bytes) -> None:
        envelope = envelopes.unpacked(body)
        for layer in list(self._layers):
            if layer.prefix == envelope.layer:
                layer.deliver(envelope)

    def count(self, name: str, n: int) -> None:
        """Into the statistics of this worker, where the process is one."""
        if self._hub is not None:
            self._hub.count(name, n)

    # -- sending -------------------------------------------------------------------------------------------------------

    async def post(self, envelope: envelopes.Envelope, *, once: str | None = None) -> bool:
        """Put an envelope into the log. From any loop of any process. Raises EngineUnavailable.

        `once`: a key under which only one envelope can be posted. False: it was not this one.
        """
        publication = interface.Publication(
            app="",
            channel=envelopes.COMMAND,
            body=envelope.packed(),
            kind=interface.Kind.CONTROL,
            idempotency_key=once,
        )
        engine = self._hub.engine if self._hub is not None else self._own
        if engine is not None and self.loop is asyncio.get_running_loop():
            (receipt,) = await engine.append([publication])
        else:
            (receipt,) = await asyncio.to_thread(current.current().append_blocking, [publication])
        return not receipt.duplicate


here = Office()
