"""Who may join the room: everybody, as the guest that the page's address names.

Nobody signs in here, so two windows of one browser are two guests, and a guest who reloads the page stays who it is.
An app with accounts needs neither names nor addresses: its rule answers `True`, and the member is the signed-in user.
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

# By id, which is what the address has: {"amber-harp": "Amber Harp", …}
GUESTS = {
    f"{colour}-{instrument}".lower(): f"{colour} {instrument}" for colour, instrument in product(COLOURS, INSTRUMENTS)
}


@channel(ROOM)
def may_join(user: Any, request: HttpRequest) -> Member | bool:
    guest = request.POST.get("guest", "")
    return Member(guest, {"name": GUESTS[guest]}) if guest in GUESTS else False
