"""Typed readers of environment variables, for `fanfare.conf` and for a project's own settings module.

A variable is looked for as `NAME`, then as `NAME_FILE`, the path of a file that holds the value: container secrets
come in files. An empty value counts as not given. A bad value raises ImproperlyConfigured with one sentence that names
the variable and the value; `text` never shows the value, since secrets are read with it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from django.core.exceptions import ImproperlyConfigured

from fanfare import setting_types

T = TypeVar("T")

# Every name that was read in this process: a FANFARE_… variable that is not among them is a misspelling.
names_read: set[str] = set()


def given(name: str) -> str | None:
    """The value of the variable, or of the file that `NAME_FILE` names, without white space around it; else None."""
    names_read.add(name)
    value = os.environ.get(name, "").strip()
    file = os.environ.get(f"{name}_FILE", "").strip()
    if value and file:
        raise ImproperlyConfigured(f"{name} and {name}_FILE are both given; remove one of them.")
    if not file:
        return value or None
    try:
        return Path(file).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise ImproperlyConfigured(f"{name}_FILE is {file!r}, which cannot be read: {error}.") from error


def read(name: str, type_: setting_types.Type[T], default: T) -> T:
    value = given(name)
    if value is None:
        return default
    try:
        return type_.from_text(value)
    except setting_types.Refused as refused:
        raise ImproperlyConfigured(f"{name} {refused}.") from None


def text(name: str, default: str = "") -> str:
    return read(name, setting_types.Text(), default)


def flag(name: str, *, default: bool) -> bool:
    return read(name, setting_types.Flag(), default)


def integer(name: str, default: int, *, minimum: int, maximum: int) -> int:
    return read(name, setting_types.Integer(minimum, maximum), default)


def choice(name: str, default: str, options: Sequence[str]) -> str:
    return read(name, setting_types.Choice(options), default)


def listed(name: str, default: Sequence[str] = ()) -> list[str]:
    """A list of values with commas between them."""
    return read(name, setting_types.Listed(), list(default))


def path(name: str, default: str, *, base: Path) -> Path:
    """A path; a relative one starts at `base`."""
    return base / read(name, setting_types.Folder(), Path(default))
