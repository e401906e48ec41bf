"""Visitors of the demo: nobody signs in, each window is somebody of its own.

A guest is a signed token that the page keeps, so two windows of one browser are two people who can talk to each other.
An app with accounts needs none of this: its rule answers `True`, and the member is the signed-in user.
"""

from __future__ import annotations

import secrets
from typing import NamedTuple

from django.core import signing

_SALT = "apps.demo.guests"
# fmt: off
_COLOURS = (
    "Amber", "Ivory", "Scarlet", "Indigo", "Silver", "Copper", "Jade", "Coral", "Violet", "Golden", "Azure", "Russet",
)
_INSTRUMENTS = (
    "Trumpet", "Cornet", "Bugle", "Tuba", "Horn", "Oboe", "Flute", "Fife", "Viola", "Cello", "Lute", "Harp", "Drum",
)
# fmt: on


class Guest(NamedTuple):
    id: str
    name: str

    @property
    def token(self) -> str:
        """Proof for later requests that this server made this guest up."""
        return signing.dumps(list(self), salt=_SALT)


def invent() -> Guest:
    """Somebody new."""
    return Guest(secrets.token_hex(8), f"{secrets.choice(_COLOURS)} {secrets.choice(_INSTRUMENTS)}")


def recognise(token: str) -> Guest | None:
    """The guest with this token; None if it is not one of ours."""
    try:
        guest_id, name = signing.loads(token, salt=_SALT)
    except signing.BadSignature:
        return None
    return Guest(guest_id, name)
