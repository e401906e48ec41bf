"""Static files under any ASGI server, with DEBUG and without, collected or not.

They are served straight from the folders that Django's finders know, so nothing has to be run before the admin has its
style. With DEBUG a file is looked up at each request, so that an edit is seen; without, the folders are read once when
a worker starts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import servestatic
from asgiref.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from django.conf import settings
from django.contrib.staticfiles import finders

from fanfare.server import interfaces

# Names carry no hash of the contents, so a browser asks again after a minute and mostly gets a 304.
MAX_AGE_SECONDS = 60


class StaticFiles:
    """Answers STATIC_URL; whatever is not there, and everything else, is the application's."""

    def __init__(self, application: interfaces.Application) -> None:
        self.application = application
        self.prefix: str = settings.STATIC_URL
        self.files = servestatic.ServeStaticASGI(
            application,
            autorefresh=settings.DEBUG,
            max_age=0 if settings.DEBUG else MAX_AGE_SECONDS,
            allow_all_origins=False,
        )
        # The finders' first folder wins; of what is added here, the last.
        for folder, prefix in reversed(list(_folders())):
            self.files.add_files(folder, self.prefix + prefix)

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        if scope["type"] == "http" and scope["path"].startswith(self.prefix):
            await self.files(scope, receive, send)
        else:
            await self.application(scope, receive, send)


def _folders() -> Iterator[tuple[Path, str]]:
    for finder in finders.get_finders():
        for storage in getattr(finder, "storages", {}).values():
            folder = Path(storage.location)
            if folder.is_dir():
                yield folder, getattr(storage, "prefix", None) or ""
