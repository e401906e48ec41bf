"""The channels of one connection, as far as the protocol knows: what it asked the hub for, and what the hub answered.

JOINING     the hub was asked, and has not answered. Another subscribe gets the same answer.
SUBSCRIBED  the hub answered, the client knows.
REFRESHING  subscribed, and the client asked again for a channel whose answer says more than yes: who is there, what
            was last said, how many there are. The hub reads an answer that is not older than what was delivered.
            Nobody joins a second time.

(none) --subscribe--> JOINING --subscribed--> SUBSCRIBED --subscribe again--> REFRESHING --subscribed--> SUBSCRIBED
   ^                     | refused                |                               |
   +---------------------+------ unsubscribe -----+-------------------------------+
"""

from __future__ import annotations

import enum

from fanfare.engine import interface
from fanfare.hub import event_frames
from fanfare.protocol import effects, names, recovery, refusals, server_frames


class State(enum.Enum):
    """See the module's docstring."""

    JOINING = enum.auto()
    SUBSCRIBED = enum.auto()
    REFRESHING = enum.auto()


class Subscription:
    """`member`: as whom, on a presence channel. It is the first one's: a second subscribe does not change it."""

    __slots__ = ("member", "past", "state")

    def __init__(self, member: interface.Member | None, past: recovery.Wanted) -> None:
        self.member = member
        self.past = past
        self.state = State.JOINING


class Subscriptions:
    """Asked by the client through `join` and `leave`, told by the hub through `subscribed` and `refused`."""

    __slots__ = ("_by_channel",)

    def __init__(self) -> None:
        self._by_channel: dict[str, Subscription] = {}

    def states(self) -> dict[str, State]:
        """A copy, for looking inside."""
        return {channel: subscription.state for channel, subscription in self._by_channel.items()}

    def live(self, channel: str) -> Subscription | None:
        """The subscription, if the hub delivers this channel's events to the connection."""
        subscription = self._by_channel.get(channel)
        return None if subscription is None or subscription.state is State.JOINING else subscription

    def join(
        self,
        channel: str,
        member: interface.Member | None,
        *,
        member_limit: int,
        announce: bool,
        past: recovery.Wanted = recovery.NOTHING,
    ) -> effects.Effects:
        """The client may subscribe, as `member` if it is a presence channel; maybe it already has. Raises Unauthorized.

        `member_limit`: distinct users of a presence channel. `announce`: whether subscribers of other channels hear how
        many they are. `past`: what the client asks for of the channel's past; only its first subscribe gets it.
        """
        subscription = self._by_channel.get(channel)
        if subscription is None:
            self._by_channel[channel] = Subscription(member, past)
            return (_ask_hub(channel, member, member_limit, announce=announce, past=past),)
        if member is not None and subscription.member is not None and member.user_id != subscription.member.user_id:
            # One connection is one member: to become somebody else it has to leave first, so that the others see it.
            raise refusals.Unauthorized(
                f"This connection is in {channel} as another user: unsubscribe first", reason="other_member"
            )
        if subscription.state is not State.SUBSCRIBED:
            return effects.NOTHING
        wanted = _ask_hub(channel, subscription.member, member_limit, announce=announce)
        if wanted == effects.Subscribe(channel):  # there is nothing to read
            return (effects.Send(server_frames.subscription_succeeded(channel)),)
        subscription.state = State.REFRESHING
        return (wanted,)

    def leave(self, channel: str) -> effects.Effects:
        if self._by_channel.pop(channel, None) is None:
            return effects.NOTHING
        return (effects.Unsubscribe(channel),)

    def subscribed(self, channel: str, attached: interface.SubscribeResult) -> effects.Effects:
        """The hub delivers from now on, and delivered nothing yet that is not in the snapshot."""
        subscription = self._by_channel.get(channel)
        if subscription is None:
            return effects.NOTHING
        subscription.state = State.SUBSCRIBED
        past, replayed = subscription.past, attached.replayed
        stream = recovery.stream(past, replayed) if past.told else None
        if subscription.member is None:
            told = [server_frames.subscription_succeeded(channel, stream)]
        else:
            told = [server_frames.presence_subscription_succeeded(channel, attached.members, stream)]
            if stream is not None:
                told.append(recovery.stream_frame(channel, stream))
        if names.is_cache(channel):
            told.append(server_frames.cache_miss(channel) if attached.cached is None else attached.cached)
        if attached.subscribers:  # 0 where the hub was not asked for them: this connection is one
            told.append(event_frames.subscription_count(channel, attached.subscribers))
        failed = replayed.reason if replayed is not None and past.recovering else None
        if failed is not None and stream is None:
            told.append(recovery.resume_failed(channel, failed))
        done: list[effects.Effect] = [effects.Send(frame) for frame in told]
        if failed is not None:
            done.append(effects.Count(f"resume.failed.{failed}"))
        return done

    def replay_lost(self, channel: str, position: interface.Position | None, reason: str) -> effects.Effects:
        """A replay that was granted could not be finished."""
        subscription = self._by_channel.get(channel)
        if subscription is None:
            return effects.NOTHING
        if subscription.past.told:
            frame = recovery.stream_reset(channel, position, reason)
        else:
            frame = recovery.resume_failed(channel, reason)
        return (effects.Send(frame), effects.Count(f"resume.failed.{reason}"))

    def refused(self, channel: str, refusal: interface.Refused) -> effects.Effects:
        """The hub did not subscribe the connection, or could not read the answer anew."""
        subscription = self._by_channel.get(channel)
        if subscription is None:
            return effects.NOTHING
        if subscription.state is State.REFRESHING:
            subscription.state = State.SUBSCRIBED  # it still is: only the answer is missing
            message = f"The channel {channel} cannot be read now: {refusal.message}"
            return (effects.Send(server_frames.error(None, message)), effects.Count("pusher.refresh_failed", message))
        del self._by_channel[channel]
        return refuse(channel, _in_protocol_terms(channel, refusal))


def refuse(channel: str, refusal: refusals.SubscriptionRefused) -> effects.Effects:
    """Two frames: the first reaches error callbacks in Java and Swift, the second those in JavaScript."""
    return (
        effects.Send(server_frames.error(refusal.code, refusal.message)),
        effects.Send(server_frames.subscription_error(channel, refusal.kind, refusal.message, refusal.status)),
        effects.Count(f"pusher.subscription_refused.{refusal.reason}", refusal.message),
    )


def _ask_hub(
    channel: str,
    member: interface.Member | None,
    member_limit: int,
    *,
    announce: bool,
    past: recovery.Wanted = recovery.NOTHING,
) -> effects.Subscribe:
    return effects.Subscribe(
        channel,
        member,
        member_limit if member is not None else None,
        cached=names.is_cache(channel),
        announce=announce and member is None,  # the members of a presence channel are known by name
        history=past.history,
        sent_as=past.sent_as,
    )


def _in_protocol_terms(channel: str, refusal: interface.Refused) -> refusals.SubscriptionRefused:
    if refusal.code == "member_limit":
        return refusals.LimitReached(
            f"The channel {channel} has {refusal.actual} members; {refusal.limit} are allowed",
            code=refusals.OVER_CAPACITY,
            reason=refusal.code,
        )
    return refusals.SubscriptionRefused(
        f"The channel {channel} cannot be joined now: {refusal.message}",
        code=None,
        kind="Unavailable",
        status=503,
        reason=refusal.code,
    )
