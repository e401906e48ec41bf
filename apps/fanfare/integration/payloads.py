"""The text of an event: Python values as JSON, and end-to-end encryption.

JSON follows Django's encoder: dates and times are ISO 8601 with milliseconds; `Decimal`, `UUID` and lazy translations
are strings. Dataclasses, named tuples and Pydantic models are objects. A model instance has no JSON form of its own,
since a row may hold what subscribers must not see: its class decides with a method `__realtime__`, whose result is
encoded in place of the object.

    class Order(models.Model):
        def __realtime__(self):
            return {"id": self.pk, "total": self.total}

Any class may have the method; it takes precedence over the fields of a dataclass. NaN and the infinities are refused:
JSON has no number for them.

On channels `private-encrypted-…` the text is encrypted with XSalsa20 and Poly1305 (NaCl's secretbox). The key of a
channel is the SHA-256 of its name and the master key; visitors whom a rule admits get it together with the signature.
The log, the history, webhooks and proxies hold only the ciphertext. Source: Pusher Channels, "Encrypted channels".
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import hashlib
import inspect
import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import orjson
from django.core.exceptions import ImproperlyConfigured
from django.core.serializers.json import DjangoJSONEncoder

from fanfare import conf, errors

if TYPE_CHECKING:
    from nacl import secret

HOOK = "__realtime__"

# orjson would write dates in its own format (microseconds, +00:00) and dataclasses without looking for the hook. These
# options pass both to `_default`.
_OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_NON_STR_KEYS
_DEEPEST = 250  # levels; orjson refuses 255
_WIDEST = range(-(2**63), 2**64)  # the integers that orjson writes

_django = DjangoJSONEncoder().default


def json_text(value: Any) -> str:
    """The value as compact JSON. Raises TypeError, whose message names the place in `value` and what to write there."""
    try:
        text = orjson.dumps(value, default=_default, option=_OPTIONS)
    except orjson.JSONEncodeError as error:
        raise TypeError(_fault(value, "data") or str(error.__cause__ or error)) from error
    # orjson writes NaN as null without complaint, so only a text with a null needs the slow search.
    if b"null" in text and (fault := _fault(value, "data")):
        raise TypeError(fault)
    return text.decode()


def _default(value: Any) -> Any:
    hook = getattr(type(value), HOOK, None)
    if hook is not None:
        return hook(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if not field.name.startswith("_")]
        return {name: getattr(value, name) for name in fields}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return value._asdict()
    pydantic = sys.modules.get("pydantic")  # no model of it exists before it is imported
    if pydantic is not None and isinstance(value, pydantic.BaseModel):
        return value.model_dump(mode="json")
    try:
        return _django(value)
    except TypeError:
        raise TypeError(_remedy(value)) from None


def _remedy(value: Any) -> str:  # noqa: PLR0911  (one return for each kind of object)
    """What an object without a JSON form is, and what to publish in its place."""
    from django.db import models

    kind = type(value).__name__
    if isinstance(value, models.Model):
        return (
            f'is an instance of the model {kind}: publish a dict, such as {{"id": {kind.lower()}.pk}}, or give {kind} '
            f"a method {HOOK} that returns what subscribers may see"
        )
    if isinstance(value, models.QuerySet | models.Manager):
        model = value.model
        shown = "list(queryset)" if hasattr(model, HOOK) else 'list(queryset.values("id", …))'
        return f"is a {kind} of {model.__name__}: publish a list, such as {shown}"
    if isinstance(value, set | frozenset):
        return f"is a {kind}, which has no order: publish sorted(…) of it"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"is {kind}: publish text, such as value.decode() or base64"
    if inspect.isawaitable(value):
        return f"is a {kind} that was not awaited: publish its result"
    if isinstance(value, Iterator):
        return f"is a {kind}: publish list(…) of it"
    return f"is an object of type {kind}: publish a dict of its values, or give {kind} a method {HOOK} that returns one"


def _fault(value: Any, place: str, depth: int = 0) -> str | None:  # noqa: PLR0911  (one return for each kind of fault)
    """The first part of `value` that has no JSON form, as "PLACE is …, which …"; None where there is none."""
    if depth > _DEEPEST:
        return f"data has more than {_DEEPEST} levels, or contains itself"
    if value is None or isinstance(value, bool | orjson.Fragment):
        return None
    if isinstance(value, enum.Enum):
        return _fault(value.value, place, depth + 1)
    if isinstance(value, str):
        return None if value.isascii() or _is_text(value) else f"{place} has a lone surrogate, which is no character"
    if isinstance(value, int):
        return None if value in _WIDEST else f"{place} is an integer of more than 64 bits: publish str(…) of it"
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{place} is {value}, which JSON has no number for: publish None"
    if isinstance(value, dict):
        for key, item in value.items():
            if fault := _fault(key, f"the key {key!r} of {place}", depth + 1) or _fault(
                item, f"{place}[{key!r}]", depth + 1
            ):
                return fault
        return None
    if isinstance(value, list) or type(value) is tuple:
        faults = (_fault(item, f"{place}[{index}]", depth + 1) for index, item in enumerate(value))
        return next(filter(None, faults), None)
    try:
        return _fault(_default(value), place, depth + 1)
    except TypeError as error:
        return f"{place} {error}"


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


# -- encryption --------------------------------------------------------------------------------------------------------


def shared_secret(channel: str) -> str:
    """The channel's key in base64, as the auth endpoint hands it to client libraries. Raises NoMasterKey."""
    return base64.b64encode(_key(channel)).decode()


def encrypt(channel: str, text: str) -> str:
    """The data of an encrypted event: a JSON object with `nonce` and `ciphertext` in base64. Raises NoMasterKey."""
    sealed = _box(channel).encrypt(text.encode())
    parts = {"nonce": sealed.nonce, "ciphertext": sealed.ciphertext}
    return orjson.dumps({name: base64.b64encode(part).decode() for name, part in parts.items()}).decode()


def decrypt(channel: str, data: str) -> str:
    """The plain text of an event on an encrypted channel.

        [decrypt(channel, event.data) for event in history.events(channel)]

    `channel`: its name, which is part of the key. `data`: the event's data as the history or a webhook has it, a JSON
    object with `nonce` and `ciphertext`. Returns the text that was published: JSON, unless a str was published.

    Raises NoMasterKey without FANFARE_ENCRYPTION_MASTER_KEY, and DecryptionFailed for data of another channel, of
    another master key, or that was changed. Source: Pusher Channels, "Encrypted channels".
    """
    box = _box(channel)
    from nacl import exceptions

    try:
        parts = orjson.loads(data)
        nonce, ciphertext = (base64.b64decode(parts[name], validate=True) for name in ("nonce", "ciphertext"))
        return box.decrypt(ciphertext, nonce).decode()
    except (exceptions.CryptoError, ValueError, KeyError, TypeError) as error:
        raise errors.DecryptionFailed(
            f"This is not data of {channel} encrypted with the current FANFARE_ENCRYPTION_MASTER_KEY."
        ) from error


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
            f"The channel {channel} is encrypted, and FANFARE_ENCRYPTION_MASTER_KEY is not set. Set it to the output "
            "of `openssl rand -base64 32`."
        )
    return hashlib.sha256(channel.encode() + master).digest()
