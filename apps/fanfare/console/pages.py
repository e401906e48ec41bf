"""The pages of the console: one line of `PAGES` each.

A page has a template, `fanfare/console/<name>.html`, which extends `fanfare/console/base.html`, and an ES module,
`static/fanfare/console/<name>.js`, which gets the live data from the workers (`live.js`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from django.http import HttpRequest

from fanfare.console.permissions import VIEW


@dataclass(frozen=True, slots=True)
class Page:
    """`name`: of its URL, template and script; the overview has the console's own URL. `group`: of the navigation.

    `permission`: needed for at least one application. `context`: further values of the template.
    """

    name: str
    title: str
    group: str
    permission: str = VIEW
    context: Callable[[HttpRequest], Mapping[str, Any]] | None = None

    @property
    def path(self) -> str:
        return "" if self is PAGES[0] else f"{self.name}/"

    @property
    def url_name(self) -> str:
        return f"fanfare_console_{'changelist' if self is PAGES[0] else self.name}"


PAGES: Final = (
    Page("overview", "Overview", "Now"),
    Page("channels", "Channels", "Now"),
    Page("connections", "Connections", "Now"),
    Page("workers", "Workers", "Now"),
    Page("webhooks", "Webhooks", "Now"),
    Page("tail", "Live tail", "Events"),
    Page("trace", "Trace", "Events"),
    Page("history", "Time travel", "Events"),
    Page("publish", "Event creator", "Events", permission="publish_event"),
    Page("doctor", "Auth doctor", "Refusals"),
)
