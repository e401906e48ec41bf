"""Signing in: the user that an application's server wrote into `user_data` and signed, and what the client hears of it.

    {"id": "42", "user_info": {"name": "Ann"}, "watchlist": ["7", "8"]}

`id` is a string with at least one character (pusher-js refuses any other); the rest may be absent. Source: Pusher
Channels protocol 7, "pusher:signin"; "User authentication", "Watchlist events".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.hub import event_frames
from fanfare.protocol import effects, refusals, server_frames, signatures


class SignIn(NamedTuple):
    """What a client may do: be `user`, and hear when those of `watchlist` come and go."""

    user: interface.Member
    user_data: str  # as it was signed
    watchlist: tuple[str, ...]  # the first `max_watchlist` of those that are wanted
    wanted: int  # how many different users the client would like to watch


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
    return SignIn(member, user_data, watchlist[: limits.max_watchlist], len(watchlist))


def succeeded(sign_in: SignIn, online: Sequence[str]) -> effects.Effects:
    """Tell the client that it is signed in, and who of its watchlist is online."""
    told: list[effects.Effect] = [effects.Send(server_frames.signin_success(sign_in.user_data))]
    watched = sign_in.watchlist
    if sign_in.wanted > len(watched):
        message = (
            f"The watchlist has {sign_in.wanted} users; {len(watched)} are allowed, and the first ones are watched"
        )
        told += [
            effects.Send(server_frames.error(refusals.WATCHLIST_TOO_LONG, message)),
            effects.Count("pusher.watchlist_cut", message),
        ]
    if watched:
        offline = [user_id for user_id in watched if user_id not in online]
        told.append(effects.Send(event_frames.watchlist_events(online, offline)))
    return told


def _object(user_data: str) -> dict[str, Any]:
    try:
        user = orjson.loads(user_data)
    except orjson.JSONDecodeError as error:
        raise refusals.SignInRefused(f"The user_data is not JSON: {error}", reason="invalid_user") from None
    if not isinstance(user, dict):
        raise refusals.SignInRefused("The user_data must be a JSON object with an id", reason="invalid_user")
    return user


def _user_id(value: Any, limit: int) -> str:
    if not isinstance(value, str) or not value:
        raise refusals.SignInRefused(
            "The user_data must have an id that is a string with at least one character", reason="invalid_user"
        )
    if len(value) > limit:
        raise refusals.SignInRefused(
            f"The id in the user_data has {len(value)} characters; {limit} are allowed", reason="user_id_too_long"
        )
    return value


def _watchlist(value: Any, limit: int) -> tuple[str, ...]:
    """Each user once, in the order given. `limit`: characters of a user's id."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, str) and 0 < len(one) <= limit for one in value):
        raise refusals.SignInRefused(
            f"The watchlist must be an array of user ids: strings of 1 to {limit} characters",
            reason="invalid_watchlist",
        )
    return tuple(dict.fromkeys(value))


def _info(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # it reads deeper nesting than it writes
        raise refusals.SignInRefused("The user_info is nested too deeply", reason="invalid_user") from None
