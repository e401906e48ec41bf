"""Typed readers of the environment: how every setting of this project gets its value.

A variable is looked for as `NAME`, then as `NAME_FILE`, the path of a file that holds the value (container secrets come
that way). An empty value counts as not given. A bad value raises ImproperlyConfigured with one sentence that names the
variable and the value. `text` and `secret_key` never show what they read: secrets come through them.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import dotenv
from django.core.exceptions import ImproperlyConfigured

TRUE = frozenset({"1", "true", "yes", "on"})
FALSE = frozenset({"0", "false", "no", "off"})

_WEB_PORTS = {"http": 80, "https": 443}  # which a browser leaves out of an origin


def load(path: Path) -> None:
    """Read a `.env` file, if it is there, into the environment. What the environment says already stays."""
    path = Path(os.environ.get("FANFARE_ENV_FILE") or path)
    try:
        dotenv.load_dotenv(path, override=False, interpolate=False)
    except (OSError, UnicodeDecodeError) as error:
        raise ImproperlyConfigured(f"The environment file {path} cannot be read: {error}.") from error


def given(name: str) -> str | None:
    """What a variable, or the file that `NAME_FILE` names, says, without white space around it; None without either."""
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


def text(name: str, default: str = "") -> str:
    value = given(name)
    return default if value is None else value


def flag(name: str, *, default: bool) -> bool:
    value = given(name)
    if value is None:
        return default
    if value.lower() in TRUE:
        return True
    if value.lower() in FALSE:
        return False
    raise ImproperlyConfigured(f"{name} is {value!r}; it must be one of 1, true, yes, on, 0, false, no, off.")


def integer(name: str, default: int, *, minimum: int, maximum: int) -> int:
    value = given(name)
    if value is None:
        return default
    bounds = f"it must be a whole number from {minimum} to {maximum}"
    try:
        number = int(value)
    except ValueError:
        raise ImproperlyConfigured(f"{name} is {value!r}; {bounds}.") from None
    if not minimum <= number <= maximum:
        raise ImproperlyConfigured(f"{name} is {value!r}; {bounds}.")
    return number


def seconds(name: str, default: float, *, minimum: float, maximum: float) -> float:
    value = given(name)
    if value is None:
        return default
    bounds = f"it must be a number of seconds from {minimum:g} to {maximum:g}"
    try:
        number = float(value)
    except ValueError:
        raise ImproperlyConfigured(f"{name} is {value!r}; {bounds}.") from None
    if not minimum <= number <= maximum:  # NaN is refused here, too
        raise ImproperlyConfigured(f"{name} is {value!r}; {bounds}.")
    return number


def secret_key(name: str, *, size: int) -> bytes:
    """A key of `size` bytes, given in base64; nothing where it is not given."""
    value = given(name)
    if value is None:
        return b""
    try:
        key = base64.b64decode(value, validate=True)
    except ValueError:  # not base64, or not even ASCII
        key = b""
    if len(key) != size:
        raise ImproperlyConfigured(f"{name} must be {size} bytes in base64, as `openssl rand -base64 {size}` prints.")
    return key


def choice(name: str, default: str, options: Sequence[str]) -> str:
    value = given(name)
    if value is None:
        return default
    if value.lower() not in options:
        raise ImproperlyConfigured(f"{name} is {value!r}; it must be one of {', '.join(options)}.")
    return value.lower()


def listed(name: str, default: Sequence[str] = ()) -> list[str]:
    """A list of values with commas between them."""
    value = given(name)
    if value is None:
        return list(default)
    return [item for item in (part.strip() for part in value.split(",")) if item]


def origins(name: str) -> list[str]:
    """A list of web origins, in the form that a browser's `Origin` header has."""
    return [_origin(name, item) for item in listed(name)]


def _origin(name: str, text: str) -> str:
    try:
        parts = urlsplit(text.lower())
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in _WEB_PORTS or not parts.hostname or parts.path or parts.query or parts.username:
        raise ImproperlyConfigured(f"{name} names {text!r}; an origin looks like https://shop.example.com.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + ("" if port in (None, _WEB_PORTS[parts.scheme]) else f":{port}")


def path(name: str, default: str, *, base: Path) -> Path:
    """A path; a relative one starts at `base`."""
    return base / Path(text(name, default)).expanduser()
