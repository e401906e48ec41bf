"""System checks of this project's own settings: `manage.py check --deploy` runs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core import checks

LOOPBACK = frozenset({"localhost", ".localhost", "127.0.0.1", "[::1]"})


@checks.register(checks.Tags.security, deploy=True)
def encryption(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    if settings.FANFARE_TLS:
        return []
    return [
        checks.Warning(
            "FANFARE_TLS is off: cookies travel without encryption, and browsers get no HSTS header.",
            hint="Put TLS in front, name the proxy in FANFARE_TRUSTED_PROXIES and set FANFARE_TLS=1.",
            id="fanfare.W002",
        )
    ]


@checks.register(checks.Tags.security, deploy=True)
def hosts(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    if set(settings.ALLOWED_HOSTS) - LOOPBACK:
        return []
    return [
        checks.Warning(
            "FANFARE_ALLOWED_HOSTS has loopback names only: a request for any other host gets a 400.",
            hint="Set FANFARE_ALLOWED_HOSTS to the host names of the site, with commas between them.",
            id="fanfare.W003",
        )
    ]


@checks.register(checks.Tags.security, deploy=True)
def demo(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[checks.CheckMessage]:
    if not settings.FANFARE_DEMO:
        return []
    return [
        checks.Warning(
            "The demo is on: every visitor of /demo/ may write in its room.",
            hint="Set FANFARE_DEMO=0 once the deployment works.",
            id="fanfare.W004",
        )
    ]
