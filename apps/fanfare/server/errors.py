"""Exceptions of the server.

ServerError
└── NotStarted          the worker cannot serve now; the message has the reason
    └── MountFailed     a mounted application did not start
"""

from __future__ import annotations


class ServerError(Exception):
    """Base class. `code` is for programs, the message for people."""

    code = "server_error"


class NotStarted(ServerError):
    """The worker cannot serve now, and retries."""

    code = "not_started"


class MountFailed(NotStarted):
    """The start of a mounted application failed."""

    code = "mount_failed"
