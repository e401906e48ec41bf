"""Hooks of MkDocs.

Links to files outside of docs/ become their paths, because the site does not have them. The sections have the order in
which a newcomer reads them.
"""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+((?:deploy|apps|tests|myproject|[A-Z]+\.md|LICENSE)\b[^)]*)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    return _OUTSIDE.sub(r"\1 (`\2`)", markdown)


_SECTIONS = ("Documentation", "Tutorial", "How to", "Explanation", "Reference", "Examples")


def on_nav(nav: Any, **_: Any) -> None:
    nav.items.sort(key=lambda item: _SECTIONS.index(item.title) if item.title in _SECTIONS else 0)
