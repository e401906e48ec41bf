"""The vendor's own Python library, which says what a signature must be."""

from __future__ import annotations

import json
from typing import Any

import pusher


class Compact(json.JSONEncoder):
    """The library writes blanks; with this it writes the text that we write, so that the signatures can be compared."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "separators": (",", ":"), "ensure_ascii": False})


def pusher_of(app_id: str, key: str, secret: str) -> pusher.Pusher:
    return pusher.Pusher(app_id, key, secret, json_encoder=Compact)
