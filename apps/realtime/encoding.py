"""Python values as JSON text, with the meaning that Django's own encoder gives them.

Dates and times are ISO 8601 with milliseconds; `Decimal`, `UUID` and lazy translations are strings; a dataclass is an
object.
"""

from __future__ import annotations

from typing import Any

import orjson
from django.core.serializers.json import DjangoJSONEncoder

# orjson would write dates its own way (microseconds, +00:00): they go to Django's encoder, with all it does not know.
_OPTIONS = orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_NON_STR_KEYS
_default = DjangoJSONEncoder().default


def json_text(value: Any) -> str:
    """Compact JSON. Raises TypeError with the reason: an unknown type, a loop, an integer over 64 bits, a surrogate."""
    try:
        return orjson.dumps(value, default=_default, option=_OPTIONS).decode()
    except orjson.JSONEncodeError as error:
        raise TypeError(str(error.__cause__ or error)) from error
