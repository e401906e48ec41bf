"""HMAC-SHA256 signatures, made by an application's server and verified here.

An auth string is `KEY:SIGNATURE`, and the signature is the lower-case hex HMAC-SHA256 of a text, with the application's
secret:

    a private channel       SOCKET_ID:CHANNEL
    a presence channel      SOCKET_ID:CHANNEL:CHANNEL_DATA     (the exact text of channel_data)
    a sign-in               SOCKET_ID::user::USER_DATA

A private channel may have channel_data as well; some SDKs sign it and some do not, so both signatures are valid.
Source: Pusher Channels, "Generating authentication signatures".
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from collections.abc import Sequence
from typing import Any, Final

from fanfare.protocol import names, refusals

_BLOCK_BYTES: Final = 64  # of SHA-256
_INNER: Final = bytes([byte ^ 0x36 for byte in range(256)])
_OUTER: Final = bytes([byte ^ 0x5C for byte in range(256)])
_SHOWN_SIGNED_CHARACTERS = 500  # of the signed text in an error message, which contains the member's data


def sign(secret: str, text: str) -> str:
    """The signature of `text`, 64 lower-case hex digits."""
    inner, outer = _keyed(secret)
    inner, outer = inner.copy(), outer.copy()
    inner.update(_bytes(text))
    outer.update(inner.digest())
    signature: str = outer.hexdigest()
    return signature


@functools.lru_cache(1_024)
def _keyed(secret: str) -> tuple[Any, Any]:
    """The inner and the outer hash of HMAC (RFC 2104) after the key. Copies of them cost half of `hmac.digest`."""
    key = _bytes(secret)
    if len(key) > _BLOCK_BYTES:
        key = hashlib.sha256(key).digest()
    key = key.ljust(_BLOCK_BYTES, b"\0")
    return hashlib.sha256(key.translate(_INNER)), hashlib.sha256(key.translate(_OUTER))


def matches(secret: str, text: str, signature: str) -> bool:
    """Whether `signature` is that of `text`; in constant time."""
    return hmac.compare_digest(_bytes(sign(secret, text)), _bytes(signature))


def subscription_text(socket_id: str, channel: str, channel_data: str | None = None) -> str:
    """The signed text for a subscription."""
    return f"{socket_id}:{channel}" if channel_data is None else f"{socket_id}:{channel}:{channel_data}"


def user_text(socket_id: str, user_data: str) -> str:
    """The signed text for a sign-in."""
    return f"{socket_id}::user::{user_data}"


def subscription_auth(key: str, secret: str, socket_id: str, channel: str, channel_data: str | None = None) -> str:
    """The auth string for a subscription."""
    return f"{key}:{sign(secret, subscription_text(socket_id, channel, channel_data))}"


def user_auth(key: str, secret: str, socket_id: str, user_data: str) -> str:
    """The auth string for a sign-in."""
    return f"{key}:{sign(secret, user_text(socket_id, user_data))}"


def check_subscription(
    auth: str, key: str, secrets: Sequence[str], *, socket_id: str, channel: str, channel_data: str | None
) -> None:
    """Raise Unauthorized unless `auth` allows this socket to subscribe to this channel. `secrets`: all valid ones."""
    accepted = [subscription_text(socket_id, channel, channel_data)]
    if channel_data is not None and not names.is_presence(channel):
        accepted.append(subscription_text(socket_id, channel))
    try:
        _check("subscription", auth, key, secrets, accepted)
    except refusals.WrongSignature as error:
        raise refusals.Unauthorized(error.message, reason=error.reason) from None


def check_user(auth: str, key: str, secrets: Sequence[str], *, socket_id: str, user_data: str) -> None:
    """Raise SignInRefused unless `auth` allows this socket to sign in with this data."""
    try:
        _check("sign-in", auth, key, secrets, [user_text(socket_id, user_data)])
    except refusals.WrongSignature as error:
        raise refusals.SignInRefused(error.message, reason=error.reason) from None


def _check(what: str, auth: str, key: str, secrets: Sequence[str], accepted: Sequence[str]) -> None:
    """`accepted`: the valid signed texts; an error shows the first. Raises WrongSignature."""
    if not auth:
        raise refusals.WrongSignature("An auth string of the form KEY:SIGNATURE is needed", reason="no_auth")
    given_key, colon, signature = auth.partition(":")
    if not colon or given_key != key:
        raise refusals.WrongSignature(
            f"Invalid key in {what} auth data: '{refusals.quoted(given_key)}'", reason="wrong_key"
        )
    if not any(matches(secret, text, signature) for secret in secrets for text in accepted):
        signed = refusals.quoted(accepted[0], _SHOWN_SIGNED_CHARACTERS)
        raise refusals.WrongSignature(
            f"Invalid signature: Expected HMAC SHA256 hex digest of {signed}, but got {refusals.quoted(signature)}",
            reason="wrong_signature",
        )


def _bytes(text: str) -> bytes:
    # A lone surrogate cannot be part of a signed text; encoding it must not raise.
    return text.encode(errors="surrogatepass")
