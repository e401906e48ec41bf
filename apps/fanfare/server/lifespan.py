"""The life of one worker: what is started before the first connection, and stopped after the last.

A server that speaks ASGI's lifespan starts it before it accepts. Daphne does not, so whoever needs the parts asks
`started()`, which starts them on first use. Both ways lead to the same start, which happens once however many ask at
the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time

from asgiref.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from django.core.exceptions import ImproperlyConfigured

from fanfare import conf
from fanfare.applications import loading, registry
from fanfare.channel_layer import office
from fanfare.engine import current
from fanfare.engine import errors as engine_errors
from fanfare.hub import hub, transports
from fanfare.integration import relay, signal_sender
from fanfare.jobs import runner
from fanfare.protocol import session_owners, termination
from fanfare.server import errors, memory, mounts, proxies, supervisor
from fanfare.sockets import http_limits
from fanfare.webhooks import service

logger = logging.getLogger(__name__)

# Between two attempts to start: an engine that is away is asked once a second, not once per connection.
RETRY_SECONDS = 1.0


class Server:
    """The parts of one worker, and their start and stop."""

    def __init__(self) -> None:
        self.engine = current.current()
        self.hub = hub.Hub(self.engine, max_buffer_bytes=conf.settings.BUFFER_BYTES)
        self.registry = registry.Registry()
        self.loader = loading.Loader(self.registry, self.hub)
        webhooks = service.Webhooks(self.hub, self.registry, lambda: self.loader.loaded)
        built_in = (webhooks.job(), signal_sender.SignalSender(self.hub).job(), relay.job())
        self.background = runner.Runner(self.hub, built_in)
        termination.register(self.hub)
        self.tokens = session_owners.SessionOwners(self.hub, time.monotonic)
        self.mounts = mounts.Mounts()  # asgi.py fills it
        self._up = False  # the parts are started; the loader may still be trying
        self.problem = "The worker has not been started yet."  # why it does not run, for people; empty while it runs
        self.hopeless = False  # nothing but a person can mend the problem
        self._starting: asyncio.Task[None] | None = None
        self._failed_at = float("-inf")  # time.monotonic() of the last failed attempt
        self._tasks: list[asyncio.Task[None]] = []
        self._workers = 1  # how many of them were asked for, where the server below tells
        self._transport: dict[str, str] = {}  # what the server below is made of, where it tells

    # -- start and stop ------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Read on every connection and request. A worker that knows no application yet must not say that there is none:
        that sends clients away for good.
        """
        return self._up and self.loader.loaded

    async def started(self) -> None:
        """Return when the worker runs; start it if nobody did. Raises errors.NotStarted; a later call tries again."""
        if self.running:
            return
        if self._up:
            raise errors.NotStarted(self.loader.problem or self.problem)
        if self._starting is None:
            if time.monotonic() - self._failed_at < RETRY_SECONDS:
                raise errors.NotStarted(self.problem)
            self._starting = asyncio.create_task(self._start(), name="start of the worker")
        # Shielded: the one that came first may hang up, and the others wait for the same start.
        await asyncio.shield(self._starting)
        if not self.running:
            raise errors.NotStarted(self.problem or self.loader.problem or "")

    async def stop(self) -> None:
        """Leave: what this worker holds for others goes now and not when somebody notices. Idempotent."""
        tasks = [*self._tasks, *([self._starting] if self._starting else [])]
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not self._up:
            return
        self._up = False
        self.problem = "The worker is stopping."
        try:
            await self.background.stop()
            await self.loader.stop()
        finally:
            await self.hub.stop()
            office.here.leave()

    async def _start(self) -> None:
        """One attempt. Never raises: what went wrong is in the log and in `problem`."""
        try:
            transports.install_log_filters()
            office.here.serve(self.hub)  # before the first entry comes
            await self.hub.start()
            try:
                await self.loader.start()  # after the hub: what changes from here on arrives through the log
                await self.background.start()
            except BaseException:
                await self.hub.stop()
                raise
        except engine_errors.EngineUnavailable as error:
            self._failed(str(error))
            logger.error("The worker cannot start: %s", error)  # noqa: TRY400  (the sentence says it all)
        except (engine_errors.EngineError, ImproperlyConfigured) as error:
            self._failed(str(error), hopeless=True)
            logger.error("The worker cannot start: %s", error)  # noqa: TRY400
        except Exception as error:
            self._failed(f"The worker cannot start: {type(error).__name__}: {error}", hopeless=True)
            logger.exception("The worker cannot start.")
        else:
            self._up, self.problem, self.hopeless = True, "", False
            logger.info("%s", self.topology())
        finally:
            self._starting = None

    def _failed(self, problem: str, *, hopeless: bool = False) -> None:
        self.problem, self.hopeless = problem, hopeless
        self._failed_at = time.monotonic()

    def topology(self) -> str:
        """One line that says what runs here and how it hangs together."""
        parts = {
            "worker": str(os.getpid()),
            "workers": str(self._workers),
            "engine": current.public_name(conf.settings.ENGINE),
            "data folder": str(conf.settings.DATA_DIR),
            **self._transport,
        }
        return "Fanfare: " + ", ".join(f"{name} {value}" for name, value in parts.items())

    # -- the ASGI lifespan ---------------------------------------------------------------------------------------------

    async def lifespan(self, _scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Start before the server accepts, stop after its last connection.

        A wrong configuration fails the startup, which stops the server: a person must act. An engine that is away does
        not: the worker comes up, says so in /health/ready, answers 503, and tries again by itself.
        """
        await receive()
        self._adjust(receive)
        try:
            await self.started()
        except errors.NotStarted as error:
            if self.hopeless:
                await self.stop()
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            self._tasks.append(asyncio.create_task(self._keep_trying(), name="retried start of the worker"))
        try:
            await self.mounts.start()  # after our own: they may publish while they start
        except errors.MountFailed as error:
            await self.stop()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        if self._transport and threading.current_thread() is threading.main_thread():
            memory.settle_in()  # not in a thread: there a test's process is around the server
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.mounts.stop()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    def _adjust(self, receive: ASGIReceiveCallable) -> None:
        """Put right what the command line gave no flag for, where the server below is uvicorn."""
        config = transports.server_config(receive)
        if config is None:
            return
        transports.tune(
            config,
            max_frame_bytes=conf.settings.MAX_FRAME_BYTES,
            graceful_timeout_s=conf.settings.GRACEFUL_TIMEOUT,
        )
        http_limits.install(
            config,
            http_limits.HttpLimits(
                line_bytes=conf.settings.MAX_REQUEST_LINE_BYTES,
                head_bytes=conf.settings.MAX_HEAD_BYTES,
                headers=conf.settings.MAX_HEADERS,
                head_seconds=conf.settings.HEAD_TIMEOUT,
                waiting=conf.settings.MAX_WAITING_CONNECTIONS,
                connections=conf.settings.MAX_CONNECTIONS,
            ),
            self.hub.count,
        )
        proxies.take_over(config)
        self._workers = supervisor.workers(config)
        self._transport = transports.describe(config)
        supervisor.obey_quit(config)
        parent = supervisor.of(config)
        if parent is not None:
            self._tasks.append(asyncio.create_task(supervisor.watch(parent), name="watch over the supervisor"))

    async def _keep_trying(self) -> None:
        while not self.running:
            await asyncio.sleep(RETRY_SECONDS)
            with contextlib.suppress(errors.NotStarted):  # logged where it happened
                await self.started()
