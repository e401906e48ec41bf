"""A layer for Django Channels that spans all workers through the engine's log: no Redis, no broker.

    CHANNEL_LAYERS = {"default": {"BACKEND": "fanfare.channel_layer.core.EngineChannelLayer"}}

For a team's own consumers. The product itself does not use it.
"""
