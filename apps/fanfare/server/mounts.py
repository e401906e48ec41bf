"""Other ASGI applications in this process, each under a prefix of its own: FastAPI, Starlette, a second Django.

    FANFARE_ASGI_MOUNTS='/shop=shop.main:app,/bot=bot:application'

or FANFARE = {"ASGI_MOUNTS": {"/shop": "shop.main:app"}} in the settings module, or an argument of
`fanfare.asgi.application()`. A mounted application receives the whole path and, in `root_path`, its
prefix (ASGI's HTTP specification, "root_path"; what Starlette's Mount does). Its lifespan is run: its start after that
of the worker, so that it can publish, its end before, and what it puts in the lifespan's state is in the scope of its
requests.

A mount whose start fails does not stop the worker: it is logged, its requests get 503, and the next one tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import re
import time
from collections.abc import Collection, Mapping
from typing import Any

from asgiref.typing import ASGIReceiveCallable, ASGISendCallable
from django.core.exceptions import ImproperlyConfigured

from fanfare.runtime.supervisor import Supervisor
from fanfare.server import errors, interfaces, root_path, routing

logger = logging.getLogger(__name__)

SETTING = "FANFARE_ASGI_MOUNTS"
EXAMPLE = "/shop=main:app"

RETRY_SECONDS = 1.0  # between two attempts to start on first use, so that concurrent requests are one attempt

_PREFIX = re.compile(r"(?:/[\w.~-]+)+", re.ASCII)
_TARGET = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")


class Mounts:
    """The mounted applications of a worker.

    `entries`: applications, or "module:attribute", by prefix. `taken`: prefixes of the server itself. Imports the
    applications. Raises ImproperlyConfigured with the name and the value of a wrong entry.
    """

    def __init__(self, entries: Mapping[str, Any] | None = None, *, taken: Collection[str] = ()) -> None:
        self._tasks = Supervisor(logger)
        mounts = [_mount(prefix, target, self._tasks) for prefix, target in (entries or {}).items()]
        for mount in mounts:
            for prefix in taken:
                if _is_below(prefix.rstrip("/"), mount.prefix) or _is_below(mount.prefix, prefix.rstrip("/")):
                    raise ImproperlyConfigured(f"{SETTING} has {mount.prefix!r}, where the server itself answers.")
        # Longest first, so that a mount below another one matches first.
        self._mounts = sorted(mounts, key=lambda mount: -len(mount.prefix))
        self._root: Mount | None = None

    def of_project(self, application: interfaces.Application) -> Mount:
        """The project's own application with its lifespan; it answers requests outside all mounts."""
        self._root = Mount("", application, "The project's application", self._tasks)
        return self._root

    @property
    def problem(self) -> str:
        """The applications that did not start; empty if all run."""
        return " ".join(mount.failure for mount in self._all() if mount.failure)

    def before(self, otherwise: interfaces.Application) -> interfaces.Application:
        """An application that routes requests and WebSockets to the mounts, and all others to `otherwise`."""
        if not self._mounts:
            return otherwise
        # A mount is started by the lifespan, or by a request if the server has no lifespan or the start has failed.
        mounted = [(mount.prefix, routing.Started(mount, mount, reason_in="the log")) for mount in self._mounts]

        async def application(scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            path = root_path.below(scope)
            for prefix, mount in mounted:
                if _is_below(path, prefix):
                    await mount(scope, receive, send)
                    return
            await otherwise(scope, receive, send)

        return application

    async def start(self) -> None:
        """Start all mounts, one after the other. Does not raise; `problem` has the failures."""
        for mount in self._all():
            with contextlib.suppress(errors.MountFailed):  # logged where it happened
                await mount.started()

    async def stop(self) -> None:
        """Stop the running mounts in reverse order. Does not raise."""
        for mount in reversed(self._all()):
            await mount.stop()

    def _all(self) -> list[Mount]:
        return [*([self._root] if self._root is not None else []), *self._mounts]


class Mount:
    """One mounted application. `name`: for the log. An empty `prefix`: the project's own application."""

    def __init__(self, prefix: str, application: interfaces.Application, name: str, tasks: Supervisor) -> None:
        self.prefix = prefix
        self.application = application
        self.failure = ""  # of the last start
        self._name = name
        self._tasks = tasks
        self._lifespan: _Lifespan | None = None
        self._starting: asyncio.Task[None] | None = None
        self._failed_at = float("-inf")  # time.monotonic() of the last failed start

    @property
    def running(self) -> bool:
        return self._lifespan is not None

    async def __call__(self, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        state = self._lifespan.state if self._lifespan is not None else {}
        child = {
            **root_path.deeper(scope, self.prefix),
            "state": {**scope.get("state", {}), **state},  # a copy for each request, as ASGI has it
        }
        await self.application(child, receive, send)

    async def started(self) -> None:
        """Wait until the application runs, and start it if necessary. Raises MountFailed."""
        if self.running:
            return
        if self._starting is None:
            if time.monotonic() - self._failed_at < RETRY_SECONDS:
                raise errors.MountFailed(self.failure)
            self._starting = self._tasks.spawn(f"start of {self._name}", self._start())
        # Shielded: the first caller may disconnect while others wait for the same start.
        await asyncio.shield(self._starting)
        if not self.running:
            raise errors.MountFailed(self.failure)

    async def stop(self) -> None:
        lifespan, self._lifespan = self._lifespan, None
        if lifespan is not None:
            await lifespan.stop()

    async def _start(self) -> None:
        """Does not raise: the reason of a failure is in the log and in `failure`."""
        lifespan = _Lifespan(self.application, self._name, self._tasks)
        try:
            problem = await lifespan.start()
        finally:
            self._starting = None
        if problem is None:
            self._lifespan, self.failure = lifespan, ""
        else:
            self._failed_at = time.monotonic()
            self.failure = f"{self._name} did not start: {problem}"
            logger.error("%s", self.failure)


class _Lifespan:
    """The server's side of one application's ASGI lifespan.

    It runs in one task from start to stop, because the task that opens a task group or cancel scope must also close it.
    """

    def __init__(self, application: interfaces.Application, name: str, tasks: Supervisor) -> None:
        self.state: dict[str, Any] = {}
        self._application = application
        self._name = name
        self._tasks = tasks
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._answers: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()  # None: the application returned
        self._task: asyncio.Task[None] | None = None
        self._supported = True

    async def start(self) -> str | None:
        """The reason why it did not start; None if it started."""
        self._task = self._tasks.spawn(f"lifespan of {self._name}", self._run())
        answer = await self._ask("startup")
        if answer is None:
            # ASGI: an application without lifespan support raises, and the server continues.
            self._supported = False
            return None
        if answer["type"] == "lifespan.startup.complete":
            return None
        message = str(answer.get("message", "")).strip()
        if "\n" in message:  # Starlette and FastAPI send the whole traceback
            logger.error("The start of %s failed.\n%s", self._name, message)
        await self._task
        return message.rpartition("\n")[2] or "no reason given."

    async def stop(self) -> None:
        if not self._supported or self._task is None:
            return
        if self._task.done():
            return  # already logged
        answer = await self._ask("shutdown")
        if answer is not None and answer["type"] == "lifespan.shutdown.failed":
            logger.error("The shutdown of %s failed: %s", self._name, answer.get("message", ""))
        await self._task

    async def _ask(self, event: str) -> dict[str, Any] | None:
        await self._inbox.put({"type": f"lifespan.{event}"})
        return await self._answers.get()

    async def _run(self) -> None:
        last = ""

        async def send(message: dict[str, Any]) -> None:
            nonlocal last
            if not message["type"].startswith("lifespan."):
                raise errors.ServerError(f"{message['type']} is not a valid lifespan message")
            last = message["type"]
            await self._answers.put(message)

        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._application(scope, self._inbox.get, send)
        except Exception as error:
            if not last:
                logger.info("%s runs without a lifespan: %s: %s", self._name, type(error).__name__, error)
            elif not last.endswith(".failed"):  # the reason was already logged
                logger.exception("The lifespan of %s ended early.", self._name)
        finally:
            await self._answers.put(None)


def _is_below(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix + "/")


def _mount(prefix: str, target: Any, tasks: Supervisor) -> Mount:
    place = prefix.rstrip("/")
    shown = target if isinstance(target, str) else type(target).__name__
    name = f"{SETTING}: {place}={shown}"
    if not _PREFIX.fullmatch(place):
        raise ImproperlyConfigured(
            f"{SETTING} has the prefix {prefix!r}; it is a path such as /shop, of letters, digits, '.', '-', '_' "
            "and '~', and not the root."
        )
    if isinstance(target, str):
        target = _load(f"{place}={target}", target)
    elif not callable(target):
        raise ImproperlyConfigured(f"{SETTING} has '{place}={target!r}'; an entry looks like {EXAMPLE}.")
    return Mount(place, target, name, tasks)


def _load(entry: str, target: str) -> interfaces.Application:
    """Import `MODULE:ATTRIBUTE`. An exception inside the module is raised with a note about the mount."""
    if not _TARGET.fullmatch(target):
        raise ImproperlyConfigured(f"{SETTING} has '{entry}'; an entry looks like {EXAMPLE}.")
    module_name, _, attributes = target.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and _is_part(error.name, module_name):
            raise ImproperlyConfigured(f"{SETTING} has '{entry}': there is no module {error.name!r}.") from None
        raise ImproperlyConfigured(
            f"{SETTING} has '{entry}': the module {module_name!r} imports {error.name!r}, which does not exist."
        ) from error
    except Exception as error:
        error.add_note(f"It was imported for {SETTING}, which has '{entry}'.")
        raise
    for attribute in attributes.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            raise ImproperlyConfigured(
                f"{SETTING} has '{entry}': the module {module_name!r} has no {attributes!r}."
            ) from None
    if not callable(found):
        raise ImproperlyConfigured(
            f"{SETTING} has '{entry}': {attributes!r} is not an ASGI application but of type {type(found).__name__}."
        )
    application: interfaces.Application = found
    return application


def _is_part(name: str, module_name: str) -> bool:
    """Whether `name` is the module itself or a package that it is in."""
    return module_name == name or module_name.startswith(name + ".")
