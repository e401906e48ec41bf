"""Simulated processes of one deployment: each has its own office, engine and layers."""

from __future__ import annotations

from typing import Any

from fanfare.channel_layer import core
from fanfare.channel_layer import office as offices


class Process:
    def __init__(self) -> None:
        self.office = offices.Office()

    def layer(self, **config: Any) -> core.EngineChannelLayer:
        return core.EngineChannelLayer(office=self.office, **config)
