"""A text column that is encrypted at rest, with the keys of FANFARE_SECRET_ENCRYPTION_KEYS.

The first key encrypts, all of them decrypt, so a key is replaced in three steps: add the new one in front, run
`manage.py encryptsecrets`, remove the old one. Without keys values are stored as they are. Plain values are read with
and without keys, so a database that exists needs no step before the first key.

XSalsa20-Poly1305 (NaCl's secretbox) with a random nonce: the same secret has another text in each row.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final

from django.core.exceptions import ImproperlyConfigured
from django.db import models

from fanfare import conf

MARK: Final = "enc1:"  # before base64 of nonce and box; a plain secret may not begin with it
WIDTH: Final = 320  # characters of the column: 128 of a secret, encrypted, in base64


if TYPE_CHECKING:
    Base = models.CharField[str, str]
else:
    Base = models.CharField


class SecretField(Base):
    """`max_length` is the column's: the length of a secret is for its validators."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"max_length": WIDTH, **kwargs})

    def get_prep_value(self, value: Any) -> Any:
        return encrypt(super().get_prep_value(value))

    def from_db_value(self, value: str | None, *_: Any) -> str | None:
        return decrypt(value)


def encrypt(value: str | None) -> str | None:
    keys = conf.settings.SECRET_ENCRYPTION_KEYS
    if not value or not keys:
        return value
    box = _secret().SecretBox(keys[0]).encrypt(value.encode())
    return MARK + base64.b64encode(bytes(box)).decode()


def decrypt(value: str | None) -> str | None:
    """Raises ImproperlyConfigured if no key of the settings decrypts the value."""
    if not value or not value.startswith(MARK):
        return value
    from nacl import exceptions

    box = base64.b64decode(value.removeprefix(MARK))
    for key in conf.settings.SECRET_ENCRYPTION_KEYS:
        try:
            return bytes(_secret().SecretBox(key).decrypt(box)).decode()
        except exceptions.CryptoError:
            continue
    raise ImproperlyConfigured(
        "A secret in the database is encrypted with a key that FANFARE_SECRET_ENCRYPTION_KEYS does not have."
    )


def is_current(value: str) -> bool:
    """Whether a stored text is empty or encrypted with the first key."""
    if not value.startswith(MARK):
        return not value
    from nacl import exceptions

    try:
        _secret().SecretBox(conf.settings.SECRET_ENCRYPTION_KEYS[0]).decrypt(base64.b64decode(value.removeprefix(MARK)))
    except exceptions.CryptoError:
        return False
    return True


def _secret() -> Any:
    try:
        from nacl import secret
    except ImportError:
        raise ImproperlyConfigured(
            "FANFARE_SECRET_ENCRYPTION_KEYS needs PyNaCl: pip install 'django-fanfare[encryption]'."
        ) from None
    return secret
