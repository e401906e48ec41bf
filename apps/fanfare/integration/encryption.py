"""End-to-end encrypted channels: `private-encrypted-…`.

The key of a channel is the SHA-256 of its name and the project's master key. A visitor whom a rule lets in gets it with
the signature, and `publish` encrypts with it: XSalsa20 and Poly1305, NaCl's secretbox. So the log, the history, the
webhooks and whoever carries the frames see a ciphertext. Source: Pusher Channels, "Encrypted channels".
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

import orjson
from django.core.exceptions import ImproperlyConfigured

from fanfare import conf
from fanfare.integration import errors

if TYPE_CHECKING:
    from nacl import secret


def shared_secret(channel: str) -> str:
    """The channel's key in base64, as client libraries want it from the auth endpoint. Raises NoMasterKey."""
    return base64.b64encode(_key(channel)).decode()


def encrypt(channel: str, text: str) -> str:
    """The data of an encrypted event: JSON, an object with `nonce` and `ciphertext` in base64. Raises NoMasterKey."""
    sealed = _box(channel).encrypt(text.encode())
    parts = {"nonce": sealed.nonce, "ciphertext": sealed.ciphertext}
    return orjson.dumps({name: base64.b64encode(part).decode() for name, part in parts.items()}).decode()


def decrypt(channel: str, data: str) -> str:
    """What `encrypt` was given: for the data of `history()`. Raises NoMasterKey, and Undecipherable if it was encrypted
    with another key or for another channel."""
    box = _box(channel)
    from nacl import exceptions

    try:
        parts = orjson.loads(data)
        nonce, ciphertext = (base64.b64decode(parts[name], validate=True) for name in ("nonce", "ciphertext"))
        return box.decrypt(ciphertext, nonce).decode()
    except (exceptions.CryptoError, ValueError, KeyError, TypeError) as error:
        raise errors.Undecipherable(f"This is no data of {channel} that the master key can read.") from error


def _box(channel: str) -> secret.SecretBox:
    key = _key(channel)
    try:
        from nacl import secret
    except ModuleNotFoundError:
        raise ImproperlyConfigured(
            'Publishing to encrypted channels needs PyNaCl: pip install "django-fanfare[encryption]".'
        ) from None
    return secret.SecretBox(key)


def _key(channel: str) -> bytes:
    master = conf.settings.ENCRYPTION_MASTER_KEY
    if not master:
        raise errors.NoMasterKey(
            f"{channel} is encrypted, and there is no key: set FANFARE_ENCRYPTION_MASTER_KEY to what "
            "`openssl rand -base64 32` prints."
        )
    return hashlib.sha256(channel.encode() + master).digest()
