"""As whom a connection is signed in, and what waits until that is known.

    (nobody) --pusher:signin--> PENDING --signed_in--> SIGNED IN, until the connection ends
       ^                           | refused
       +---------------------------+

While it is pending, frames whose answer depends on the user are held and answered afterwards, in their order; all
others are answered at once.
"""

from __future__ import annotations

from collections.abc import Iterable

from fanfare.engine import interface
from fanfare.protocol import effects, messages, names, pending_frames, refusals, server_frames, users


class Identity:
    """Made for a connection that tries to sign in; most never do.

    `user` is None until the hub has signed it in, and does not change any more.
    """

    __slots__ = ("_held", "_pending", "user")

    def __init__(self) -> None:
        self.user: interface.Member | None = None
        self._pending: users.SignIn | None = None  # the hub was asked, and has not answered
        self._held: pending_frames.PendingFrames | None = None

    def claim(self, sign_in: users.SignIn) -> effects.Effects:
        """The client may sign in; maybe it already has. Raises SignInRefused."""
        if self.user is None:
            self._pending = sign_in
            return (effects.SignIn(sign_in.user.user_id, sign_in.watchlist),)
        if self.user.user_id != sign_in.user.user_id:
            raise refusals.SignInRefused(
                f'This connection is signed in as "{refusals.quoted(self.user.user_id)}" already', reason="other_user"
            )
        # The first sign-in stands, its user_info and its watchlist too.
        return (effects.Send(server_frames.signin_success(sign_in.user_data)),)

    def signed_in(self, attached: interface.SubscribeResult) -> effects.Effects:
        """The hub did what `SignIn` asked."""
        pending, self._pending = self._pending, None
        if pending is None:
            return effects.NOTHING
        self.user = pending.user
        return users.succeeded(pending, attached.online)

    def refused(self, refusal: interface.Refused) -> effects.Effects:
        """The hub did not do what `SignIn` asked. It is not the client's fault, and it may try again."""
        self._pending = None
        message = f"Signing in is not possible now: {refusal.message}"
        return (
            effects.Send(server_frames.error(None, message)),
            effects.Count(f"pusher.sign_in_refused.{refusal.code}", message),
        )

    # -- what waits ----------------------------------------------------------------------------------------------------

    def awaited_by(self, message: messages.Message) -> bool:
        """Whether this message has to wait. Raises BadFrame."""
        if self._pending is None:
            return False
        if message.event == "pusher:signin":
            return True
        if message.event != "pusher:subscribe":
            return False
        channel, data = messages.channel(message)
        return (
            channel.startswith(names.USER_PREFIX)
            or (names.is_presence(channel) and data.get("channel_data") is None)
            or (self._held is not None and self._held.concern(channel))  # those of one channel keep their order
        )

    def hold(self, text: str, message: messages.Message) -> None:
        """Raises TooManyPendingFrames."""
        channel = messages.channel(message)[0] if message.event == "pusher:subscribe" else ""
        if self._held is None:
            self._held = pending_frames.PendingFrames()
        self._held.add(text, channel)

    def unsubscribed(self, channel: str) -> None:
        """The client does not want any more what it asked for while it waited."""
        if self._held is not None:
            self._held.drop(channel)

    def release(self) -> Iterable[str]:
        """What was held, to be answered now."""
        texts, self._held = self._held or (), None
        return texts
