"""Who may join the demo's room, and as whom."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest

from apps.demo import guests
from apps.realtime import Member, channel

ROOM = "presence-demo"


@channel(ROOM)
def may_join(user: Any, request: HttpRequest) -> Member | bool:
    """Every guest; the page sends its token along."""
    guest = guests.recognise(request.POST.get("guest", ""))
    return Member(guest.id, {"name": guest.name}) if guest else False
