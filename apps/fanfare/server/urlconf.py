"""What the project's URLconf answers, so that Fanfare takes no page away from the project."""

from __future__ import annotations

import re

from django.urls import Resolver404, resolve

_LITERAL = re.compile(r"[\w.~-]+")


def answers(path: str) -> bool:
    """Whether a pattern of the URLconf matches, a catch-all included. `path` is decoded, below the root path."""
    return route(path) is not None


def has_own(path: str) -> bool:
    """Whether a pattern matches that was written for this place: it begins with the path's own first segment.

    A catch-all, such as that of a CMS or of a single-page application, was not.
    """
    found = route(path)
    return found is not None and is_specific(found, path)


def is_specific(route: str, path: str) -> bool:
    """`route`: as `ResolverMatch.route` gives it, a `path()` route or a regular expression."""
    found = _LITERAL.match(route.replace("\\", "").lstrip("^/"))
    return found is not None and found[0] == path.strip("/").partition("/")[0]


def route(path: str) -> str | None:
    """The route of the pattern that matches, None without one."""
    try:
        return resolve(path).route
    except Resolver404:
        return None
    except Exception:  # noqa: BLE001  the URLconf cannot be imported: Django shows why
        return path
