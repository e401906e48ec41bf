"""The project's exceptions.

ServerError
└── NotStarted          the worker's parts are not there; the message says why
    └── MountFailed     a mounted application did not start
"""

from __future__ import annotations


class ServerError(Exception):
    """Base class. `code` is for machines, the message for people."""

    code = "server_error"


class NotStarted(ServerError):
    """The worker cannot serve now; it tries again by itself."""

    code = "not_started"


class MountFailed(NotStarted):
    """A mounted application's own start went wrong."""

    code = "mount_failed"
