"""The channel layer itself.

Source: the Channels documentation, "Channel Layer Specification", with the groups and the flush extension.

Messages go through mailboxes of the engine's log, and a process reads the mailboxes that it listens to: its own one,
those of the groups that one of its channels is a member of, and those of the plain names that it receives from or sends
to. Nothing is stored for a group: a process knows which of its own channels are members.

- A *process-local* channel (`specific.a1b2!c3d4`, what a consumer has) belongs to the layer that made it.
- A channel with a *plain name* (`thumbnails`, for Channels' `runworker`) is shared by the processes that receive from
  it. Each of them keeps a message until a TAKEN message says which process received it, and the engine accepts only one
  TAKEN message. The log keeps the messages of a plain name until they expire, so a process that starts to receive later
  gets them.

Messages are delivered at most once, as the specification has it. They are dropped, and counted, where a channel is full
and where no process receives them before they expire. A process that has a gap in the log misses some, which the engine
counts.
"""

from __future__ import annotations

import asyncio
import collections
import hashlib
import logging
import math
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from channels.exceptions import ChannelFull
from channels.layers import BaseChannelLayer
from django.core.exceptions import ImproperlyConfigured

from fanfare.channel_layer import buffers, errors, messages
from fanfare.channel_layer import transport as transports
from fanfare.engine import interface

logger = logging.getLogger(__name__)

EXPIRY_S = 60
CAPACITY = 100  # messages; both as Channels' other layers have it
GROUP_EXPIRY_S = 86_400  # a day: longer than any WebSocket of theirs should live, so a leak ends
MAX_MESSAGE_BYTES = 1_048_576
SWEEP_S = 5.0  # between two searches of all channels for expired messages
GROUP_SWEEP_S = 600.0  # between two searches of all groups for members whose time is over; 0.05 ms per 1,000 members
ADD_S = 5.0  # how long `group_add` waits for the process that owns the channel

Message = messages.Message
Verb = messages.Verb


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
        transport: transports.Transport | None = None,
    ) -> None:
        if not 0 < expiry <= interface.IDEMPOTENCY_SECONDS:  # so long the engine remembers who took a message
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
        self._transport = transport or transports.process_transport
        self._token = secrets.token_hex(8)  # in the names of this layer's own channels
        self._mailbox = self._mailbox_of(self._token)
        self._buffers: dict[str, buffers.ChannelBuffer] = {}
        self._groups: dict[str, dict[str, float]] = {}  # members, and when (Unix seconds) they are no longer
        self._plain: dict[str, _PlainName] = {}  # the plain names that this process listens to
        self._replies: dict[str, asyncio.Future[None]] = {}  # by the id of the message that is to be answered
        self._flushed = 0.0  # Unix seconds: messages that were sent before are forgotten
        self._next_sweep = self._next_group_sweep = 0.0  # Unix seconds
        self._unreported: collections.Counter[str] = collections.Counter()  # drops since the last sweep

    # -- channels ------------------------------------------------------------------------------------------------------

    async def new_channel(self, prefix: str = "specific") -> str:
        """A channel of this process; whatever is sent to it from now on arrives."""
        await self._receiving()
        return f"{prefix.rstrip('.')}.{self._token}!{secrets.token_hex(8)}"

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Raises ChannelFull where this process can tell, and TypeError for a name or a message that cannot be sent.

        The capacity of a process-local channel of another process is known there: the message is dropped and counted.
        """
        self.require_valid_channel_name(channel)
        sent = self._message(Verb.SEND, channel, message)
        if "!" in channel:
            if self._transport.is_here() and self._is_own(channel):
                await self._send_reserved(self._mailbox, sent, None)
            else:
                await self._transport.post(self._mailbox_of(_owner(channel)), sent)
            return
        mailbox = self._mailbox_of("channel", channel)
        if self._transport.is_here():
            await self._receiving()
            await self._follow(channel)
            await self._send_reserved(mailbox, sent, self._retention(channel))
        else:
            await self._transport.post(mailbox, sent, retention=self._retention(channel))

    async def _send_reserved(self, mailbox: str, message: Message, retention: interface.Retention | None) -> None:
        buffer = self._buffer(message.target)
        self._expire(message.target, buffer, time.time())
        if not buffer.reserve(message.id, message.deadline):
            raise ChannelFull(message.target)
        try:
            await self._transport.post(mailbox, message, retention=retention)
        except BaseException:
            buffer.release(message.id)
            raise

    async def receive(self, channel: str) -> dict[str, Any]:
        """The next message. If several wait on a channel, anywhere in the deployment, each message goes to one."""
        self.require_valid_channel_name(channel)
        is_local = "!" in channel
        if is_local and not self._is_own(channel):
            raise errors.ForeignChannel(f"{channel!r} was made by another process; receive() works there only.")
        await self._receiving()
        while True:
            if not is_local:
                await self._follow(channel)
            buffer = self._buffer(channel)
            self._expire(channel, buffer, time.time())
            try:
                pending = await buffer.get()
            finally:
                self._forget_if_idle(channel)
            if is_local or await self._take(channel, pending.id):
                return messages.content_unpacked(pending.body)

    async def _take(self, channel: str, id_: str) -> bool:
        """Whether this process is the one that receives a message of a plain name."""
        return await self._transport.post(
            self._mailbox_of("channel", channel),
            Message(Verb.TAKEN, id_, channel, sent=time.time()),
            once=_key(self.prefix, id_, "taken"),
            retention=self._retention(channel),
        )

    # -- groups --------------------------------------------------------------------------------------------------------

    async def group_add(self, group: str, channel: str) -> None:
        """Every message of the group from now on goes to the channel, too.

        For a channel of another process this waits for that process, if this one receives too; otherwise it takes
        effect when that process has read it.
        """
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        if self._is_own(channel):
            await self._here(lambda: self._add(group, channel))
            return
        added = Message(Verb.GROUP_ADD, secrets.token_hex(8), group, member=channel, sent=time.time())
        if "!" not in channel:
            if self._transport.is_here():
                await self._receiving()
                self._add(group, channel)
            await self._transport.post(self._mailbox_of(), added)
        elif self._transport.is_here():
            await self._receiving()
            await self._ask(self._mailbox_of(_owner(channel)), added._replace(reply_to=self._mailbox))
        else:
            await self._transport.post(self._mailbox_of(_owner(channel)), added)

    async def group_discard(self, group: str, channel: str) -> None:
        """Nothing that is sent to the group reaches the channel after this returns, if it is one of this process."""
        self.require_valid_group_name(group)
        self.require_valid_channel_name(channel)
        if self._is_own(channel):
            await self._here(lambda: self._discard(group, channel))
            return
        discarded = Message(Verb.GROUP_DISCARD, secrets.token_hex(8), group, member=channel, sent=time.time())
        mailbox = self._mailbox_of(_owner(channel)) if "!" in channel else self._mailbox_of()
        await self._transport.post(mailbox, discarded)

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """One entry of the log, however many members there are. A member that is full misses it, which is counted."""
        self.require_valid_group_name(group)
        await self._transport.post(self._mailbox_of("group", group), self._message(Verb.GROUP_SEND, group, message))

    # -- the end -------------------------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Forget all messages and all members, in every process."""
        message = Message(Verb.FLUSH, secrets.token_hex(8), sent=time.time())
        kept = interface.Retention(1, interface.IDEMPOTENCY_SECONDS)  # for processes that start to receive later
        if not self._transport.is_here():
            await self._transport.post(self._mailbox_of(), message, retention=kept)
            return
        await self._receiving()
        # Until it was read back here: what is done after this returns must not be undone by it.
        flushed = self._replies[message.id] = asyncio.get_running_loop().create_future()
        try:
            await self._transport.post(self._mailbox_of(), message, retention=kept)
            await flushed
        finally:
            self._replies.pop(message.id, None)

    async def close(self) -> None:
        """Leave the log where this process has no server that would. For tests and scripts."""
        await self._transport.close()

    # -- messages of other processes -----------------------------------------------------------------------------------

    def deliver(self, message: Message) -> None:
        """A message of one of the mailboxes of this layer, in the log's order."""
        now = time.time()
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_S
            self._sweep(now)
        match message.verb:
            case Verb.SEND | Verb.TAKEN if (name := self._plain.get(message.target)) is not None:
                name.unread.append(message) if name.unread is not None else self._apply(message, now)
            case Verb.SEND if self._is_own(message.target):
                self._put(message.target, message.id, message, now)
            case Verb.GROUP_SEND:
                for channel in self._members(message.target, now):
                    self._deliver_to_member(channel, message, now)
            case Verb.GROUP_ADD if "!" not in message.member or self._is_own(message.member):
                self._add(message.target, message.member)
                if message.reply_to:
                    self._post_later(message.reply_to, Message(Verb.ADDED, message.id))
            case Verb.GROUP_DISCARD:
                self._discard(message.target, message.member)
            case Verb.FLUSH:
                self._flush(message)
            case Verb.ADDED:
                self._replied(message.id)
            case _:
                pass  # for a channel that this process listens to no longer

    def _apply(self, message: Message, now: float) -> None:
        """A message of a plain name."""
        if message.verb == Verb.SEND:
            self._put(message.target, message.id, message, now)
        else:
            buffer = self._buffers.get(message.target)
            if buffer is not None:
                buffer.remove(message.id)
                self._forget_if_idle(message.target)

    def _deliver_to_member(self, channel: str, message: Message, now: float) -> None:
        if self._is_own(channel):
            self._put(channel, message.id, message, now)
            return
        # Each process that knows of the member sends the message on to the plain name, and the engine accepts one.
        id_ = f"{message.id}:{channel}"
        sent = message._replace(verb=Verb.SEND, id=id_, target=channel)
        self._post_later(
            self._mailbox_of("channel", channel),
            sent,
            once=_key(self.prefix, id_, "sent"),
            retention=self._retention(channel),
        )

    def _put(self, channel: str, id_: str, message: Message, now: float) -> None:
        if message.sent < self._flushed or message.deadline <= now:
            return
        buffer = self._buffer(channel)
        self._expire(channel, buffer, now)
        if not buffer.put(buffers.Pending(id_, message.deadline, message.body)):
            self._drop("full", channel)

    def _flush(self, message: Message) -> None:
        self._flushed = max(self._flushed, message.sent)
        for group in list(self._groups):
            self._forget_group(group)
        # A buffer that a receiver waits for stays.
        for channel in [channel for channel, buffer in self._buffers.items() if not buffer.has_receivers]:
            del self._buffers[channel]
        self._replied(message.id)

    def _replied(self, id_: str) -> None:
        waiting = self._replies.get(id_)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def _ask(self, mailbox: str, message: Message) -> None:
        """Send a message and wait for its reply, if there is one in time."""
        replied = self._replies[message.id] = asyncio.get_running_loop().create_future()
        try:
            await self._transport.post(mailbox, message)
            async with asyncio.timeout(ADD_S):
                await replied
        except TimeoutError:
            logger.warning("The process of the channel %s did not answer: it may have ended", message.member)
        finally:
            self._replies.pop(message.id, None)

    def _post_later(self, mailbox: str, message: Message, **options: Any) -> None:
        self._transport.spawn("a message of the channel layer", self._transport.post(mailbox, message, **options))

    # -- what this process listens to ----------------------------------------------------------------------------------

    async def _receiving(self) -> None:
        await self._transport.receiving()
        if not self._transport.follows(self._mailbox, self.deliver):
            self._transport.follow(self._mailbox, self.deliver)
            self._transport.follow(self._mailbox_of(), self.deliver)
            for message in await self._transport.kept(self._mailbox_of(), 1):
                self._flushed = max(self._flushed, message.sent)

    async def _here(self, change: Callable[[], None]) -> None:
        """Change what this process knows, on the loop of its receivers."""

        async def run() -> None:
            await self._receiving()
            change()

        await self._transport.on_receiving_loop(run)

    async def _follow(self, channel: str) -> None:
        """Listen to a plain name, and read the messages that are kept of it."""
        name: _PlainName | None = None
        while name is None or self._plain.get(channel) is not name:  # the read of the call that waited first failed
            name = self._plain.get(channel)
            if name is None:
                name = await self._begin_to_follow(channel)
            else:
                await name.is_read.wait()
        name.used = time.time()

    async def _begin_to_follow(self, channel: str) -> _PlainName:
        name = self._plain[channel] = _PlainName()
        self._transport.follow(self._mailbox_of("channel", channel), self.deliver)
        try:
            await self._read_kept(channel, name)
        except BaseException:
            del self._plain[channel]
            self._transport.ignore(self._mailbox_of("channel", channel), self.deliver)
            raise
        finally:
            name.is_read.set()
        return name

    async def _read_kept(self, channel: str, name: _PlainName) -> None:
        kept = await self._transport.kept(self._mailbox_of("channel", channel), self._retention(channel).size)
        found, name.unread = [*kept, *(name.unread or ())], None
        taken = {message.id for message in found if message.verb == Verb.TAKEN}
        now = time.time()
        for message in found:
            if message.verb == Verb.SEND and message.id not in taken:
                self._apply(message, now)

    def _is_own(self, channel: str) -> bool:
        """Whether it is a process-local channel of this layer."""
        return "!" in channel and _owner(channel) == self._token

    def _mailbox_of(self, *parts: str) -> str:
        """Of all processes of this layer, of one of them, of a group or of a plain name."""
        return ":".join(("#layer", self.prefix, *parts))

    def _retention(self, channel: str) -> interface.Retention:
        """For messages of a plain name: each has a TAKEN message."""
        return interface.Retention(2 * self.get_capacity(channel), math.ceil(self.expiry_s))

    def _buffer(self, channel: str) -> buffers.ChannelBuffer:
        buffer = self._buffers.get(channel)
        if buffer is None:
            buffer = self._buffers[channel] = buffers.ChannelBuffer(self.get_capacity(channel))
        return buffer

    def _forget_if_idle(self, channel: str) -> None:
        buffer = self._buffers.get(channel)
        if buffer is not None and buffer.is_idle:
            del self._buffers[channel]

    def _members(self, group: str, now: float) -> list[str]:
        """The members, after the removal of those whose time is over."""
        members = self._groups.get(group, {})
        for channel in [channel for channel, until in members.items() if until <= now]:
            self._discard(group, channel)
        return list(members)

    def _add(self, group: str, channel: str) -> None:
        if group not in self._groups:
            self._transport.follow(self._mailbox_of("group", group), self.deliver)
        self._groups.setdefault(group, {})[channel] = time.time() + self.group_expiry

    def _discard(self, group: str, channel: str) -> None:
        members = self._groups.get(group)
        if members is not None:
            members.pop(channel, None)
            if not members:
                self._forget_group(group)

    def _forget_group(self, group: str) -> None:
        del self._groups[group]
        self._transport.ignore(self._mailbox_of("group", group), self.deliver)

    def _sweep(self, now: float) -> None:
        for channel, buffer in list(self._buffers.items()):
            self._expire(channel, buffer, now)
            self._forget_if_idle(channel)
        for channel, name in list(self._plain.items()):
            if name.unread is None and name.used < now - self.expiry_s and channel not in self._buffers:
                del self._plain[channel]
                self._transport.ignore(self._mailbox_of("channel", channel), self.deliver)
        if now >= self._next_group_sweep:
            self._next_group_sweep = now + GROUP_SWEEP_S
            for group in list(self._groups):
                self._members(group, now)
        dropped, self._unreported = self._unreported, collections.Counter()
        for what, count in dropped.items():
            if count > 1:
                logger.warning("The channel layer dropped %d more messages to %s", count - 1, what)

    def _expire(self, channel: str, buffer: buffers.ChannelBuffer, now: float) -> None:
        """A channel whose messages expire has no receiver: it leaves its groups, or it would fill again."""
        expired = buffer.expire(now)
        if expired:
            self._drop("expired", channel, expired)
            for group in list(self._groups):
                self._discard(group, channel)

    def _drop(self, reason: str, channel: str, count: int = 1) -> None:
        """Log the first drop at once and the others at the next sweep: a full channel drops every message."""
        self.counters[reason] += count
        self._transport.count(f"layer.{reason}", count)
        what = f"{channel}: {reason}"
        if what not in self._unreported:
            logger.warning("The channel layer dropped a message to %s", what)
        self._unreported[what] += count

    def _message(self, verb: Verb, target: str, content: dict[str, Any]) -> Message:
        if not isinstance(content, dict):
            raise TypeError(f"A message is a dict; this is {type(content).__name__}")
        body = messages.content_packed(content)
        if len(body) > self.max_message_bytes:
            raise errors.MessageTooLarge(self.max_message_bytes, len(body))
        now = time.time()
        return Message(verb, secrets.token_hex(8), target, now + self.expiry_s, body, sent=now)


class _PlainName:
    """A plain name that this process listens to. `unread`: its messages while the kept ones are read, then None.
    `used`: Unix seconds of the last call."""

    __slots__ = ("is_read", "unread", "used")

    def __init__(self) -> None:
        self.unread: list[Message] | None = []
        self.is_read = asyncio.Event()
        self.used = time.time()


def _owner(channel: str) -> str:
    """The token of the layer that made a process-local channel."""
    return channel.partition("!")[0].rpartition(".")[2]


def _key(*parts: str) -> str:
    """An idempotency key of any length of names."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
