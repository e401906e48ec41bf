"""The numbers of this package that an operator can change, from the settings to where they are used."""

from __future__ import annotations

from dataclasses import dataclass

from fanfare import conf


@dataclass(frozen=True, slots=True)
class Options:
    """Durations in seconds. Their defaults are those of the settings of the same names."""

    retry_seconds: float = 3_600.0  # how long an event is tried
    keep_seconds: float = 259_200.0  # how long an event that was delivered, or given up, stays in the log of deliveries
    keep_rows: int = 100_000  # how many of them stay
    timeout_seconds: float = 10.0  # of one request: name, connection, redirects and answer
    allow_private: bool = False  # whether a receiver may be inside the network
    debounce_seconds: float = 3.0  # the protocol's; not a setting


def from_settings() -> Options:
    return Options(
        retry_seconds=conf.settings.WEBHOOKS_RETRY_SECONDS,
        keep_seconds=conf.settings.WEBHOOKS_KEEP_SECONDS,
        keep_rows=conf.settings.WEBHOOKS_KEEP_ROWS,
        timeout_seconds=conf.settings.WEBHOOKS_TIMEOUT,
        allow_private=conf.settings.WEBHOOKS_ALLOW_PRIVATE,
    )
