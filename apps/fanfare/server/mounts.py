"""Other ASGI applications in this process, each under a prefix of its own: FastAPI, Starlette, a second Django.

    FANFARE_ASGI_MOUNTS='/shop=shop.main:app,/metrics=metrics:application'

or, in the settings module, FANFARE = {"ASGI_MOUNTS": {"/shop": "shop.main:app"}}. A mounted application sees the whole
path and, in `root_path`, the part of it that led there (ASGI's HTTP specification, "root_path"; what Starlette's Mount
does). Its lifespan is run: its start after that of the worker, so that it can publish in it, its end before, and what
it puts in the lifespan's state is in the scope of its requests.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import re
import time
from collections.abc import Collection, Mapping
from typing import Any

from asgiref.typing import ASGIReceiveCallable, ASGISendCallable
from django.core.exceptions import ImproperlyConfigured

from fanfare.server import errors, interfaces, routing

logger = logging.getLogger(__name__)

SETTING = "FANFARE_ASGI_MOUNTS"
EXAMPLE = "/shop=main:app"

RETRY_SECONDS = 1.0  # between two attempts to start on first use: a crowd of requests is one attempt

_PREFIX = re.compile(r"(?:/[\w.~-]+)+", re.ASCII)
_TARGET = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*")


class Mounts:
    """The mounted applications of a worker.

    `entries`: MODULE:ATTRIBUTE by prefix. `taken`: prefixes that are the server's. Imports the
    applications. Raises ImproperlyConfigured with the name and the value of a wrong entry.
    """

    def __init__(self, entries: Mapping[str, str] | None = None, *, taken: Collection[str] = ()) -> None:
        mounts = [Mount(prefix, target) for prefix, target in (entries or {}).items()]
        for mount in mounts:
            for prefix in taken:
                if _is_below(prefix.rstrip("/"), mount.prefix) or _is_below(mount.prefix, prefix.rstrip("/")):
                    raise ImproperlyConfigured(f"{SETTING} has {mount.prefix!r}, where the server itself answers.")
        # The longest first: of a mount and one below it, the lower one is meant.
        self._mounts = sorted(mounts, key=lambda mount: -len(mount.prefix))

    def before(self, otherwise: interfaces.Application) -> interfaces.Application:
        """An application that gives requests and WebSockets to their mounts, and what is below none to `otherwise`."""
        if not self._mounts:
            return otherwise
        # A mount is started by the lifespan, or, on a server that has none, by its first visitor.
        mounted = [(mount.prefix, routing.Started(mount, mount, reason_in="the log")) for mount in self._mounts]

        async def application(scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            for prefix, mount in mounted:
                if _is_below(path, prefix):
                    await mount(scope, receive, send)
                    return
            await otherwise(scope, receive, send)

        return application

    async def start(self) -> None:
        """Start all of them, one after the other. Raises MountFailed; those that were started are stopped again."""
        try:
            for mount in self._mounts:
                await mount.started()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop those that run, the last first. Never raises."""
        for mount in reversed(self._mounts):
            await mount.stop()


class Mount:
    """One application and the place where it is mounted."""

    def __init__(self, prefix: str, target: str) -> None:
        self.prefix = prefix.rstrip("/")
        self.target = str(target)  # a dict in the settings may hold anything; then it is shown as it looks
        if not _PREFIX.fullmatch(self.prefix):
            raise ImproperlyConfigured(
                f"{SETTING} has the prefix {prefix!r}; it is a path such as /shop, of letters, digits, '.', '-', '_' "
                "and '~', and not the root."
            )
        self.application = _load(self)
        self._lifespan: _Lifespan | None = None
        self._starting: asyncio.Task[None] | None = None
        self._failed_at = float("-inf")  # time.monotonic() of the last failed start
        self._failure = ""

    def __str__(self) -> str:
        return f"{self.prefix}={self.target}"

    @property
    def running(self) -> bool:
        return self._lifespan is not None

    async def __call__(self, scope: Any, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        state = self._lifespan.state if self._lifespan is not None else {}
        child = {
            **scope,
            "root_path": scope.get("root_path", "") + self.prefix,
            "state": {**scope.get("state", {}), **state},  # a copy for each request, as ASGI has it
        }
        await self.application(child, receive, send)

    async def started(self) -> None:
        """Return when the application runs; start it if nobody did (Daphne runs no lifespan). Raises MountFailed."""
        if self.running:
            return
        if self._starting is None:
            if time.monotonic() - self._failed_at < RETRY_SECONDS:
                raise errors.MountFailed(self._failure)
            self._starting = asyncio.create_task(self._start(), name=f"start of {self}")
        # Shielded: the one that came first may hang up, and the others wait for the same start.
        await asyncio.shield(self._starting)
        if not self.running:
            raise errors.MountFailed(self._failure)

    async def stop(self) -> None:
        lifespan, self._lifespan = self._lifespan, None
        if lifespan is not None:
            await lifespan.stop()

    async def _start(self) -> None:
        """Never raises: what went wrong is in the log and in `_failure`."""
        lifespan = _Lifespan(self.application, str(self))
        try:
            problem = await lifespan.start()
        finally:
            self._starting = None
        if problem is None:
            self._lifespan = lifespan
        else:
            self._failed_at = time.monotonic()
            self._failure = f"{SETTING}: {self} did not start: {problem}"
            logger.error("%s", self._failure)


class _Lifespan:
    """The server's side of one application's ASGI lifespan.

    The application runs it in one task from start to stop, for what it opens there (a task group, a cancel scope) must
    be closed by the task that opened it.
    """

    def __init__(self, application: interfaces.Application, name: str) -> None:
        self.state: dict[str, Any] = {}
        self._application = application
        self._name = name
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._answers: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()  # None: the application returned
        self._task: asyncio.Task[None] | None = None
        self._supported = True

    async def start(self) -> str | None:
        """Why it did not start, in a line; None if it did."""
        self._task = asyncio.create_task(self._run(), name=f"lifespan of {self._name}")
        answer = await self._ask("startup")
        if answer is None:
            # ASGI: an application that cannot do it raises, and the server goes on without.
            self._supported = False
            return None
        if answer["type"] == "lifespan.startup.complete":
            return None
        message = str(answer.get("message", "")).strip()
        if "\n" in message:  # Starlette and FastAPI send the whole traceback
            logger.error("The start of %s failed.\n%s", self._name, message)
        await self._task
        return message.rpartition("\n")[2] or "it gave no reason."

    async def stop(self) -> None:
        if not self._supported or self._task is None:
            return
        if self._task.done():
            return  # it was logged when it happened
        answer = await self._ask("shutdown")
        if answer is not None and answer["type"] == "lifespan.shutdown.failed":
            logger.error("The end of %s failed: %s", self._name, answer.get("message", ""))
        await self._task

    async def _ask(self, event: str) -> dict[str, Any] | None:
        await self._inbox.put({"type": f"lifespan.{event}"})
        return await self._answers.get()

    async def _run(self) -> None:
        last = ""

        async def send(message: dict[str, Any]) -> None:
            nonlocal last
            if not message["type"].startswith("lifespan."):
                raise errors.ServerError(f"{message['type']} is no answer to a lifespan")
            last = message["type"]
            await self._answers.put(message)

        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._application(scope, self._inbox.get, send)
        except Exception as error:
            if not last:
                logger.info("%s runs without a lifespan: %s: %s", self._name, type(error).__name__, error)
            elif not last.endswith(".failed"):  # that one said why itself, and raised it too
                logger.exception("The lifespan of %s broke off.", self._name)
        finally:
            await self._answers.put(None)


def _is_below(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix + "/")


def _load(mount: Mount) -> interfaces.Application:
    """Import `MODULE:ATTRIBUTE`. A mistake inside of the module is raised as it is, with a note which mount it was."""
    if not _TARGET.fullmatch(mount.target):
        raise ImproperlyConfigured(f"{SETTING} has '{mount}'; an entry looks like {EXAMPLE}.")
    module_name, _, attributes = mount.target.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and _is_part(error.name, module_name):
            raise ImproperlyConfigured(f"{SETTING} has '{mount}': there is no module {error.name!r}.") from None
        raise ImproperlyConfigured(
            f"{SETTING} has '{mount}': the module {module_name!r} imports {error.name!r}, which is not there."
        ) from error
    except Exception as error:
        error.add_note(f"It was imported for {SETTING}, which has '{mount}'.")
        raise
    for attribute in attributes.split("."):
        try:
            found = getattr(found, attribute)
        except AttributeError:
            raise ImproperlyConfigured(
                f"{SETTING} has '{mount}': the module {module_name!r} has no {attributes!r}."
            ) from None
    if not callable(found):
        raise ImproperlyConfigured(
            f"{SETTING} has '{mount}': {attributes!r} is no ASGI application, but of the type {type(found).__name__}."
        )
    application: interfaces.Application = found
    return application


def _is_part(name: str, module_name: str) -> bool:
    """Whether `name` is the module itself or a package that it is in."""
    return module_name == name or module_name.startswith(name + ".")
