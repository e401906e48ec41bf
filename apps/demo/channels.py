"""The rule of the demo room: every visitor may join, as the guest named in the page's URL.

The demo has no accounts, so two windows of one browser are two guests, and a reload keeps the guest. An app with
accounts needs no guest names: its rule returns `True`, and the member is the signed-in user.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from django.http import HttpRequest

from fanfare import Member, channel

ROOM = "presence-demo"

# fmt: off
COLOURS = (
    "Amber", "Azure", "Copper", "Coral", "Golden", "Indigo", "Ivory", "Jade", "Russet", "Scarlet", "Silver", "Violet",
)
INSTRUMENTS = (
    "Bugle", "Cello", "Cornet", "Drum", "Fife", "Flute", "Harp", "Horn", "Lute", "Oboe", "Trumpet", "Tuba", "Viola",
)
# fmt: on

# By id, as in the URL: {"amber-harp": "Amber Harp", …}
GUESTS = {
    f"{colour}-{instrument}".lower(): f"{colour} {instrument}" for colour, instrument in product(COLOURS, INSTRUMENTS)
}


@channel(ROOM)
def may_join(user: Any, request: HttpRequest) -> Member | bool:
    guest = request.POST.get("guest", "")
    return Member(guest, {"name": GUESTS[guest]}) if guest in GUESTS else False
