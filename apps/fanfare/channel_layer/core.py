"""The channel layer itself.

Source: the Channels documentation, "Channel Layer Specification", with the groups and the flush extension.

Everything goes through the log, in one order, which every process that receives reads. So nothing is stored for a
group: a process knows which of its own channels are members and hands each message to them.

- A *process-local* channel (`specific.a1b2!c3d4`, what a consumer has) belongs to the layer that made it. The others
  pass over what is for it.
- A channel with a *plain name* (`thumbnails`, for Channels' `runworker`) is shared by the processes that receive from
  it. Each of them keeps a message until the log says which process took it, and the engine lets only one take it.

Messages are delivered at most once, as the specification has it. They are dropped, and counted, where a channel is full
and where no process receives them before they expire. A process that lost its place in the log misses some, which the
engine counts. A plain name keeps messages in the running processes: one that starts later gets no earlier message.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import math
import secrets
import time
from collections.abc import Mapping
from typing import Any

from channels.exceptions import ChannelFull
from channels.layers import BaseChannelLayer
from django.core.exceptions import ImproperlyConfigured

from fanfare.channel_layer import boxes, envelopes, errors
from fanfare.channel_layer import office as offices
from fanfare.engine import interface

logger = logging.getLogger(__name__)

EXPIRY_S = 60
CAPACITY = 100  # messages; both as Channels' other layers have it
GROUP_EXPIRY_S = 86_400  # a day: longer than any WebSocket of theirs should live, so a leak ends
MAX_MESSAGE_BYTES = 1_048_576
SWEEP_S = 5.0  # how often what is too old is looked for among all channels

Verb = envelopes.Verb


class EngineChannelLayer(BaseChannelLayer):
    """A layer for all processes of the deployment.

    `prefix` keeps layers apart that share an engine. `expiry`, `group_expiry`: seconds. `capacity`, and by pattern
    `channel_capacity`: messages that one channel may hold. `max_message_bytes`: of one packed message.
    """

    extensions = ("groups", "flush")

    def __init__(
        self,
        *,
        prefix: str = "channels",
        expiry: float = EXPIRY_S,
        group_expiry: float = GROUP_EXPIRY_S,
        capacity: int = CAPACITY,
        channel_capacity: Mapping[Any, int] | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        office: offices.Office | None = None,
    ) -> None:
        if not 0 < expiry <= interface.IDEMPOTENCY_SECONDS:  # the engine remembers no longer who took a message
            raise ImproperlyConfigured(
                f"CHANNEL_LAYERS: expiry is {expiry!r} seconds; it must be above 0 and at most "
                f"{interface.IDEMPOTENCY_SECONDS}."
            )
        super().__init__(expiry=math.ceil(expiry), capacity=capacity)
        self.channel_capacity = self.compile_capacities(dict(channel_capacity or {}))  # type: ignore[assignment]
        self.expiry_s = expiry
        self.prefix = prefix
        self.group_expiry = group_expiry
        self.max_message_bytes = max_message_bytes
        self.counters: collections.Counter[str] = collections.Counter()  # messages that were dropped, by reason
        self._office = office or offices.here
        self._office.register(self)
        self._token = secrets.token_hex(8)  # in the names of this layer's own channels
        self._boxes: dict[str, boxes.Box] = {}
        self._groups: dict[str, dict[str, float]] = {}  # members, and when (Unix seconds) they are no longer
        self._flushing: dict[str, asyncio.Future[None]] = {}
        self._next_sweep = 0.0  # Unix seconds
        self._untold: collections.Counter[str] = collections.Counter()  # drops since the last sweep, by where and why

    # -- channels ------------------------------------------------------------------------------------------------------

    async def new_channel(self, prefix: str = "specific") -> str:
        """A channel of this process; whatever is sent to it from now on arrives."""
        await self._office.receiving()
        return f"{prefix.rstrip('.')}.{self._token}!{secrets.token_hex(8)}"

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Raises ChannelFull where this process can tell, and TypeError for a name or a message that cannot be sent.

        The capacity of a process-local channel of another process is known there: the message is dropped and counted.
        """
        self.require_valid_channel_name(channel)
        envelope = self._envelope(Verb.SEND, channel, message)
        if not (self._is_here() and self._is_kept(channel)):
            await self._office.post(envelope)
            return
        box = self._box(channel)
        self._expire(channel, box, time.time())
        if not box.reserve(envelope.id, envelope.deadline):
            raise ChannelFull(channel)
        try:
            await self._office.post(envelope)
        except BaseException:
            box.release(envelope.id)
            raise

    async def receive(self, channel: str) -> dict[str, Any]:
        """The next message. If several wait on a channel, anywhere in the deployment, each message goes to one."""
        self.require_valid_channel_name(channel)
        is_local = "!" in channel
        if is_local and not self._is_own(channel):
            raise errors.ForeignChannel(f"{channel!r} was made by another process; receive() works there only.")
        await self._office.receiving()
        while True:
            box = self._box(channel)
            self._expire(channel, box, time.time())
            try:
                item = await box.get()
            finally:
                self._forget_if_idle(channel)
            if is_local or await self._office.post(self._taken(channel, item.id), once=f"{self.prefix}:{item.id}"):
                return envelopes.message_unpacked(item.body)

    # -- groups --------------------------------------------------------------------------------------------------------

    async def group_add(self, group: str, channel: str) -> None:
        """Every message of the group from now on goes to the channel, too."""
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        if self._is_here() and self._is_own(channel):
            self._add(group, channel)
        else:
            await self._office.post(self._bare(Verb.GROUP_ADD, group, member=channel))

    async def group_discard(self, group: str, channel: str) -> None:
        """Nothing that is sent to the group reaches the channel after this returns, if it is one of this process."""
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        if self._is_here() and self._is_own(channel):
            self._discard(group, channel)
        else:
            await self._office.post(self._bare(Verb.GROUP_DISCARD, group, member=channel))

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """One entry of the log, however many members there are. A member that is full misses it, which is counted."""
        self.require_valid_group_name(group)
        await self._office.post(self._envelope(Verb.GROUP_SEND, group, message))

    # -- the end -------------------------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Forget all messages and all members, in every process."""
        envelope = self._bare(Verb.FLUSH, "")
        if not self._is_here():
            await self._office.post(envelope)
            return
        # Until it was read back here: what is done after this returns must not be undone by it.
        flushed = self._flushing[envelope.id] = asyncio.get_running_loop().create_future()
        try:
            await self._office.post(envelope)
            await flushed
        finally:
            self._flushing.pop(envelope.id, None)

    async def close(self) -> None:
        """Leave the log where this process has no server that would. For tests and scripts."""
        await self._office.close()

    # -- what the log says ---------------------------------------------------------------------------------------------

    def deliver(self, envelope: envelopes.Envelope) -> None:
        now = time.time()
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_S
            self._sweep(now)
        match envelope.verb:
            case Verb.SEND:
                self._put(envelope.target, envelope, now)
            case Verb.GROUP_SEND:
                for channel in self._members(envelope.target, now):
                    self._put(channel, envelope, now)
            case Verb.TAKEN:
                self._take_out(envelope.target, envelope.id)
            case Verb.GROUP_ADD if self._is_kept(envelope.member):
                self._add(envelope.target, envelope.member)
            case Verb.GROUP_DISCARD:
                self._discard(envelope.target, envelope.member)
            case Verb.FLUSH:
                self._flushed(envelope.id)
            case _:
                pass  # about a channel of another process

    def _put(self, channel: str, envelope: envelopes.Envelope, now: float) -> None:
        if not self._is_kept(channel):
            return
        # A message to a group is one message for each member: who takes the one leaves the others'.
        id_ = envelope.id if envelope.verb == Verb.SEND else f"{envelope.id}:{channel}"
        box = self._box(channel)
        self._expire(channel, box, now)
        if not box.put(boxes.Item(id_, envelope.deadline, envelope.body)):
            self._drop("full", channel)

    def _take_out(self, channel: str, id_: str) -> None:
        box = self._boxes.get(channel)
        if box is not None:
            box.remove(id_)
            self._forget_if_idle(channel)

    def _flushed(self, id_: str) -> None:
        self._groups.clear()
        # Those who wait keep their box.
        for channel in [channel for channel, box in self._boxes.items() if not box.is_awaited]:
            del self._boxes[channel]
        waiting = self._flushing.get(id_)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    # -- what this process knows ---------------------------------------------------------------------------------------

    def _is_here(self) -> bool:
        """Whether this is the receiving loop, the only one that may change boxes and groups."""
        return self._office.loop is asyncio.get_running_loop()

    def _is_own(self, channel: str) -> bool:
        """Whether it is a process-local channel of this layer."""
        name, mark, _ = channel.partition("!")
        return bool(mark) and name.endswith(f".{self._token}")

    def _is_kept(self, channel: str) -> bool:
        """Whether what is sent to the channel is kept here: an own one, or a plain name where this process receives."""
        return self._is_own(channel) if "!" in channel else self._office.loop is not None

    def _box(self, channel: str) -> boxes.Box:
        box = self._boxes.get(channel)
        if box is None:
            box = self._boxes[channel] = boxes.Box(self.get_capacity(channel))
        return box

    def _forget_if_idle(self, channel: str) -> None:
        box = self._boxes.get(channel)
        if box is not None and box.is_idle:
            del self._boxes[channel]

    def _members(self, group: str, now: float) -> list[str]:
        members = self._groups.get(group, {})
        for channel in [channel for channel, until in members.items() if until <= now]:
            self._discard(group, channel)
        return list(members)

    def _add(self, group: str, channel: str) -> None:
        self._groups.setdefault(group, {})[channel] = time.time() + self.group_expiry

    def _discard(self, group: str, channel: str) -> None:
        members = self._groups.get(group)
        if members is not None:
            members.pop(channel, None)
            if not members:
                del self._groups[group]

    def _sweep(self, now: float) -> None:
        for channel, box in list(self._boxes.items()):
            self._expire(channel, box, now)
            self._forget_if_idle(channel)
        told, self._untold = self._untold, collections.Counter()
        for what, count in told.items():
            if count > 1:
                logger.warning("The channel layer dropped %d more messages to %s", count - 1, what)

    def _expire(self, channel: str, box: boxes.Box, now: float) -> None:
        """A channel whose messages expire has no receiver: it leaves its groups, or it would fill again."""
        expired = box.expire(now)
        if expired:
            self._drop("expired", channel, expired)
            for group in list(self._groups):
                self._discard(group, channel)

    def _drop(self, reason: str, channel: str, count: int = 1) -> None:
        """Log the first drop at once and the others at the next sweep: a full channel drops every message."""
        self.counters[reason] += count
        self._office.count(f"layer.{reason}", count)
        what = f"{channel}: {reason}"
        if what not in self._untold:
            logger.warning("The channel layer dropped a message to %s", what)
        self._untold[what] += count

    # -- envelopes -----------------------------------------------------------------------------------------------------

    def _envelope(self, verb: Verb, target: str, message: dict[str, Any]) -> envelopes.Envelope:
        if not isinstance(message, dict):
            raise TypeError(f"A message is a dict; this is {type(message).__name__}")
        body = envelopes.message_packed(message)
        if len(body) > self.max_message_bytes:
            raise errors.MessageTooLarge(self.max_message_bytes, len(body))
        return envelopes.Envelope(self.prefix, verb, secrets.token_hex(8), target, time.time() + self.expiry_s, body)

    def _bare(self, verb: Verb, target: str, member: str = "") -> envelopes.Envelope:
        return envelopes.Envelope(self.prefix, verb, secrets.token_hex(8), target, member=member)

    def _taken(self, channel: str, id_: str) -> envelopes.Envelope:
        return envelopes.Envelope(self.prefix, Verb.TAKEN, id_, channel)
