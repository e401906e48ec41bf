"""Matches paths against the project's URLconf, so that Fanfare hides no page of the project."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.urls import Resolver404, URLPattern, URLResolver, get_resolver, resolve

_LITERAL = re.compile(r"[\w.~-]+")


def answers(path: str) -> bool:
    """Whether a pattern matches, including catch-alls, also with the slash that CommonMiddleware appends. `path` is
    decoded, below the root path.
    """
    return route(path) is not None or (
        settings.APPEND_SLASH and not path.endswith("/") and route(f"{path}/") is not None
    )


def has_own(path: str) -> bool:
    """Whether a pattern matches that starts with the path's first segment. Catch-alls, such as those of a CMS or a
    single-page application, do not count.
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


def matches(path: str, *, without: type) -> Iterator[URLPattern]:
    """All patterns that match a path (without its first slash), in the order in which Django tries them; those of a
    class of patterns are left out.
    """
    yield from _matches(get_resolver().url_patterns, path, without)


def _matches(patterns: list[Any], path: str, without: type) -> Iterator[URLPattern]:
    for pattern in patterns:
        if isinstance(pattern.pattern, without):
            continue
        try:
            match = pattern.pattern.match(path)
        except Resolver404:
            continue
        if match and isinstance(pattern, URLPattern):
            yield pattern
        elif match and isinstance(pattern, URLResolver):
            yield from _matches(pattern.url_patterns, match[0], without)
