"""Start and stop of one worker.

A server with ASGI lifespan starts the worker before it accepts connections. daphne has no lifespan, so code that needs
the worker awaits `started()`, which starts it on first use. Concurrent calls share one start.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from asgiref.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from fanfare import __version__, conf
from fanfare.applications import loading, registry
from fanfare.channel_layer import transport
from fanfare.console import board, connections, figures, member_history, reports, survey, tails, worker_control
from fanfare.console.endpoints import auth_doctor, tracing
from fanfare.engine import current
from fanfare.engine import errors as engine_errors
from fanfare.hub import activity, hub, telemetry, traces, transports
from fanfare.integration import relay, rule_cache, signal_sender
from fanfare.jobs import runner
from fanfare.protocol import revocations, session_owners, streams, termination
from fanfare.runtime import close_codes
from fanfare.runtime.log_throttle import LogThrottle
from fanfare.runtime.supervisor import Supervisor
from fanfare.server import (
    draining,
    errors,
    machine_limits,
    memory,
    mounts,
    parent_process,
    probe,
    proxies,
    schema,
)
from fanfare.sockets import accept_gate, direct_http, drain, http_limits, protocol
from fanfare.webhooks import service

logger = logging.getLogger(__name__)

# Between two attempts to start, so that an unavailable engine is not tried for each connection.
RETRY_SECONDS = 1.0

MOUNTS_STOP_SECONDS = 2.0  # under Daphne, where the stop of the worker follows within `draining.FINISH_S`

MOVE_LOOK_SECONDS = 0.2  # how soon a move of the log is followed; it compares two strings

DAPHNE = "daphne.server"  # loaded where Daphne serves, which has no lifespan, and by `daphne` in INSTALLED_APPS


def _forget_rule_answers(_app: str, _user_id: str, _at: float | None) -> None:
    """Of all users: a project may give its users other ids here than their primary keys."""
    rule_cache.cache.clear()


class Server:
    """The parts of one worker, and their start and stop."""

    def __init__(self) -> None:
        self.engine = current.current()
        self.hub = hub.Hub(
            self.engine,
            max_buffer_bytes=conf.settings.BUFFER_BYTES,
            stream_keep_s=conf.settings.STREAM_KEEP,
        )
        self.tasks = Supervisor(logger, count=self.hub.count, prefix="worker.tasks")
        self.registry = registry.Registry(disabled_grace_s=conf.settings.DISABLED_GRACE)
        self.loader = loading.Loader(self.registry, self.hub)
        webhooks = service.Webhooks(self.hub, self.registry, lambda: self.loader.loaded)
        members = member_history.MemberHistory(self.hub, self.registry, lambda: self.loader.loaded)
        built_in = (webhooks.job(), members.job(), signal_sender.SignalSender(self.hub).job(), relay.job())
        self.background = runner.Runner(self.hub, built_in)
        termination.register(self.hub)
        revocations.of(self.hub)
        termination.on_terminated(self.hub, _forget_rule_answers)
        self.hub.on_gap(rule_cache.cache.clear)
        rule_cache.cache.follow(self._reads_log)
        self.session_owners = session_owners.SessionOwners(self.hub)
        counted = figures.Figures(self.hub, lambda: self.background.own_statuses)
        self.reports = reports.Reports(
            self.hub,
            self.tasks,
            counters=counted.counters,
            gauges=counted.gauges,
            version=__version__,
        )
        self.survey = survey.Survey(self.hub, self.reports.worker)
        tracing.register(self.survey, self.hub)
        auth_doctor.register(self.survey, self.hub)
        members.answer(self.survey)
        self.tails = tails.Tails(self.hub, self.reports.worker)
        self.telemetry: telemetry.Telemetry | None = None
        self.probe = probe.Probe(self.hub, self.tasks)
        self.schema = schema.Schema()
        self.drain = drain.Drain(
            self.tasks, seconds=conf.settings.DRAIN_SECONDS, count=self.hub.count, has_others=self._has_others
        )
        self.control = worker_control.WorkerControl(
            self.hub,
            self.reports.worker,
            self.drain,
            self.tasks,
            kill=worker_control.kill_self if settings.DEBUG else None,
            another_started=self.tails.renew,
        )
        self.mounts = mounts.Mounts()  # filled by asgi.py
        self.problem = "The worker has not been started yet."  # empty while the worker runs
        self.is_misconfigured = False  # invalid settings: do not retry
        self.connections = connections.Connections(self.hub, self.survey)
        self.board = board.Board(self, counted.counters, counted.gauges)
        self._up = False  # started; the loader may still be retrying
        self._has_lifespan = False  # the ASGI server reports start and end
        self._is_over = False  # stopped, and not started again by a late request
        self._is_going_over = False  # to another store, to which the log was moved
        self._starting: asyncio.Task[None] | None = None
        self._failed_at = float("-inf")  # time.monotonic() of the last failed attempt
        self._log = LogThrottle(logger)
        self._requests: direct_http.Handler | None = None
        self._handshakes: protocol.Handler | None = None
        self._outermost: Any = None
        self._forget_signals: Callable[[], None] | None = None
        self._parent_listens: Callable[[], bool] = lambda: False
        self._served_from_s = 0.0  # by parent_process.now_s()
        self._workers = 1  # the number of workers, if the ASGI server reports it
        self.server_pid = os.getpid()  # the process of the ASGI server that started this worker
        self._transport: dict[str, str] = {}  # the parts of the ASGI server, if it reports them

    def answer_directly(self, requests: direct_http.Handler, handshakes: protocol.Handler, *, below: Any) -> None:
        """Let these handlers take HTTP requests and WebSockets from connections whose ASGI application is `below`,
        without middleware of the project around it."""
        self._requests, self._handshakes, self._outermost = requests, handshakes, below

    # -- start and stop ------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Read on every connection and request. A worker that has not loaded the applications must not answer that an
        application is unknown, because clients would not reconnect.
        """
        return self._up and self.loader.loaded and not self._is_going_over

    async def started(self) -> None:
        """Wait until the worker runs, and start it if necessary. Raises errors.NotStarted; a later call retries."""
        if self.running:
            return
        if self._is_over:
            raise errors.NotStarted(self.problem)
        if self._up:
            raise errors.NotStarted(self.loader.problem or self.problem)
        if self._starting is None:
            if time.monotonic() - self._failed_at < RETRY_SECONDS:
                raise errors.NotStarted(self.problem)
            self._starting = self.tasks.spawn("start of the worker", self._start())
        # Shielded: the first caller may disconnect while others wait for the same start.
        await asyncio.shield(self._starting)
        if not self.running:
            raise errors.NotStarted(self.problem or self.loader.problem or "")

    async def stop(self) -> None:
        """Release members, locks and leases of this worker. Idempotent."""
        await self.tasks.stop()
        if not self._up:
            return
        self._up = False
        self.problem = "The worker is stopping."
        try:
            await self.background.stop()
            await self.loader.stop()
        finally:
            await self.hub.stop()
            transport.process_transport.leave()
            activity.serve(None)
            traces.here = None
            telemetry.here = None

    async def _start(self) -> None:
        """One attempt. Never raises: the reason of a failure is in the log and in `problem`."""
        try:
            transports.install_log_filters()
            activity.serve(self.hub.activity)
            traces.here = self.hub.recorder
            self._start_telemetry()
            transport.process_transport.serve(self.hub)  # before the first entry is delivered
            await self._open()
            try:
                await self.loader.start()  # after the hub, which delivers later changes
                if self.loader.loaded:
                    await self.schema.problem()  # once it is complete, a lost database leaves the worker ready
                await self.background.start()
            except BaseException:
                await self.hub.stop()
                raise
        except engine_errors.EngineUnavailable as error:
            self._failed(str(error))
        except (engine_errors.EngineMisconfigured, ImproperlyConfigured) as error:
            self._failed(str(error), is_misconfigured=True)
        except Exception as error:  # noqa: BLE001  (logged with its traceback, and tried again)
            self._failed(f"{type(error).__name__}: {error}", error=error)
        else:
            self._up, self.problem, self.is_misconfigured = True, "", False
            self.tasks.run(
                "end of streams without a producer",
                functools.partial(streams.keep_ending_lapsed, self.hub, self.registry),
            )
            self.reports.introduce()
            self.tasks.run("samples for the console", self.board.recent.run)
            self.tasks.run("check of the worker", self.board.watch)
            self.tasks.run("moves of the log", self._follow_moves)
            if DAPHNE in sys.modules and not self._has_lifespan:
                self._drain_at_signals(self._stop_for_good)
            logger.info("%s", self.topology())
            if self._transport and (warning := machine_limits.warning()):
                logger.warning("%s", warning)
        finally:
            self._starting = None

    def _start_telemetry(self) -> None:
        """Once per worker, and before the engine is opened. Raises ImproperlyConfigured."""
        if not conf.settings.OTEL or self.telemetry is not None:
            return
        try:
            self.telemetry = telemetry.here = telemetry.Telemetry(self.hub)
        except ImportError as error:
            raise ImproperlyConfigured(
                f"FANFARE_OTEL is on, and {error.name} is not installed: pip install django-fanfare[otel]"
            ) from error
        self.tasks.run("spans of deliveries", self.telemetry.run)

    def _reads_log(self) -> bool:
        return self.running and self.engine.health().ok

    async def _open(self) -> None:
        try:
            await self.hub.start()
        except engine_errors.EngineError:
            if not (self.engine.is_moved and await asyncio.to_thread(current.follow_move)):
                raise
            self.engine = current.current()
            await self.hub.go_over(self.engine)

    async def _follow_moves(self) -> None:
        """Go over to the store of FANFARE_ENGINE_NEXT when the log was moved there."""
        try:
            await asyncio.to_thread(current.import_next)
        except engine_errors.EngineError as error:
            self._log.error("FANFARE_ENGINE_NEXT cannot be used: %s", error)
        while True:
            await asyncio.sleep(MOVE_LOOK_SECONDS)
            if not self.engine.is_moved:
                continue
            try:
                if not await asyncio.to_thread(current.follow_move):
                    continue
            except engine_errors.EngineError as error:
                self._log.warning("The marks of the move cannot be read: %s", error)
                continue
            self.engine = current.current()
            await self._go_over()

    async def _go_over(self) -> None:
        self._is_going_over, self.problem = True, "The log was moved to another store; the worker switches to it."
        await self.background.stop()
        while True:
            try:
                await self.hub.go_over(self.engine)
            except engine_errors.EngineError as error:
                self.problem = str(error)
                self._log.error("The worker cannot switch to the new store: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                break
        self.tails.resume()
        rule_cache.cache.clear()
        await self.background.start()
        self._is_going_over, self.problem = False, ""
        logger.info("%s", self.topology())

    def _failed(self, problem: str, *, is_misconfigured: bool = False, error: Exception | None = None) -> None:
        self.problem, self.is_misconfigured = problem, is_misconfigured
        self._failed_at = time.monotonic()
        self._log.error("The worker cannot start: %s", problem, key=problem, error=error)

    def topology(self) -> str:
        """One log line with the parts of this worker and what it shares with others."""
        parts = {
            "worker": str(os.getpid()),
            "workers": str(self._workers),
            "engine": current.name_in_use(conf.settings.ENGINE),
            "data folder": str(conf.settings.DATA_DIR),
            **self._transport,
        }
        return "Fanfare: " + ", ".join(f"{name} {value}" for name, value in parts.items())

    # -- the ASGI lifespan ---------------------------------------------------------------------------------------------

    async def lifespan(self, _scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Start before the server accepts, stop after its last connection.

        Invalid settings fail the start-up, which stops the server. Other failures do not, because a gunicorn worker
        that fails to boot stops the master and all healthy workers. Instead the worker reports the failure in
        /health/ready, answers 503, and retries.
        """
        self._has_lifespan = True
        await receive()
        self._adjust(receive)
        try:
            await self.started()
        except errors.NotStarted as error:
            if self.is_misconfigured:
                await self.stop()
                await send({"type": "lifespan.startup.failed", "message": str(error)})
                return
            self.tasks.run("start of the worker, again", self._keep_trying)
        await self.mounts.start()  # after the worker, because they may publish while they start
        if self._transport and threading.current_thread() is threading.main_thread():
            memory.settle_in()  # not in a thread, where the process belongs to a test
        self._served_from_s = parent_process.now_s()
        if self.running:
            self.control.introduce()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.mounts.stop()
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    def _adjust(self, receive: ASGIReceiveCallable) -> None:
        """Set defaults of uvicorn for which the command line has no flag."""
        config = transports.server_config(receive)
        if config is None:
            self._drain_at_signals()
            return
        transports.tune(
            config,
            max_frame_bytes=conf.settings.MAX_FRAME_BYTES,
            graceful_timeout_s=conf.settings.GRACEFUL_TIMEOUT,
        )
        limits = http_limits.HttpLimits(
            line_bytes=conf.settings.MAX_REQUEST_LINE_BYTES,
            head_bytes=conf.settings.MAX_HEAD_BYTES,
            headers=conf.settings.MAX_HEADERS,
            head_seconds=conf.settings.HEAD_TIMEOUT,
            waiting=conf.settings.MAX_WAITING_CONNECTIONS,
            connections=conf.settings.MAX_CONNECTIONS,
        ).within_descriptors()
        is_outermost = transports.serves(config, self._outermost)
        http_limits.install(config, limits, self.hub.count, self._requests if is_outermost else None)
        if is_outermost and not config.root_path:
            setattr(config, protocol.HANDLER, self._handshakes)
        self._workers = parent_process.workers(config)
        self.gate = accept_gate.AcceptGate(
            per_second=conf.settings.ACCEPT_RATE * min(1.0, machine_limits.cores() / self._workers),
            connections=limits.connections,
            memory_bytes=conf.settings.MAX_MEMORY_MB << 20,
            count=self.hub.count,
        )
        setattr(config, accept_gate.GATE, self.gate)
        proxies.take_over(config)
        self._parent_listens = parent_process.listener(config)
        has_gunicorn = parent_process.gunicorn_worker(config) is not None
        siblings = drain.Siblings(
            workers=self._workers,
            parent_starts=lambda: self._parent_listens() and not parent_process.is_eldest(os.getppid()),
            may_be_replaced=has_gunicorn or self._workers > 1,
            stop_alone=lambda: not has_gunicorn and parent_process.has_surplus(os.getppid(), self._workers),
        )
        self.drain.watch(config, siblings)
        if conf.settings.DRAIN_DELAY or has_gunicorn:
            draining.postpone(self._wait_before_stop, self.tasks, lambda: not self._parent_listens())
        self._transport = transports.describe(config)
        parent_process.handle_quit(config)
        draining.stop_at_hang_up()
        if has_gunicorn:
            self.tasks.run("heartbeat", functools.partial(parent_process.keep_alive, config))
        parent = parent_process.pid(config)
        if parent is not None:
            self.server_pid = parent
            self.tasks.run("watch over the parent process", functools.partial(parent_process.watch, parent))

    def _has_others(self) -> bool:
        """Whether other machines serve this deployment."""
        if current.name_in_use(conf.settings.ENGINE) == "local":
            return False
        return int(self.engine.statistics().get("workers", 1)) > self._workers

    async def _wait_before_stop(self) -> None:
        """After a SIGTERM: serve until the load balancer has noticed, or until the workers of a reload take over."""
        if not self._parent_listens():
            self.drain.announce()
            await asyncio.sleep(conf.settings.DRAIN_DELAY)
        elif parent_process.younger_children(os.getppid(), self._served_from_s) is None:
            await asyncio.sleep(drain.BOOT_S)
        else:
            self.drain.is_relieved = await self.control.wait_for(self._booting, drain.RELOAD_S)

    def _booting(self) -> set[int]:
        return parent_process.younger_children(os.getppid(), self._served_from_s) or set()

    def _drain_at_signals(self, finish: draining.Finish | None = None) -> None:
        if self._forget_signals is None:
            draining.stop_at_hang_up()
            self._forget_signals = draining.at_signal(self._drain, finish)

    def _stop_for_good(self) -> asyncio.Task[None]:
        self._is_over = True
        return self.tasks.spawn("stop of the worker", self._stop_without_lifespan())

    async def _stop_without_lifespan(self) -> None:
        try:
            async with asyncio.timeout(MOUNTS_STOP_SECONDS):
                await self.mounts.stop()
        except TimeoutError:
            logger.warning("A mounted application did not stop within %g s", MOUNTS_STOP_SECONDS)
        finally:
            await self.stop()

    def _drain(self) -> None:
        self.drain.refuse_new()  # Daphne listens until its end: a client that returned would be closed a second time
        for connection in list(self.hub.by_socket.values()):
            with self.hub.isolated("A connection could not be closed"):
                connection.close(close_codes.RECONNECT, "The server is restarting")

    async def _keep_trying(self) -> None:
        while not self.running:
            await asyncio.sleep(RETRY_SECONDS)
            try:
                await self.started()
            except errors.NotStarted:
                continue  # already logged
        if self.running:
            self.control.introduce()
