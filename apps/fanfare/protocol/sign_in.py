"""Sign-in: the user that an application's server wrote into `user_data` and signed.

    {"id": "42", "user_info": {"name": "Ann"}, "watchlist": ["7", "8"]}

`id` is a string with at least one character and no NUL, or an integer, which becomes a string; the rest may be absent.
Source: Pusher Channels protocol 7, "pusher:signin"; "User authentication", "Watchlist events".

    no user ──pusher:signin──► pending ──signed in──► a user, until the connection ends
       ▲                          │ refused
       └──────────────────────────┘

While a sign-in is pending, frames whose answer depends on the user wait and are answered afterwards, in their order;
all others are answered at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.hub import event_frames
from fanfare.protocol import authorization, effects, messages, names, refusals, server_frames, signatures


class SignIn(NamedTuple):
    """What the application's server signed. `user_data`: as the client gets it back."""

    user: interface.Member
    user_data: str
    watchlist: tuple[str, ...]  # the first `max_watchlist` of the users that the client wants to watch
    wanted: int  # how many these are


def authenticate(application: registry.Application, socket_id: str, data: Mapping[str, Any], now: float) -> SignIn:
    """Check `auth` and `user_data` of a `pusher:signin`. `now`: Unix time. Raises SignInRefused."""
    auth, user_data = data.get("auth"), data.get("user_data")
    if not isinstance(auth, str) or not isinstance(user_data, str):
        raise refusals.SignInRefused("A sign-in needs auth and user_data, both strings", reason="invalid_sign_in")
    signatures.check_user(auth, application.key, application.secrets(now), socket_id=socket_id, user_data=user_data)
    user = _object(user_data)
    limits = application.limits
    user_id = _user_id(user.get("id"), limits.max_user_id)
    watchlist = _watchlist(user.get("watchlist"), limits.max_user_id)
    member = interface.Member(user_id, _info(user.get("user_info")))
    if user["id"] != user_id:
        # pusher-js takes no other id than a string from the answer. Of a string the text is sent back unchanged.
        user_data = orjson.dumps({**user, "id": user_id}).decode()
    return SignIn(member, user_data, watchlist[: limits.max_watchlist], len(watchlist))


def _object(user_data: str) -> dict[str, Any]:
    try:
        user = orjson.loads(user_data)
    except orjson.JSONDecodeError as error:
        raise refusals.SignInRefused(f"The user_data is not JSON: {error}", reason="invalid_user") from None
    if not isinstance(user, dict):
        raise refusals.SignInRefused("The user_data must be a JSON object with an id", reason="invalid_user")
    return user


def _user_id(value: Any, limit: int) -> str:
    user_id = authorization.text_id(value)
    if user_id is None:
        raise refusals.SignInRefused(
            "The user_data needs an id that is an integer, or a string of one or more characters without NUL",
            reason="invalid_user",
        )
    if len(user_id) > limit:
        raise refusals.SignInRefused(
            f"The id in the user_data has {len(user_id)} characters; {limit} are allowed", reason="user_id_too_long"
        )
    return user_id


def _watchlist(value: Any, limit: int) -> tuple[str, ...]:
    """Each user once, in the order given. `limit`: characters of a user's id."""
    if value is None:
        return ()
    watched = [authorization.text_id(one) for one in value] if isinstance(value, list) else [None]
    if not all(one is not None and len(one) <= limit for one in watched):
        raise refusals.SignInRefused(
            f"The watchlist must be an array of user ids: integers, or strings of 1 to {limit} characters, without NUL",
            reason="invalid_watchlist",
        )
    return tuple(dict.fromkeys(one for one in watched if one is not None))


def _info(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # orjson reads deeper nesting than it writes
        raise refusals.SignInRefused("The user_info is nested too deeply", reason="invalid_user") from None


class Identity:
    """Of a connection that tries to sign in; most connections never do.

    `user` is None until the hub has signed it in, and does not change afterwards.
    """

    __slots__ = ("_max_pending_bytes", "_pending", "_pending_frames", "user")

    def __init__(self, max_pending_bytes: int) -> None:
        self.user: interface.Member | None = None
        self._max_pending_bytes = max_pending_bytes
        self._pending: SignIn | None = None  # the hub was asked, and has not answered
        self._pending_frames: messages.PendingFrames | None = None

    def claim(self, sign_in: SignIn) -> effects.Effects:
        """Sign in with verified data, or confirm the present user. Raises SignInRefused for another user."""
        if self.user is None:
            self._pending = sign_in
            return (effects.SignIn(sign_in.user.user_id, sign_in.watchlist),)
        if self.user.user_id != sign_in.user.user_id:
            raise refusals.SignInRefused(
                f'This connection is signed in as "{refusals.quoted(self.user.user_id)}" already', reason="other_user"
            )
        # The user_info and the watchlist of the first sign-in stay.
        return (effects.Send(server_frames.signin_success(sign_in.user_data)),)

    def signed_in(self, answer: interface.SubscribeResult) -> effects.Effects:
        """The hub signed the connection in."""
        sign_in, self._pending = self._pending, None
        if sign_in is None:
            return effects.NOTHING
        self.user = sign_in.user
        done: list[effects.Effect] = [effects.Send(server_frames.signin_success(sign_in.user_data))]
        watched = sign_in.watchlist
        if sign_in.wanted > len(watched):
            message = (
                f"The watchlist has {sign_in.wanted} users; {len(watched)} are allowed, and the first ones are watched"
            )
            done += [
                effects.Send(server_frames.error(refusals.WATCHLIST_TOO_LONG, message)),
                effects.Count("pusher.watchlist_cut", message),
            ]
        if watched:
            offline = [user_id for user_id in watched if user_id not in answer.online]
            done.append(effects.Send(event_frames.watchlist_events(answer.online, offline)))
        return [*done, *self._release()]

    # -- frames that wait ----------------------------------------------------------------------------------------------

    def must_wait(self, message: messages.Message) -> bool:
        """Whether the answer to this message depends on the pending sign-in. Raises BadFrame."""
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
            # The subscribes to one channel keep their order.
            or (self._pending_frames is not None and self._pending_frames.subscribe_to(channel))
        )

    def hold(self, text: str, message: messages.Message) -> None:
        """Raises TooManyPendingFrames."""
        channel = messages.channel(message)[0] if message.event == "pusher:subscribe" else ""
        if self._pending_frames is None:
            self._pending_frames = messages.PendingFrames(self._max_pending_bytes)
        self._pending_frames.add(text, channel)

    def unsubscribed(self, channel: str) -> None:
        """Drop the subscribes to this channel that wait."""
        if self._pending_frames is not None:
            self._pending_frames.drop(channel)

    def _release(self) -> effects.Effects:
        frames, self._pending_frames = self._pending_frames, None
        return effects.NOTHING if frames is None else [effects.Receive(text) for text in frames]
