"""Processes of one deployment in one process: each an office with an engine of its own, and a layer on it."""

from __future__ import annotations

from typing import Any

from fanfare.channel_layer import core
from fanfare.channel_layer import office as offices


class Process:
    def __init__(self) -> None:
        self.office = offices.Office()

    def layer(self, **config: Any) -> core.EngineChannelLayer:
        return core.EngineChannelLayer(office=self.office, **config)
