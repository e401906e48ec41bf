"""The console's live data for commands: HTTP requests to a running worker, with a token of this project."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlencode

from fanfare import conf, errors
from fanfare.console import permissions, tokens

TIMEOUT_S: Final = 30.0  # a stream sends a line every 10 s at least


class ConsoleError(errors.FanfareError):
    """No worker answers, or it refuses the request."""

    code = "console"


def address(url: str | None) -> str:
    """The address of a worker without a slash at its end; that of FANFARE_HOST and FANFARE_PORT if `url` is empty.
    Raises ConsoleError.
    """
    if url and not url.lower().startswith(("http://", "https://")):
        raise ConsoleError(f"--url is {url!r}; it is the address of a worker, such as http://127.0.0.1:8000.")
    return (url or f"http://{conf.settings.HOST}:{conf.settings.PORT}").rstrip("/")


class Client:
    """`url`: as for `address`. Raises ConsoleError."""

    def __init__(self, url: str = "") -> None:
        self.url = address(url)

    def get(self, path: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """The answer of an endpoint. Raises ConsoleError."""
        with self._open(path, arguments) as response:
            return json.loads(response.read())

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Raises ConsoleError."""
        with self._open(path, None, json.dumps(body).encode()) as response:
            return json.loads(response.read())

    def stream(self, path: str, arguments: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """The values of a stream until the worker ends it. Raises ConsoleError."""
        with self._open(path, arguments) as response:
            try:
                for line in response:
                    if line.strip():
                        yield json.loads(line)
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise ConsoleError(f"The connection to {self.url} was lost: {error!r}.") from error

    def _open(self, path: str, arguments: Mapping[str, Any] | None, body: bytes | None = None) -> Any:
        given = {name: value for name, value in (arguments or {}).items() if value not in (None, "")}
        query = f"?{urlencode(given)}" if given else ""
        target = f"{self.url}{conf.settings.URL_PREFIX}fanfare/console/{path}{query}"
        rights: dict[str, frozenset[str] | None] = dict.fromkeys(permissions.PER_APPLICATION)
        token = tokens.issue(permissions.Access("", "manage.py", rights))
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(target, body, headers)  # noqa: S310  (the operator names the address)
        try:
            return urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310
        except urllib.error.HTTPError as error:
            raise ConsoleError(_reason(error, target)) from error
        except OSError as error:
            raise ConsoleError(no_answer(self.url, error)) from error


def no_answer(url: str, error: OSError) -> str:
    """The message for an address at which no worker answers. An URLError has the cause as its `reason`."""
    return f"No worker answers at {url}: {getattr(error, 'reason', error)}. Name one with --url."


def _reason(error: urllib.error.HTTPError, target: str) -> str:
    try:
        return str(json.loads(error.read())["error"])
    except (ValueError, KeyError, TypeError):
        return f"{target.partition('?')[0]} was answered with {error.code}: is it a worker of this project?"
