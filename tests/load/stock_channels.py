"""A Channels project as in its tutorial: a consumer in a group, `group_send`, the in-memory layer.

`/subscribe` joins the group. `/publish` sends each text frame to the group, without parsing or encoding it: the least
work possible.
"""

from __future__ import annotations

import django
from django.conf import settings

if not settings.configured:
    settings.configure(
        INSTALLED_APPS=["channels"],
        CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
        SECRET_KEY="only for a benchmark on loopback",
        USE_TZ=True,
    )
    django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.urls import path

GROUP = "load"


class Subscriber(AsyncWebsocketConsumer):
    async def connect(self) -> None:
        await self.channel_layer.group_add(GROUP, self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:
        await self.channel_layer.group_discard(GROUP, self.channel_name)

    async def tick(self, message: dict[str, str]) -> None:
        await self.send(text_data=message["text"])


class Publisher(AsyncWebsocketConsumer):
    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.channel_layer.group_send(GROUP, {"type": "tick", "text": text_data})


# The stubs of Channels reject Django's `path`, which the documentation of Channels uses here.
routes = [path("subscribe", Subscriber.as_asgi()), path("publish", Publisher.as_asgi())]  # type: ignore[arg-type]
application = ProtocolTypeRouter({"websocket": URLRouter(routes)})  # type: ignore[arg-type]
