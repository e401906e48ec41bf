"""Simulated processes of one deployment: each has its own transport, engine and layers."""

from __future__ import annotations

from typing import Any

from fanfare.channel_layer import core
from fanfare.channel_layer import transport as transports


class Process:
    def __init__(self) -> None:
        self.transport = transports.Transport()

    def layer(self, **config: Any) -> core.EngineChannelLayer:
        return core.EngineChannelLayer(transport=self.transport, **config)
