"""The settings of this package as values, which tests can choose."""

from __future__ import annotations

from dataclasses import dataclass

from fanfare import conf


@dataclass(frozen=True, slots=True)
class Options:
    """Durations in seconds. The defaults are those of the settings of the same names."""

    retry_seconds: float = 3_600.0  # how long an event is tried
    keep_seconds: float = 259_200.0  # how long a finished delivery stays
    keep_rows: int = 100_000  # how many finished deliveries stay
    max_pending: int = 100_000  # how many deliveries may be pending for one endpoint
    timeout_seconds: float = 10.0  # of one request: name, connection, redirects and response
    allow_private: bool = False  # whether a receiver's address may be inside the network
    debounce_seconds: float = 3.0  # of removals; the protocol's, not a setting


def from_settings() -> Options:
    return Options(
        retry_seconds=conf.settings.WEBHOOKS_RETRY_SECONDS,
        keep_seconds=conf.settings.WEBHOOKS_KEEP_SECONDS,
        keep_rows=conf.settings.WEBHOOKS_KEEP_ROWS,
        max_pending=conf.settings.WEBHOOKS_MAX_PENDING,
        timeout_seconds=conf.settings.WEBHOOKS_TIMEOUT,
        allow_private=conf.settings.WEBHOOKS_ALLOW_PRIVATE,
    )
