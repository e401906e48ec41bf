"""The applications in a worker's memory, for the hot path: plain values, no database.

The registry is a copy of the rows in Django's database. `application.changed` entries of the log and a comparison of
generations every few seconds keep it up to date (see `fanfare.applications.loading`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from fanfare.applications import rules


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one application; docs/reference/limits.md lists the defaults."""

    max_connections: int | None = None  # in the whole deployment; None: unlimited
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
    max_events_per_second: int | None = None  # published over HTTP, in the whole deployment; None: unlimited
    max_watchlist: int = 100  # users that one client watches


# Event types of webhooks. Source: the protocol's "Webhooks".
WEBHOOK_EVENTS = (
    "channel_occupied",
    "channel_vacated",
    "member_added",
    "member_removed",
    "client_event",
    "cache_miss",
    "subscription_count",
)


@dataclass(frozen=True, slots=True)
class Webhook:
    """An endpoint that receives events of an application's channels."""

    id: int  # of the row
    url: str
    event_types: frozenset[str] = frozenset(WEBHOOK_EVENTS)  # the types that it receives
    channel_prefix: str = ""  # empty: all channels
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # may contain a token
    batching: bool = False  # several events per request; otherwise exactly one
    enabled: bool = True  # False: paused; its events are stored, and sent when it is enabled again

    def wants(self, event_type: str, channel: str) -> bool:
        return event_type in self.event_types and channel.startswith(self.channel_prefix)


@dataclass(frozen=True, slots=True)
class Application:
    """A tenant."""

    id: str  # decimal digits: some SDKs turn the id of a URL into a number
    key: str
    secret: str = field(repr=False)  # repr=False: it must not get into a log
    name: str = ""
    enabled: bool = True
    client_events: bool = False
    subscription_counts: bool = False  # whether subscribers get the number of subscribers
    authorization_timeout: int | None = (
        None  # seconds to sign in or subscribe to a private or presence channel; None: off
    )
    cache_seconds: int = 1_800  # lifetime of the event of a cache channel
    previous_secret: str = field(default="", repr=False)  # the secret before the last rotation
    previous_secret_until: float = 0.0  # Unix time; the previous secret is refused from then on
    allowed_origins: tuple[str, ...] = ()  # empty: any
    limits: Limits = field(default_factory=Limits)
    rules: rules.Rules = field(default_factory=rules.Rules)  # the channels that keep a history
    webhooks: tuple[Webhook, ...] = ()  # oldest first, including disabled ones

    def secrets(self, now: float) -> tuple[str, ...]:
        """The secrets that are valid at `now` (Unix time), the current one first."""
        if self.previous_secret and now < self.previous_secret_until:
            return (self.secret, self.previous_secret)
        return (self.secret,)


DISABLED_GRACE_S = 300.0  # the default


class Registry:
    """Applications by id and by key.

    A disabled application is *suspended* for `disabled_grace_s`: its clients get a code after which they try again,
    because it may be enabled again soon. `clock`: monotonic seconds.
    """

    def __init__(
        self, *, disabled_grace_s: float = DISABLED_GRACE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._by_id: dict[str, Application] = {}
        self._by_key: dict[str, Application] = {}
        self._by_webhook: dict[int, tuple[Application, Webhook]] = {}
        self._grace_s = disabled_grace_s
        self._clock = clock
        self._suspended_until: dict[str, float] = {}
        self._watchers: dict[str, dict[Callable[[], None], None]] = {}

    def by_id(self, app_id: str) -> Application | None:
        return self._by_id.get(app_id)

    def by_key(self, key: str) -> Application | None:
        return self._by_key.get(key)

    def webhook(self, webhook_id: int) -> tuple[Application, Webhook] | None:
        return self._by_webhook.get(webhook_id)

    def all(self) -> list[Application]:
        return list(self._by_id.values())

    def put(self, application: Application) -> None:
        """Add or replace. The old key of a replaced application becomes unknown."""
        old = self._by_id.get(application.id)
        self._take(application.id)
        self._by_id[application.id] = application
        self._by_key[application.key] = application
        self._by_webhook |= {webhook.id: (application, webhook) for webhook in application.webhooks}
        if application.enabled:
            self._suspended_until.pop(application.id, None)
        elif old is not None and old.enabled and self._grace_s > 0:
            self._suspended_until[application.id] = self._clock() + self._grace_s
        self._changed(application.id)

    def remove(self, app_id: str) -> None:
        self._take(app_id)
        self._suspended_until.pop(app_id, None)
        self._changed(app_id)

    def _take(self, app_id: str) -> None:
        application = self._by_id.pop(app_id, None)
        # While two applications exchange their keys, this key may already belong to the other one.
        if application is not None and self._by_key.get(application.key) is application:
            del self._by_key[application.key]
        for webhook in application.webhooks if application is not None else ():
            found = self._by_webhook.get(webhook.id)
            if found is not None and found[0] is application:
                del self._by_webhook[webhook.id]

    # -- suspended applications ----------------------------------------------------------------------------------------

    def suspended_s(self, app_id: str) -> float:
        """Remaining seconds of the suspension; 0 if the application is not suspended."""
        return max(0.0, self._suspended_until.get(app_id, 0.0) - self._clock()) if self._suspended_until else 0.0

    @contextlib.contextmanager
    def watching(self, app_id: str, changed: Callable[[], None]) -> Iterator[None]:
        """Call `changed` at each change of this application. The callback must not raise."""
        watchers = self._watchers.setdefault(app_id, {})
        watchers[changed] = None
        try:
            yield
        finally:
            del watchers[changed]
            if not watchers and self._watchers.get(app_id) is watchers:
                del self._watchers[app_id]

    def _changed(self, app_id: str) -> None:
        for changed in list(self._watchers.get(app_id, ())):
            changed()
