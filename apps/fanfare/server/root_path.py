"""Normalizes every scope: `path` and `raw_path` start with `root_path`, exactly once.

A prefix is configured in one of three ways, and the proxy may strip or keep it:

    uvicorn --root-path /rt      root_path is /rt, and uvicorn prepends it to the received path
    daphne --root-path /rt       root_path is /rt, the path is as received
    FORCE_SCRIPT_NAME = "/rt"    root_path is empty, the path is as received

So the path may have the prefix not at all, once, or twice. After this middleware, `path` is below `root_path`, as ASGI
specifies. Source: ASGI, "HTTP connection scope", `root_path`.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from asgiref.typing import ASGIReceiveCallable, ASGISendCallable

from fanfare.server import interfaces


class RootPath:
    """ASGI middleware. `script_name`: Django's FORCE_SCRIPT_NAME, which overrides the server's root path."""

    def __init__(self, application: interfaces.Application, script_name: str | None = None) -> None:
        self.application = application
        self.script_name = script_name

    async def __call__(self, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] in ("http", "websocket") and (self.script_name is not None or scope.get("root_path")):
            scope = _normalized(scope, self.script_name)
        await self.application(scope, receive, send)


def below(scope: Any) -> str:
    """The decoded path below the root path; it starts with a slash."""
    root: str = scope.get("root_path", "")
    path: str = scope["path"]
    return path.removeprefix(root) or "/" if root else path


def deeper(scope: Any, prefix: str) -> dict[str, Any]:
    """The scope of an application mounted at `prefix` (without a trailing slash) below the root path."""
    return {**scope, "root_path": scope.get("root_path", "") + prefix}


def as_if_below(scope: Any, prefix: str) -> dict[str, Any]:
    """`deeper`, for a request whose path lacks the prefix."""
    root: str = scope.get("root_path", "") + prefix
    found = {**scope, "root_path": root, "path": root + below(scope)}
    raw = scope.get("raw_path")
    if raw is not None:
        rest = raw.decode("latin-1").removeprefix(quote(scope.get("root_path", "")))
        found["raw_path"] = (quote(root) + rest).encode("latin-1")
    return found


def _normalized(scope: Any, script_name: str | None) -> dict[str, Any]:
    root = (scope.get("root_path", "") if script_name is None else script_name).rstrip("/")
    if root and not root.startswith("/"):
        root = f"/{root}"
    found = {**scope, "root_path": root, "path": _joined(scope["path"], root)}
    raw = scope.get("raw_path")
    if raw is not None:
        found["raw_path"] = _joined(raw.decode("latin-1"), quote(root)).encode("latin-1")
    return found


def _joined(path: str, root: str) -> str:
    """`path` with `root` before it exactly once."""
    if not root:
        return path
    for _ in range(2):
        if path == root or path.startswith(f"{root}/"):
            path = path[len(root) :] or "/"
    return root + path
