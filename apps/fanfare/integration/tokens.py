"""Capability tokens for Django code: issue them, from a rule or anywhere, and revoke them."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterable
from typing import Any

from django.db import DEFAULT_DB_ALIAS

from fanfare import errors
from fanfare.engine import interface
from fanfare.integration import after_commit, payloads, publishing, target, users
from fanfare.protocol import capabilities, names, revocations

TOKEN_SECONDS = 3_600  # longer than the life of an SSE connection, so that one token lasts for a visit

_PATTERN = re.compile(r"\A[-A-Za-z0-9_=@,.;*]+\Z")


class Token(str):
    """A capability token, a JSON Web Token as text. `id` revokes it; `expires` is a Unix time."""

    __slots__ = ("capability",)
    capability: capabilities.Capability

    @property
    def id(self) -> str:
        return self.capability.token_id or ""

    @property
    def expires(self) -> float:
        return self.capability.expires


def capability(
    channels: str | Iterable[str],
    *,
    user: users.User | None = None,
    info: Any = None,
    rights: Iterable[str] = capabilities.DEFAULT_RIGHTS,
    seconds: int = TOKEN_SECONDS,
    app: target.App = None,
) -> Token:
    """A token with which its bearer may use private and presence channels, over WebSocket and SSE.

        token = capability(["private-orders-*", "presence-room-7"], user=request.user, rights=["subscribe", "presence"])

    `channels`: 1 to 100 names, in which `*` stands for any characters; public channels need no token. `user`: a user or
    their id; `disconnect_user()` of that user also revokes the token. `info`: of that user as a member of presence
    channels, JSON. `rights`: of `subscribe`, `publish` (client events), `presence` (join presence channels as
    `user`) and `history` (rewind, resume, pages of history). `seconds`: how long it is valid, at most 30 days;
    subscriptions and SSE connections end with it. `app`: an application or its id, by default the project's default
    application.

    An authorization rule may return it: then it decides what the page may do on the channel. Returns a str, a JSON Web
    Token (HS256) of at most 4,096 bytes; its `id` revokes it, see `revoke_capability`. Any program that has it can use
    it until it expires, so send it over https and keep `seconds` short.

    Raises InvalidName, InvalidUser, UnencodableData, NoApplication, and ValueError for other rights or seconds.
    Source: RFC 7519.
    """
    patterns = (channels,) if isinstance(channels, str) else tuple(channels)
    if not 1 <= len(patterns) <= capabilities.MAX_PATTERNS:
        raise errors.InvalidName(f"A token names 1 to {capabilities.MAX_PATTERNS} channels, not {len(patterns)}.")
    for pattern in patterns:
        check_pattern(pattern)
    chosen = frozenset((rights,) if isinstance(rights, str) else rights)
    if not chosen or not chosen <= set(capabilities.RIGHTS):
        raise ValueError(f"`rights` is {sorted(chosen)}; the rights are {', '.join(capabilities.RIGHTS)}.")
    if capabilities.PRESENCE in chosen and user is None:
        raise ValueError("A token with the right `presence` names its `user`, who becomes the member.")
    if not 1 <= seconds <= capabilities.MAX_LIFE_S:
        raise ValueError(f"`seconds` is {seconds}; a token is valid for 1 second to {capabilities.MAX_LIFE_S}.")
    now = time.time()
    contents = capabilities.Capability(
        patterns,
        now + seconds,
        None if user is None else users.user_id(user),
        now,
        chosen,
        token_id=uuid.uuid4().hex,
        info=_info(info),
    )
    token = Token(capabilities.sign(target.application(app).secret, contents))
    token.capability = contents
    if len(token) > capabilities.MAX_BYTES:
        raise errors.InvalidName(
            f"The token has {len(token)} bytes; {capabilities.MAX_BYTES} are allowed. Name fewer channels, or use `*`."
        )
    return token


def check_pattern(pattern: str) -> None:
    """Raises InvalidName."""
    if _PATTERN.match(str(pattern)) is None:
        raise errors.InvalidName(f"{pattern!r} is not a channel name, in which `*` may stand for any characters.")


def _info(value: Any) -> str:
    try:
        return payloads.json_text(value)
    except TypeError as error:
        raise errors.UnencodableData(f"The info of a token has no JSON form: {error}.") from error


def sse_token(
    channels: str | Iterable[str],
    *,
    user_id: users.User | None = None,
    seconds: int = TOKEN_SECONDS,
    app: target.App = None,
) -> Token:
    """A `capability` to read private channels over SSE.

        token = sse_token(["private-orders-*"], user_id=request.user, seconds=600)

    The page opens `/sse/KEY?channels=private-orders-1&token=TOKEN`. Raises what `capability` raises, and InvalidName
    for a presence channel, which SSE connections do not carry.
    """
    patterns = (channels,) if isinstance(channels, str) else tuple(channels)
    for pattern in patterns:
        if names.is_presence(pattern):
            raise errors.InvalidName(
                f"{pattern!r} is a presence channel. SSE connections carry none, since their readers would not be "
                f"among the members: publish to a private channel as well, such as "
                f"{pattern.replace('presence-', 'private-', 1)!r}, or subscribe over WebSocket."
            )
    return capability(patterns, user=user_id, seconds=seconds, app=app)


# -- revocation --------------------------------------------------------------------------------------------------------


def revoke_capability(
    token: str,
    *,
    expires: float | None = None,
    app: target.App = None,
    on_commit: bool = True,
    using: str = DEFAULT_DB_ALIAS,
) -> None:
    """Revoke a token, in every worker: subscriptions and SSE connections that use it end, and later uses are refused.

    `token`: what `capability` returned, or its id. `expires`: the Unix time at which the token with that id ends; the
    revocation is remembered until then, by default for 30 days. It takes place when the surrounding transaction of the
    database `using` commits, or at once with `on_commit=False`.

    Raises InvalidName for another text than an id, NoApplication, EngineUnavailable, CalledOnEventLoop.
    """
    publishing.refuse_event_loop("revoke_capability", "arevoke_capability")
    after_commit.send(_revocation(token, expires, app), on_commit, using)


async def arevoke_capability(
    token: str,
    *,
    expires: float | None = None,
    app: target.App = None,
    on_commit: bool = True,
    using: str = DEFAULT_DB_ALIAS,
) -> None:
    """`revoke_capability` for coroutines."""
    await after_commit.asend(lambda: _revocation(token, expires, app), on_commit, using)


def _revocation(token: str, expires: float | None, app: target.App) -> list[interface.Publication]:
    token_id = token
    if isinstance(token, Token):
        token_id, expires = token.id, token.expires
    if capabilities.TOKEN_ID.match(token_id) is None or capabilities.is_token(token_id):
        raise errors.InvalidName("This is not the id of a token, the claim `jti`.")
    return revocations.publications(target.application(app).id, token_id, expires=expires, now=time.time())
