"""Python values as JSON text, with the meaning that Django's own encoder gives them.

Dates and times are ISO 8601 with milliseconds; `Decimal`, `UUID` and lazy translations are strings; a dataclass is an
object. A model instance has no JSON form of its own, for what subscribers may see of it is a decision: its class makes
it with the method `__realtime__`, which returns what is encoded in its place. No model field can have that name.

    class Order(models.Model):
        def __realtime__(self):
            return {"id": self.pk, "total": self.total}

Any class may have the method; in a dataclass it comes before the fields.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import orjson
from django.core.serializers.json import DjangoJSONEncoder
from django.db import models

HOOK = "__realtime__"

# orjson would write dates its own way (microseconds, +00:00) and dataclasses without asking for the hook: they go to
# `_default`, with all that it does not know.
_OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_NON_STR_KEYS
_django = DjangoJSONEncoder().default


def json_text(value: Any) -> str:
    """Compact JSON. Raises TypeError with the reason: an unknown type, a loop, an integer over 64 bits, a surrogate."""
    try:
        return orjson.dumps(value, default=_default, option=_OPTIONS).decode()
    except orjson.JSONEncodeError as error:
        raise TypeError(str(error.__cause__ or error)) from error


def _default(value: Any) -> Any:
    hook = getattr(type(value), HOOK, None)
    if hook is not None:
        return hook(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if not field.name.startswith("_")]
        return {name: getattr(value, name) for name in fields}
    if isinstance(value, models.Model):
        kind = type(value).__name__
        raise TypeError(f"{kind} has no method {HOOK} that says what subscribers get of it")
    return _django(value)
