"""Tokens for event streams: which channels that are not public a visitor may read with EventSource.

    token = sse_token(["private-orders-*"], user_id=str(request.user.pk))

A page opens `/sse/KEY?channels=private-orders-1&token=TOKEN`. Whoever has the token may read until it expires, so give
it to the visitor that it is for, over https, and let it be short. A stream that is open then ends, and its client is
told not to come back: the page asks for a new token and opens a new one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

from fanfare.applications import models
from fanfare.integration import application, errors
from fanfare.sse import tokens

DEFAULT_SECONDS = 3_600  # an hour with a page open; longer than a stream's life, so that one visit takes one token

_PATTERN = re.compile(r"\A[-A-Za-z0-9_=@,.;*]+\Z")


def sse_token(
    channels: Iterable[str],
    *,
    user_id: str | None = None,
    seconds: int = DEFAULT_SECONDS,
    app: models.Application | str | int | None = None,
) -> str:
    """A token for these channels, names in which `*` stands for any characters, good for so many seconds.

    `user_id`: whose it is, for whoever reads it. `app`: an application or its id; by default the project's default
    application. Raises InvalidName, ValueError and NoApplication.
    """
    patterns = (channels,) if isinstance(channels, str) else tuple(map(str, channels))
    if not patterns or len(patterns) > tokens.MAX_PATTERNS:
        raise errors.InvalidName(f"A token has 1 to {tokens.MAX_PATTERNS} channels; here are {len(patterns)}.")
    for pattern in patterns:
        if _PATTERN.match(pattern) is None:
            raise errors.InvalidName(f"{pattern!r} is not a channel name, with * for any characters.")
    if seconds < 1:
        raise ValueError(f"A token is good for at least a second; here are {seconds}.")
    token = tokens.sign(application.resolve(app).secret, tokens.Grant(patterns, time.time() + seconds, user_id))
    if len(token) > tokens.MAX_BYTES:
        raise errors.InvalidName(f"The token would have {len(token)} bytes; {tokens.MAX_BYTES} are allowed.")
    return token
