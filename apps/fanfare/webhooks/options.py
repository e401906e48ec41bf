"""The settings of this package as values, so that tests can choose them."""

from __future__ import annotations

from dataclasses import dataclass

from fanfare import conf


@dataclass(frozen=True, slots=True)
class Options:
    """Durations in seconds. The defaults are those of the settings of the same names."""

    retry_seconds: float = 3_600.0  # the time for which an event is retried
    keep_seconds: float = 259_200.0  # the lifetime of finished deliveries
    keep_rows: int = 100_000  # the maximum number of finished deliveries
    max_pending: int = 100_000  # the maximum number of pending deliveries per endpoint
    timeout_seconds: float = 10.0  # per request: name, connection, redirects and response
    allow_private: bool = False  # whether endpoints may have private addresses
    debounce_seconds: float = 3.0  # of removals; given by the protocol


def from_settings() -> Options:
    return Options(
        retry_seconds=conf.settings.WEBHOOKS_RETRY_SECONDS,
        keep_seconds=conf.settings.WEBHOOKS_KEEP_SECONDS,
        keep_rows=conf.settings.WEBHOOKS_KEEP_ROWS,
        max_pending=conf.settings.WEBHOOKS_MAX_PENDING,
        timeout_seconds=conf.settings.WEBHOOKS_TIMEOUT,
        allow_private=conf.settings.WEBHOOKS_ALLOW_PRIVATE,
    )
