"""Static files under any ASGI server, with DEBUG and without, collected or not.

They are served from the folders of Django's finders, so that the admin is styled without `collectstatic`, and from
STATIC_ROOT, for the names of a manifest storage. With DEBUG, files are looked up at each request; without, the folders
are read once when a worker starts, and a file that is replaced or removed later is noticed at its next request.

A project that serves them otherwise keeps its way: STATIC_URL of another host, or the middleware of ServeStatic. That
of WhiteNoise is written for WSGI and reads a whole file for each request under ASGI, so it is spared the files below
STATIC_URL; its settings still hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import servestatic
from asgiref.typing import ASGIReceiveCallable, ASGISendCallable
from django.apps import apps
from django.conf import settings
from django.contrib.staticfiles import finders
from servestatic import responders

from fanfare.hub import transports
from fanfare.server import interfaces, root_path

MAX_AGE_SECONDS = 60  # for names without a content hash: browsers revalidate soon and get a 304
REQUEST = "fanfare.request"  # in the scope: the original request
WHITENOISE, SERVESTATIC = "whitenoise.middleware.", "servestatic.middleware."


def before(application: interfaces.Application) -> interfaces.Application:
    """ASGI middleware for the project's pages; the application itself if the project serves static files otherwise."""
    if not apps.is_installed("django.contrib.staticfiles") or not prefix():
        return application
    if not settings.DEBUG and _has_middleware(SERVESTATIC):
        return application
    return StaticFiles(application)


def prefix() -> str:
    """STATIC_URL as a path; empty if it names another host.

    Reading `settings.STATIC_URL` would put the root path before a relative URL and keep that for the life of the
    process, and here no request has said yet what the root path is.
    """
    url = str(vars(settings)["_wrapped"].STATIC_URL or "")
    if "//" in url:
        return ""
    return "/" + url.strip("/") + "/" if url.strip("/") else ""


class StaticFiles:
    """Answers STATIC_URL; missing files and all other requests go to the application."""

    def __init__(self, application: interfaces.Application) -> None:
        self.application = application
        self.prefix = prefix()
        self.files = _Files(self._not_found, self.prefix)

    async def __call__(self, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        path = root_path.below(scope)
        if not path.startswith(self.prefix):
            path = scope["path"]  # an absolute STATIC_URL may have the root path in it
            if not path.startswith(self.prefix):
                await self.application(scope, receive, send)
                return

        async def quietly(message: Any) -> None:
            if message["type"] == "http.response.start":
                transports.mute_access_log(send)  # otherwise an admin page logs a dozen lines
            await send(message)

        await self.files({**scope, "path": path, REQUEST: (scope, send)}, receive, quietly)

    async def _not_found(self, scope: Any, receive: Any, _send: Any) -> None:
        original, send = scope[REQUEST]
        await self.application(original, receive, send)


class _Files(servestatic.ServeStaticASGI):  # type: ignore[misc]
    """The files. `otherwise` answers for missing ones."""

    def __init__(self, otherwise: interfaces.Application, prefix: str) -> None:
        has_whitenoise = _has_middleware(WHITENOISE)
        super().__init__(
            otherwise,
            autorefresh=settings.DEBUG,
            max_age=0 if settings.DEBUG else getattr(settings, "WHITENOISE_MAX_AGE", MAX_AGE_SECONDS),
            allow_all_origins=getattr(settings, "WHITENOISE_ALLOW_ALL_ORIGINS", has_whitenoise),
            immutable_file_test=getattr(settings, "WHITENOISE_IMMUTABLE_FILE_TEST", None),
            add_headers_function=getattr(settings, "WHITENOISE_ADD_HEADERS_FUNCTION", _forbid_sniffing),
            mimetypes=getattr(settings, "WHITENOISE_MIMETYPES", None),
        )
        self._prefix = prefix
        self._removed: dict[str, str] = {}  # the paths of files that are missing now, by URL
        # The finders prefer their first folder, and this class the last one added.
        for folder, below in reversed(list(_folders())):
            self.add_files(folder, prefix + below)

    async def __call__(self, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if not self.autorefresh:
            self._renew(scope["path"])
        await super().__call__(scope, receive, send)

    def _renew(self, url: str) -> None:
        """Read the file again if it was replaced: its Content-Length and ETag are kept with it."""
        known = self.files.get(url)
        if isinstance(known, responders.StaticFile) and not _is_current(known):
            self._removed[url] = next(path for encoding, path, _ in known.alternatives if encoding is None)
        path = self._removed.get(url)
        if path is None:
            return
        try:
            self.files[url] = self.get_static_file(path, url)
        except (responders.MissingFileError, responders.IsDirectoryError):
            self.files.pop(url, None)  # collectstatic deletes a file before it writes the new one
        else:
            del self._removed[url]

    def candidate_paths_for_url(self, url: str) -> Iterator[str]:
        """With DEBUG only: a finder of another package may have no folder that could be added."""
        found = finders.find(url[len(self._prefix) :])
        if isinstance(found, str):
            yield found
        yield from super().candidate_paths_for_url(url)


def _forbid_sniffing(headers: Any, _path: str, _url: str) -> None:
    """As Django's SecurityMiddleware, which these responses do not pass."""
    if settings.SECURE_CONTENT_TYPE_NOSNIFF:
        headers["X-Content-Type-Options"] = "nosniff"


def _is_current(file: responders.StaticFile) -> bool:
    """Whether the file and its compressed variants have the size and the time that their headers say."""
    for encoding, path, headers in file.alternatives:
        kept = dict(headers)
        try:
            now = Path(path).stat()
        except OSError:
            return False
        if kept["Content-Length"] != str(now.st_size):
            return False
        if encoding is None and kept.get("Last-Modified") != formatdate(now.st_mtime, usegmt=True):
            return False
    return True


def _has_middleware(package: str) -> bool:
    return any(name.startswith(package) for name in settings.MIDDLEWARE)


def _folders() -> Iterator[tuple[Path, str]]:
    for finder in finders.get_finders():
        for storage in getattr(finder, "storages", {}).values():
            folder = Path(storage.location)
            if folder.is_dir():
                yield folder, getattr(storage, "prefix", None) or ""
    collected: str | Path | None = settings.STATIC_ROOT
    if collected and Path(collected).is_dir():
        yield Path(collected), ""
