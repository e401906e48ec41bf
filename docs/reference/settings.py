"""Write what `fanfare.conf` says into docs/reference/settings.md and .env.example: `python docs/reference/settings.py`.

Only the text below the two markers is replaced; a test compares it with what this module would write.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from fanfare import conf

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/reference/settings.md"
EXAMPLE = ROOT / ".env.example"

MARKS = {
    PAGE: "<!-- The rest is written by docs/reference/settings.py from apps/fanfare/conf.py. -->",
    EXAMPLE: "# The rest is written by docs/reference/settings.py from apps/fanfare/conf.py.",
}


def generated(path: Path) -> str:
    """The whole file as it should be."""
    mark = MARKS[path]
    kept = path.read_text(encoding="utf-8").partition(mark)[0]
    return kept + mark + "\n" + (_tables() if path == PAGE else _examples())


def _tables() -> str:
    lines = []
    for heading, group in conf.GROUPS.items():
        lines += ["", f"## {heading}", "", "| Variable | Default | Values | Meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{entry.variable}` | {_default(entry)} | {entry.type.allowed()} | {_meaning(entry)} |"
            for entry in group
        ]
    return "\n".join(lines) + "\n"


def _default(setting: conf.Setting[Any]) -> str:
    if setting.unset:
        return setting.unset
    if isinstance(setting.default, bool):
        return "on" if setting.default else "off"
    text = setting.type.to_text(setting.default)
    return f"`{text}`" if text else "none"


def _meaning(setting: conf.Setting[Any]) -> str:
    if not setting.page:
        return setting.help
    title = (ROOT / "docs" / setting.page).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    return f"{setting.help} See [{title}](../{setting.page})."


def _examples() -> str:
    lines = []
    for heading, group in conf.GROUPS.items():
        lines += ["", f"# -- {heading} {'-' * (113 - len(heading))}"]
        for entry in group:
            lines += ["", *textwrap.wrap(entry.help.replace("`", ""), 118, initial_indent="# ", subsequent_indent="# ")]
            lines.append(f"#{entry.variable}={entry.example or entry.type.to_text(entry.default)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for file in MARKS:
        file.write_text(generated(file), encoding="utf-8")
