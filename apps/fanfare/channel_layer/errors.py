"""The layer's exceptions.

LayerError
├── MessageTooLarge     a message has more bytes than one may have
├── WrongLoop           a process receives on one event loop, and this is another
└── ForeignChannel      only the process that made a process-local channel receives from it

What the engine raises (EngineUnavailable) and what Channels prescribes (ChannelFull, TypeError for a name) is raised as
it is.
"""

from __future__ import annotations


class LayerError(Exception):
    """Base class. `code` is for machines, the message for people."""

    code = "layer_error"


class MessageTooLarge(LayerError, ValueError):
    """Nothing was sent. `limit` and `actual` are bytes."""

    code = "message_too_large"

    def __init__(self, limit: int, actual: int) -> None:
        super().__init__(f"The message has {actual} bytes; {limit} are allowed")
        self.limit = limit
        self.actual = actual


class WrongLoop(LayerError, RuntimeError):
    """Receive on the event loop of the server, or where there is none, on the first one that received."""

    code = "wrong_loop"


class ForeignChannel(LayerError, ValueError):
    """The name was made by another process, or by another layer of this one."""

    code = "foreign_channel"
