"""The applications as the hot path reads them: plain values in memory, no database.

The row in Django's database is the truth. This is its copy in one worker, kept right by `application.changed` entries
of the log and by a comparison of generations every few seconds (see `apps.applications.loading`).
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one application. The defaults are those of docs/reference/limits.md."""

    max_connections: int | None = None  # in the whole deployment; None: no bound
    max_event_bytes: int = 102_400  # of an event's data
    max_channels_per_event: int = 100
    max_batch_events: int = 10
    max_channel_name: int = 200  # characters
    max_event_name: int = 200  # characters
    max_presence_members: int = 100  # distinct users of a channel
    max_member_bytes: int = 2_048  # of channel_data
    max_user_id: int = 128  # characters
    client_events_per_second: int = 10  # of one connection
    client_events_burst: int = 20


@dataclass(frozen=True, slots=True)
class Application:
    """A tenant, as a worker knows it."""

    id: str  # decimal digits: some SDKs turn the id of a URL into a number
    key: str
    secret: str = field(repr=False)  # never in a log, not by accident either
    name: str = ""
    enabled: bool = True
    client_events: bool = False
    allowed_origins: tuple[str, ...] = ()  # empty: any
    limits: Limits = field(default_factory=Limits)


class Registry:
    """Applications by id and by key."""

    def __init__(self) -> None:
        self._by_id: dict[str, Application] = {}
        self._by_key: dict[str, Application] = {}

    def by_id(self, app_id: str) -> Application | None:
        return self._by_id.get(app_id)

    def by_key(self, key: str) -> Application | None:
        return self._by_key.get(key)

    def all(self) -> list[Application]:
        return list(self._by_id.values())

    def put(self, application: Application) -> None:
        """Add or replace; a changed key takes the old one away."""
        self.remove(application.id)
        self._by_id[application.id] = application
        self._by_key[application.key] = application

    def remove(self, app_id: str) -> None:
        application = self._by_id.pop(app_id, None)
        # While two applications change places, the key may be the other one's already.
        if application is not None and self._by_key.get(application.key) is application:
            del self._by_key[application.key]
