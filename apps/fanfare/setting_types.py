"""The types of settings: how a value is read from an environment variable and from Django's settings.

A type reads a value in two ways. `from_text` takes the text of an environment variable. `from_value` takes the Python
object that stands in the settings module, and refuses an object of another type: the text "no" is not a switch.

Both raise Refused, whose text is the predicate of a sentence: "is 'x'; it must be one of a, b". The caller knows the
name of the setting and puts it in front.
"""

from __future__ import annotations

import abc
import base64
import ipaddress
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from fanfare.applications import origins

T = TypeVar("T")

TRUE = frozenset({"1", "true", "yes", "on"})
FALSE = frozenset({"0", "false", "no", "off"})

UNIX = "unix"  # in a list of networks: a peer on a Unix socket, which has no address

_WEB_PORTS = {"http": 80, "https": 443}  # the ports that a browser leaves out of an origin
_PATH = re.compile(r"/(?:[\w.~-]+/)*", re.ASCII)
_LINKED_PORT = re.compile(r"(?:tcp|udp|sctp)://")


class Refused(ValueError):
    """A value that the type does not allow; the text is a predicate without the name of the setting."""


class Type(abc.ABC, Generic[T]):
    """The interface."""

    secret: bool = False  # whether the value must not appear in a message

    @abc.abstractmethod
    def allowed(self) -> str:
        """The values that an environment variable may have, for the reference page."""

    @abc.abstractmethod
    def from_text(self, text: str) -> T:
        """`text` has no white space around it and is not empty."""

    @abc.abstractmethod
    def from_value(self, value: object) -> T: ...

    def to_text(self, value: T) -> str:
        """The text from which `from_text` reads `value`."""
        return str(value)


@dataclass(frozen=True)
class Text(Type[str]):
    secret: bool = False

    def allowed(self) -> str:
        return "text"

    def from_text(self, text: str) -> str:
        return text

    def from_value(self, value: object) -> str:
        if not isinstance(value, str):
            raise Refused(f"is of the type {type(value).__name__}; it must be a str")
        return value.strip()


@dataclass(frozen=True)
class Flag(Type[bool]):
    def allowed(self) -> str:
        return "switch"

    def from_text(self, text: str) -> bool:
        if text.lower() in TRUE:
            return True
        if text.lower() in FALSE:
            return False
        raise Refused(f"is {text!r}; it must be one of 1, true, yes, on, 0, false, no, off")

    def from_value(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise Refused(f"is {value!r}; it must be True or False")
        return value

    def to_text(self, value: bool) -> str:
        return "1" if value else "0"


@dataclass(frozen=True)
class Integer(Type[int]):
    minimum: int
    maximum: int

    def allowed(self) -> str:
        return f"{self.minimum} to {self.maximum}"

    def from_text(self, text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise self._refusal(text) from None
        return self._within(number, text)

    def from_value(self, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._refusal(value)
        return self._within(value, value)

    def _within(self, number: int, given: object) -> int:
        if not self.minimum <= number <= self.maximum:
            raise self._refusal(given)
        return number

    def _refusal(self, given: object) -> Refused:
        return Refused(f"is {given!r}; it must be a whole number from {self.minimum} to {self.maximum}")


@dataclass(frozen=True)
class Port(Integer):
    """A TCP port. Kubernetes and Docker set `NAME_PORT=tcp://10.0.0.1:80` for a service called NAME: not a setting."""

    minimum: int = 1
    maximum: int = 65_535
    default: int = 8_000

    def from_text(self, text: str) -> int:
        return self.default if _LINKED_PORT.match(text) else super().from_text(text)


@dataclass(frozen=True)
class Seconds(Type[float]):
    minimum: float
    maximum: float

    def allowed(self) -> str:
        return f"{self.minimum:g} to {self.maximum:g}"

    def from_text(self, text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            raise self._refusal(text) from None
        return self._within(number, text)

    def from_value(self, value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._refusal(value)
        return self._within(float(value), value)

    def to_text(self, value: float) -> str:
        return f"{value:g}"

    def _within(self, number: float, given: object) -> float:
        if not self.minimum <= number <= self.maximum:  # NaN is refused here, too
            raise self._refusal(given)
        return number

    def _refusal(self, given: object) -> Refused:
        return Refused(f"is {given!r}; it must be a number of seconds from {self.minimum:g} to {self.maximum:g}")


@dataclass(frozen=True)
class Choice(Type[str]):
    options: Sequence[str]

    def allowed(self) -> str:
        return ", ".join(f"`{option}`" for option in self.options)

    def from_text(self, text: str) -> str:
        if text.lower() not in self.options:
            raise Refused(f"is {text!r}; it must be one of {', '.join(self.options)}")
        return text.lower()

    def from_value(self, value: object) -> str:
        if not isinstance(value, str):
            raise Refused(f"is {value!r}; it must be one of {', '.join(self.options)}")
        return self.from_text(value)


@dataclass(frozen=True)
class EngineName(Type[str]):
    """`local`, or the URL of a database. A URL may hold a password, so no message shows it."""

    schemes: Sequence[str]
    secret: bool = True

    def allowed(self) -> str:
        return ", ".join(["`local`", *(f"`{scheme}://…`" for scheme in self.schemes)])

    def from_text(self, text: str) -> str:
        if text.lower() == "local":
            return "local"
        if text.partition("://")[0] not in self.schemes or "://" not in text:
            schemes = " or ".join(f"{scheme}://…" for scheme in self.schemes)
            shown = "" if "://" in text else f"is {text!r}; it "
            raise Refused(f"{shown}must be local or a URL such as {schemes}")
        return text

    def from_value(self, value: object) -> str:
        if not isinstance(value, str):
            raise Refused("must be a str")
        return self.from_text(value)


class _List(Type[list[str]]):
    """Items with commas between them in an environment variable, a list or a tuple in the settings module."""

    def item(self, text: str) -> str:
        """One item in the form in which the code compares it."""
        return text

    def from_text(self, text: str) -> list[str]:
        return [self.item(item) for item in _items(text)]

    def from_value(self, value: object) -> list[str]:
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise Refused(f"is {value!r}; it must be a list of str")
        return [self.item(item.strip()) for item in value]

    def to_text(self, value: list[str]) -> str:
        return ",".join(value)


@dataclass(frozen=True)
class Listed(_List):
    def allowed(self) -> str:
        return "list"


@dataclass(frozen=True)
class Networks(_List):
    def allowed(self) -> str:
        return "list of addresses, networks, `unix`"

    def item(self, text: str) -> str:
        try:
            return text if text == UNIX else str(ipaddress.ip_network(text))
        except ValueError as error:
            raise Refused(
                f"has {text!r}, which is neither an IP address, nor a network such as 10.0.0.0/8, nor 'unix': {error}"
            ) from None


@dataclass(frozen=True)
class Origins(_List):
    """Web origins, as `fanfare.applications.origins` reads them.

    Their pages act with a visitor's session. So an entry names its scheme, and `*` is refused.
    """

    def allowed(self) -> str:
        return "list of origins"

    def item(self, text: str) -> str:
        place = origins.parse_entry(text.lower())
        if place is None or not place.scheme:
            raise Refused(f"has {text!r}; an origin looks like https://shop.example.com or https://*.example.com")
        return origins.ascii_form(text.lower())


@dataclass(frozen=True)
class Key(Type[bytes]):
    """A secret of `size` bytes, in base64 or, in the settings module, as bytes; empty where there is none."""

    size: int
    secret: bool = True

    def allowed(self) -> str:
        return f"{self.size} bytes in base64"

    def from_text(self, text: str) -> bytes:
        try:
            return self._of_size(base64.b64decode(text, validate=True))
        except ValueError:  # not base64, or not even ASCII
            raise self._refusal() from None

    def from_value(self, value: object) -> bytes:
        if isinstance(value, bytes):
            return self._of_size(value) if value else value
        if not isinstance(value, str):
            raise self._refusal()
        return self.from_text(value.strip()) if value.strip() else b""

    def to_text(self, value: bytes) -> str:
        return base64.b64encode(value).decode()

    def _of_size(self, key: bytes) -> bytes:
        if len(key) != self.size:
            raise self._refusal()
        return key

    def _refusal(self) -> Refused:
        return Refused(f"must be {self.size} bytes in base64, as `openssl rand -base64 {self.size}` prints")


@dataclass(frozen=True)
class Keys(Type[tuple[bytes, ...]]):
    """Secrets of `size` bytes each, in base64 with commas between them, or a list in the settings module."""

    size: int
    secret: bool = True

    def allowed(self) -> str:
        return f"{self.size} bytes in base64 each, with commas"

    def from_text(self, text: str) -> tuple[bytes, ...]:
        return tuple(Key(self.size).from_text(part.strip()) for part in text.split(",") if part.strip())

    def from_value(self, value: object) -> tuple[bytes, ...]:
        if isinstance(value, str):
            return self.from_text(value)
        if not isinstance(value, list | tuple):
            raise Refused("must be a list of keys")
        return tuple(filter(None, (Key(self.size).from_value(one) for one in value)))

    def to_text(self, value: tuple[bytes, ...]) -> str:
        return ",".join(base64.b64encode(one).decode() for one in value)


@dataclass(frozen=True)
class Folder(Type[Path]):
    def allowed(self) -> str:
        return "path"

    def from_text(self, text: str) -> Path:
        return Path(text).expanduser()

    def from_value(self, value: object) -> Path:
        if not isinstance(value, str | os.PathLike) or not str(value):
            raise Refused(f"is {value!r}; it must be a str or a Path")
        return Path(value).expanduser()


@dataclass(frozen=True)
class UrlPath(Type[str]):
    """A path that begins and ends with a slash: `/`, `/realtime/`. The text may leave them out."""

    def allowed(self) -> str:
        return "path such as `/realtime/`"

    def from_text(self, text: str) -> str:
        path = f"/{text.strip('/')}/" if text.strip("/") else "/"
        if not _PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
            raise Refused(
                f"is {text!r}; it must be a path such as /realtime/, of letters, digits, '.', '-', '_' and '~'"
            )
        return path

    def from_value(self, value: object) -> str:
        if not isinstance(value, str):
            raise Refused(f"is {value!r}; it must be a path such as /realtime/")
        return self.from_text(value.strip())


@dataclass(frozen=True)
class Url(Type[str]):
    """An http or https URL without a query, and without the slash at its end; empty where there is none."""

    def allowed(self) -> str:
        return "URL"

    def from_text(self, text: str) -> str:
        try:
            parts = urlsplit(text)
            _ = parts.port
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in _WEB_PORTS or not parts.hostname or parts.query or parts.fragment:
            raise Refused(f"is {text!r}; it must be a URL such as https://realtime.example.com")
        if parts.username is not None:
            raise Refused("has a user name in it; it must be a URL such as https://realtime.example.com")
        return text.rstrip("/")

    def from_value(self, value: object) -> str:
        if not isinstance(value, str):
            raise Refused(f"is {value!r}; it must be a URL such as https://realtime.example.com")
        return self.from_text(value.strip()) if value.strip() else ""


@dataclass(frozen=True)
class Mounts(Type[dict[str, str]]):
    """`MODULE:ATTRIBUTE` by URL prefix, from `PREFIX=MODULE:ATTRIBUTE` with commas between; a dict in the settings."""

    def allowed(self) -> str:
        return "`/shop=main:app`, with commas between"

    def from_text(self, text: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for item in _items(text):
            prefix, equals, target = (part.strip() for part in item.partition("="))
            if not equals:
                raise Refused(f"has {item!r}; an entry looks like /shop=main:app")
            if prefix in found:
                raise Refused(f"names {prefix!r} twice")
            found[prefix] = target
        return found

    def from_value(self, value: object) -> dict[str, str]:
        if not isinstance(value, Mapping) or not all(
            isinstance(part, str) for entry in value.items() for part in entry
        ):
            raise Refused(f'is {value!r}; it must be a dict such as {{"/shop": "main:app"}}')
        return dict(value)

    def to_text(self, value: dict[str, str]) -> str:
        return ",".join(f"{prefix}={target}" for prefix, target in value.items())


@dataclass(frozen=True)
class Declarations(Type[str]):
    """The text that declares applications. In the settings module it may be the list that the JSON text holds."""

    secret: bool = True

    def allowed(self) -> str:
        return "`id:key:secret[:name]`, with commas between, or a JSON list"

    def from_text(self, text: str) -> str:
        return text

    def from_value(self, value: object) -> str:
        if isinstance(value, str):
            return value.strip()
        try:
            if isinstance(value, list | tuple):
                return json.dumps(value)
        except (TypeError, ValueError):
            pass
        raise Refused("must be a str such as 'id:key:secret' or a list of dicts")


def _items(text: str) -> list[str]:
    return [item for item in (part.strip() for part in text.split(",")) if item]
