"""A hook of MkDocs: links to files outside of docs/ become their paths, because the site does not have them."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+((?:deploy|apps|tests|myproject|[A-Z]+\.md|LICENSE)\b[^)]*)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    return _OUTSIDE.sub(r"\1 (`\2`)", markdown)
