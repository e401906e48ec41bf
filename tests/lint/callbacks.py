"""Every callback, timer, thread and task of the package, and how an exception in it is isolated.

`places` finds them in the source. `TABLE` says for each what takes the exception, and which test proves it; the unit
test tests/unit/lint/test_callbacks.py compares the two, so that a new place without a row fails.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[2] / "apps/fanfare"

# Calls that hand over a function, and the index of the argument that is the function.
HANDED_TO = {
    "add_done_callback": 0,
    "add_reader": 1,
    "add_signal_handler": 1,
    "call_at": 1,
    "call_later": 1,
    "call_soon": 0,
    "call_soon_threadsafe": 0,
    "on_commit": 0,
    "on_control": 1,
    "on_gap": 0,
    "on_message": 1,
    "on_session_taken": 0,
    "on_terminated": 1,
    "run_in_executor": 1,
    "spawn": 1,
    "to_thread": 0,
}
# The same where the name alone says too little: what the name of the object contains.
HANDED_TO_SOME = {
    "connect": (("signal",), 0),
    "open": (("engine",), 0),
    "run": (("tasks", "supervisor"), 1),
    "submit": (("executor",), 0),
}
MADE_WITH = {"Thread", "Timer", "TimerWheel"}


class Place(NamedTuple):
    """`path` below the package. `where`: the function with the call. `given`: the source of what is called later."""

    path: str
    where: str
    call: str
    given: str


class Injection(NamedTuple):
    """`is_slow`: a timer that comes only after seconds."""

    place: str
    is_slow: bool = False


def needs_row(place: Place) -> bool:
    return place.call not in ISOLATING and not place.path.startswith(tuple(SUITES))


def places(root: Path = PACKAGE) -> Iterator[Place]:
    for path in sorted(root.rglob("*.py")):
        finder = _Finder(path.relative_to(root).as_posix())
        finder.visit(ast.parse(path.read_text(encoding="utf-8")))
        yield from finder.found


class _Finder(ast.NodeVisitor):
    def __init__(self, path: str) -> None:
        self.found: list[Place] = []
        self._path = path
        self._stack: list[str] = []

    def _inside(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._stack.append(node.name)
        self.generic_visit(node)
        self._stack.pop()

    visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _inside

    def visit_Call(self, node: ast.Call) -> None:
        call, given = _handed_over(node)
        if call:
            self.found.append(Place(self._path, ".".join(self._stack), call, given))
        self.generic_visit(node)


def _handed_over(node: ast.Call) -> tuple[str, str]:
    function = node.func
    if isinstance(function, ast.Name):
        name, owner = function.id, ""
    elif isinstance(function, ast.Attribute):
        name, owner = function.attr, ast.unparse(function.value).lower()
    else:
        return "", ""
    if name in MADE_WITH:
        targets = [keyword.value for keyword in node.keywords if keyword.arg == "target"] or node.args[-1:]
        return name, ast.unparse(targets[0]) if targets else ""
    index = HANDED_TO.get(name)
    if index is None and name in HANDED_TO_SOME:
        parts, index = HANDED_TO_SOME[name]
        if not any(part in owner for part in parts):
            return "", ""
    if index is None or len(node.args) <= index:
        return "", ""
    return name, ast.unparse(node.args[index])


# What takes the exception.
CALLER = "the code that awaits it"
CLIENT = "a guard that closes the one connection"
GUARD = "a guard around the call, which logs and counts"
LOOP = "the event loop, which logs it; the call is of one object and comes once"
OBEY = "Hub._obey, which logs and counts"
PLAIN = "the login view: it only counts and logs"
PURPOSE = "its caller, on purpose"
REACHED = "a test only"
RESCHEDULED = "the event loop, which logs it; the next call was scheduled before"
SUPERVISOR = "the supervisor, which logs, counts and restarts"
TASK = "the supervisor, which logs and counts"
WHEEL = "TimerWheel, which logs, counts and tries again"

ENGINE, HUB, JOBS = "unit/engine/", "unit/hub/test_hub.py::", "unit/jobs/test_runner.py::"
QUEUE = f"{ENGINE}test_commit_queue.py::"
POSTGRES = f"{ENGINE}test_injections.py::test_exception_in_one_callback_of_postgres_stops_nothing_else"
WHEEL_TEST = (
    "unit/runtime/test_timer_wheel.py::test_exception_of_one_entry_is_logged_and_the_others_of_the_turn_are_served"
)
RESTART_TEST = "unit/runtime/test_supervisor.py::test_long_running_task_is_restarted_after_a_growing_pause"
FAILED_TEST = "unit/runtime/test_supervisor.py::test_failure_of_one_off_task_is_logged_and_counted"

SLOW = "slow "  # before an injection into a timer that comes only after seconds

# Packages with a test of their own, which compares its injections with `places`.
SUITES = {"engine/redis/": "unit/engine/test_injections.py"}

# Calls whose callee isolates what it is given: they need no row, and `injections` may still name one.
ISOLATING = {"on_control", "on_message", "on_session_taken"}  # tests/unit/hub: test_failing_command_...

# By path and what is handed over: what takes the exception, and the proof: a test, or the function
# ("module:Class.function") into which tests/integration/test_isolation.py injects an exception.
TABLE: dict[tuple[str, str], tuple[str, str]] = {
    ("applications/models/announced.py", "functools.partial(_announce_waiting, connection)"): (
        GUARD,
        "unit/applications/test_loading.py::test_failed_announcement_raises_nothing_after_the_commit",
    ),
    ("applications/database.py", "call"): (
        CALLER,
        "unit/applications/test_loading.py::test_unexpected_failure_is_logged_with_its_traceback_and_tried_again",
    ),
    ("applications/loading.py", "lambda: self._follow(first_try)"): (
        SUPERVISOR,
        f"{SLOW}fanfare.applications.loading:Loader._catch_up",
    ),
    ("apps.py", "older_layout.refuse"): (PURPOSE, "unit/conf/test_older_layout.py::"),
    ("apps.py", "models.fixture_loaded"): (PURPOSE, "unit/applications/test_models.py::"),
    ("api/members.py", "hub.engine.update_member"): (CALLER, "unit/api/"),
    ("api/queries.py", "hub.engine.open_channel"): (CALLER, "unit/api/"),
    ("api/members.py", "hub.engine.lease_member"): (CALLER, "unit/api/"),
    ("api/members.py", "hub.engine.release_member"): (CALLER, "unit/api/"),
    ("api/revisions.py", "hub.engine.revise"): (CALLER, "unit/api/"),
    ("api/streams.py", "hub.engine.write_streams"): (CALLER, "unit/api/"),
    ("apps.py", "permissions.application_deleted"): (PURPOSE, "unit/console/"),
    ("apps.py", "permissions.application_saved"): (PURPOSE, "unit/console/"),
    ("apps.py", "permissions.migrated"): (PURPOSE, "unit/console/"),
    ("channel_layer/core.py", "self._transport.post(mailbox, message, **options)"): (TASK, FAILED_TEST),
    ("channel_layer/transport.py", "coroutine"): (TASK, FAILED_TEST),
    ("channel_layer/transport.py", "self._open()"): (TASK, FAILED_TEST),
    ("channel_layer/transport.py", "self._deliver"): (GUARD, f"{QUEUE}test_delivery_that_raises_is_a_gap"),
    ("channel_layer/transport.py", "current.current().append_blocking"): (CALLER, "unit/channel_layer/"),
    ("console/live.py", "_disconnected(receive, life)"): (TASK, FAILED_TEST),
    ("console/board.py", "self._take()"): (TASK, FAILED_TEST),
    ("console/connections.py", "self._on_disconnect"): (OBEY, "unit/console/"),
    ("console/metrics.py", "importlib.import_module"): (CALLER, "unit/console/"),
    ("console/reports.py", "self._ask()"): (TASK, FAILED_TEST),
    ("console/permissions.py", "create"): (GUARD, "unit/console/"),
    ("console/requests.py", "run"): (CALLER, "unit/console/"),
    ("console/survey.py", "self._reply(asked)"): (TASK, FAILED_TEST),
    ("console/tails.py", "self._run()"): (TASK, FAILED_TEST),
    ("console/tails.py", "self._read_log(partition, reading)"): (TASK, FAILED_TEST),
    ("console/watches.py", "self._turn"): (LOOP, "the next change of the watches schedules it again"),
    ("console/worker_control.py", "self._drain.close(clients)"): (TASK, FAILED_TEST),
    ("engine/local/commit_queue.py", "loop.call_soon"): (
        LOOP,
        "it fails on a closed loop only, which runs no callback",
    ),
    ("engine/local/commit_queue.py", "self._write_on_loop"): (
        GUARD,
        "fanfare.engine.local.log_file:LogFile.write",
    ),
    ("engine/local/commit_queue.py", "self._work"): (
        GUARD,
        f"{QUEUE}test_thread_survives_a_fault_of_the_queue_and_refuses_what_waited",
    ),
    ("engine/local/commit_queue.py", "self._settle"): (
        GUARD,
        f"{QUEUE}test_exception_in_one_callback_does_not_stop_the_others",
    ),
    ("engine/local/counts.py", "self.write"): (LOOP, "fanfare.engine.local.counts:SubscriberCounts.write"),
    ("engine/local/counts.py", "self._announce"): (LOOP, "fanfare.engine.local.counts:_announce"),
    ("engine/local/engine.py", "self._commits.stop"): (
        CALLER,
        f"{QUEUE}test_stopped_queue_has_written_pending_operations",
    ),
    ("engine/local/engine.py", "self._commits.expire"): (
        LOOP,
        f"{QUEUE}test_timer_of_a_publication_that_raises_leaves_the_others",
    ),
    ("engine/local/engine.py", "lambda _: timer.cancel()"): (LOOP, "it cannot raise"),
    ("engine/local/read_scheduler.py", "self._look"): (LOOP, "fanfare.engine.local.read_scheduler:ReadScheduler._look"),
    ("engine/local/read_scheduler.py", "self._rested"): (
        LOOP,
        f"{ENGINE}test_read_scheduler.py::test_rest_whose_end_failed_is_ended_by_the_timer",
    ),
    ("engine/local/read_scheduler.py", "self._notified"): (
        LOOP,
        f"{QUEUE}test_notification_that_raises_comes_again",
    ),
    ("engine/local/reader.py", "self._continue"): (LOOP, "fanfare.engine.local.reader:LogReader.advance"),
    ("engine/local/worker.py", "self._queries.close"): (CALLER, f"{ENGINE}test_local.py::"),
    ("engine/local/worker.py", "query"): (CALLER, f"{ENGINE}conformance.py::"),
    ("engine/local/worker.py", "call"): (GUARD, f"{SLOW}fanfare.engine.local.disk_space:Reserve.restore"),
    ("engine/local/worker.py", "self._restart()"): (TASK, f"{QUEUE}test_restart_after_a_gap_survives_any_exception"),
    ("engine/local/worker.py", "turn"): (RESCHEDULED, f"{SLOW}fanfare.engine.local.worker:Worker._tick"),
    ("engine/local/worker.py", "lambda: self._shrink(must=operation.must)"): (
        LOOP,
        f"{SLOW}fanfare.engine.local.worker:Worker._trim",
    ),
    ("engine/local/worker.py", "self._measured()"): (TASK, f"{SLOW}fanfare.engine.local.worker:Worker._measured"),
    ("engine/postgres/database.py", "end"): (LOOP, POSTGRES),
    ("engine/postgres/leases.py", "self.lose_all"): (LOOP, POSTGRES),
    ("engine/shared_store.py", "check"): (CALLER, POSTGRES),
    ("engine/shared_store.py", "self._disconnect"): (CALLER, POSTGRES),
    ("engine/shared_store.py", "self._append_here"): (CALLER, POSTGRES),
    ("engine/postgres/engine.py", "ask"): (CALLER, POSTGRES),
    ("engine/postgres/worker.py", "_prepare"): (CALLER, POSTGRES),
    ("engine/postgres/worker.py", "check"): (CALLER, POSTGRES),
    ("engine/postgres/worker.py", "functools.partial(self._persist, function)"): (SUPERVISOR, POSTGRES),
    ("engine/postgres/worker.py", "functools.partial(self._persist, self._restart)"): (SUPERVISOR, POSTGRES),
    ("engine/postgres/counts.py", "self.write"): (LOOP, POSTGRES),
    ("engine/postgres/counts.py", "self._announce"): (LOOP, POSTGRES),
    ("engine/postgres/leases.py", "self._release(name)"): (TASK, POSTGRES),
    ("engine/postgres/engine.py", "self._worker.reader.hint"): (LOOP, POSTGRES),
    ("engine/postgres/writer.py", "self._expire"): (LOOP, POSTGRES),
    ("engine/postgres/writer.py", "self._notify_later"): (LOOP, POSTGRES),
    ("hub/activity.py", "functools.partial(activity.refused, what, reason, text, **more)"): (LOOP, "it only records"),
    ("hub/activity.py", "activity.count"): (LOOP, "it cannot raise"),
    ("hub/attempts.py", "self._ask_after(pause_s)"): (
        CLIENT,
        "unit/hub/test_hub.py::test_repeated_subscribe_that_raises_closes_its_connection",
    ),
    ("hub/hub.py", "functools.partial(_call, then)"): (
        GUARD,
        "unit/api/test_direct.py::test_unexpected_exception_is_answered_with_500",
    ),
    ("hub/hub.py", "self._look_at_closing"): (WHEEL, WHEEL_TEST),
    ("hub/hub.py", "self._deliver"): (GUARD, f"{QUEUE}test_delivery_that_raises_is_a_gap"),
    ("hub/hub.py", "self._sweep"): (RESCHEDULED, f"{SLOW}fanfare.hub.hub:Hub._forget_closed"),
    ("hub/on_any.py", "self._drain()"): (
        CLIENT,
        "unit/hub/test_writers.py::test_send_that_raises_drops_its_client_and_is_logged",
    ),
    ("hub/pacing.py", "self._look"): (CLIENT, f"{HUB}test_callback_of_a_paced_connection_that_raises_closes_it"),
    ("integration/broadcasts.py", "self._saved"): (
        PURPOSE,
        "unit/integration/test_broadcasts.py::test_invalid_channel_of_a_declaration_is_raised_by_the_save",
    ),
    ("integration/broadcasts.py", "self._deleted"): (
        PURPOSE,
        "unit/integration/test_broadcasts.py::test_invalid_channel_of_a_declaration_is_raised_by_the_save",
    ),
    ("integration/after_commit.py", "callback"): (
        GUARD,
        "unit/integration/test_publishing.py::test_exception_of_any_kind_after_the_commit_is_logged",
    ),
    ("integration/member_leases.py", "self._keep"): (
        GUARD,
        "unit/integration/test_member_leases.py::test_member_is_renewed_and_a_failed_renewal_is_repeated",
    ),
    ("integration/stream_flusher.py", "self._run"): (
        GUARD,
        "unit/integration/test_streams.py::test_failure_of_one_stream_leaves_the_thread_to_the_others",
    ),
    ("integration/relay.py", "one.run"): (SUPERVISOR, f"{SLOW}fanfare.integration.relay:Outbox.look"),
    ("integration/after_commit.py", "moved"): (
        GUARD,
        "unit/integration/test_publishing.py::test_exception_of_any_kind_after_the_commit_is_logged",
    ),
    ("jobs/leases.py", "_cancel_when_lost(lease, block)"): (TASK, FAILED_TEST),
    ("jobs/log_consumer.py", "started(partition)"): (SUPERVISOR, RESTART_TEST),
    ("jobs/runner.py", "lambda: self._perform(job, status)"): (
        SUPERVISOR,
        f"{JOBS}test_long_running_job_that_raises_is_started_again_after_growing_pauses",
    ),
    ("middleware.py", "_log_failure"): (
        PLAIN,
        "unit/middleware/test_login_throttle.py::test_failures_are_logged_without_the_password",
    ),
    ("middleware.py", "self._succeeded"): (
        PLAIN,
        "unit/middleware/test_login_throttle.py::test_failures_are_logged_without_the_password",
    ),
    ("protocol/page_sessions.py", "self._load(ready)"): (
        GUARD,
        "fanfare.engine.local.engine:LocalEngine.load_session",
    ),
    ("protocol/page_sessions.py", "self._take()"): (
        TASK,
        "unit/protocol/test_page_sessions.py::test_page_whose_token_cannot_be_taken_reconnects_or_gets_resume_failed",
    ),
    ("protocol/revocations.py", "self._terminate"): (OBEY, "fanfare.protocol.revocations:Revocations._terminate"),
    ("protocol/revocations.py", "self._on_gap"): (
        GUARD,
        "unit/protocol/test_session_owners.py::test_failure_to_save_one_page_leaves_the_others",
    ),
    ("protocol/revocations.py", "self._read(key)"): (TASK, FAILED_TEST),
    ("protocol/revocations.py", "self._check_held()"): (TASK, FAILED_TEST),
    ("protocol/session_owners.py", "lambda page: page.due()"): (
        WHEEL,
        "fanfare.protocol.page_sessions:PageSession.due",
    ),
    ("protocol/session_owners.py", "self._leave(owned, fields['changed_s'])"): (TASK, FAILED_TEST),
    ("protocol/session_owners.py", "self._save_all"): (
        GUARD,
        "unit/protocol/test_session_owners.py::test_failure_to_save_one_page_leaves_the_others",
    ),
    ("protocol/sessions.py", "self._not_authorized_in_time"): (LOOP, "the client's next frame shows it"),
    ("protocol/sessions.py", "self._end_expired"): (LOOP, "the next subscribe with the token is refused"),
    ("protocol/sessions.py", "self._do_read_revocations(effect)"): (TASK, FAILED_TEST),
    ("protocol/sessions.py", "self._send_history(effect)"): (
        TASK,
        "unit/protocol/test_history_frames.py::test_history_that_cannot_be_read_is_refused_and_logged",
    ),
    ("protocol/sessions.py", "self._answered(names.STATE_EVENT, effect.channel, update)"): (
        TASK,
        "unit/protocol/test_client_events.py::test_update_of_a_member_that_fails_is_reported",
    ),
    ("protocol/sessions.py", "self._hub.engine.update_member"): (
        CALLER,
        "unit/protocol/test_client_events.py::test_update_of_a_member_that_fails_is_reported",
    ),
    ("protocol/sessions.py", "answered"): (TASK, FAILED_TEST),
    ("protocol/streams.py", "end_blocking"): (CALLER, "unit/integration/test_streams.py::"),
    ("protocol/termination.py", "functools.partial(_terminate, hub)"): (
        OBEY,
        "fanfare.protocol.termination:_terminate",
    ),
    ("runtime/log_throttle.py", "self._summarize"): (LOOP, "the next line opens a new interval"),
    ("runtime/supervisor.py", "_pending.discard"): (LOOP, "it cannot raise"),
    ("runtime/supervisor.py", "functools.partial(self._ended, expected)"): (LOOP, FAILED_TEST),
    ("runtime/supervisor.py", "self._supervise(status, function, expected, backoff or Backoff(), is_ours)"): (
        TASK,
        RESTART_TEST,
    ),
    (
        "runtime/supervisor.py",
        "lambda _: None if status.state is State.DONE else status.enter(State.STOPPED)",
    ): (LOOP, "it cannot raise"),
    ("runtime/timer_wheel.py", "self._next_turn"): (RESCHEDULED, WHEEL_TEST),
    ("server/draining.py", "end"): (LOOP, "unit/server/test_draining.py::"),
    ("server/draining.py", "proceed"): (LOOP, "unit/server/test_draining.py::"),
    ("server/draining.py", "stop"): (LOOP, "unit/server/test_draining.py::"),
    ("server/draining.py", "run()"): (TASK, "unit/server/test_draining.py::"),
    ("server/draining.py", "begin"): (LOOP, "the signal comes again"),
    ("hub/telemetry.py", "self._announce"): (LOOP, "the event is in the log; its deliveries have no span"),
    ("server/lifespan.py", "_forget_rule_answers"): (
        OBEY,
        "unit/server/test_lifespan.py::test_termination_and_gap_empty_the_cache_of_rules",
    ),
    ("server/lifespan.py", "rule_cache.cache.clear"): (
        GUARD,
        "unit/protocol/test_session_owners.py::test_failure_to_save_one_page_leaves_the_others",
    ),
    ("server/lifespan.py", "self.telemetry.run"): (SUPERVISOR, "each span is made in a block that counts failures"),
    ("server/lifespan.py", "self._start()"): (
        GUARD,
        "unit/server/test_lifespan.py::test_any_other_failure_of_the_start_is_retried_inside_the_worker",
    ),
    ("server/lifespan.py", "self._stop_without_lifespan()"): (TASK, "unit/server/test_draining.py::"),
    ("server/lifespan.py", "self._keep_trying"): (SUPERVISOR, RESTART_TEST),
    ("server/lifespan.py", "self._follow_moves"): (SUPERVISOR, RESTART_TEST),
    ("server/lifespan.py", "current.import_next"): (
        CALLER,
        "`_follow_moves` logs what cannot be imported; the supervisor runs it again after anything else",
    ),
    ("server/lifespan.py", "current.follow_move"): (
        CALLER,
        "integration/test_moves.py::test_client_resumes_on_the_same_worker_after_a_move",
    ),
    ("server/lifespan.py", "functools.partial(parent_process.keep_alive, config)"): (SUPERVISOR, RESTART_TEST),
    ("server/lifespan.py", "functools.partial(parent_process.watch, parent)"): (SUPERVISOR, RESTART_TEST),
    ("server/lifespan.py", "functools.partial(streams.keep_ending_lapsed, self.hub, self.registry)"): (
        SUPERVISOR,
        RESTART_TEST,
    ),
    ("server/lifespan.py", "self.board.recent.run"): (SUPERVISOR, RESTART_TEST),
    ("server/lifespan.py", "self.board.watch"): (SUPERVISOR, RESTART_TEST),
    ("server/mounts.py", "self._start()"): (
        GUARD,
        "unit/server/test_mounts.py::test_a_start_that_fails_is_logged_and_leaves_the_other_mounts_running",
    ),
    ("server/mounts.py", "self._run()"): (
        GUARD,
        "unit/server/test_mounts.py::test_a_start_that_fails_is_logged_and_leaves_the_other_mounts_running",
    ),
    ("server/parent_process.py", "os.kill"): (LOOP, "unit/server/test_parent_process.py::"),
    ("server/probe.py", "self._try()"): (TASK, f"{SLOW}fanfare.server.probe:Probe._try"),
    ("server/schema.py", "database.run(self._ask)"): (GUARD, f"{SLOW}fanfare.server.schema:Schema._answer"),
    ("hub/on_uvicorn.py", "callback"): (LOOP, "it ends one response"),
    ("sockets/accept_gate.py", "self._serve"): (
        GUARD,
        "unit/sockets/test_accept_gate.py::test_handshake_that_fails_leaves_its_turn_to_the_next",
    ),
    ("sockets/direct_http.py", "self.timeout_keep_alive_handler"): (LOOP, "it closes one idle connection"),
    ("sockets/drain.py", "self._run()"): (
        TASK,
        "unit/sockets/test_drain.py::test_drain_that_fails_closes_its_connections_at_once",
    ),
    ("sockets/drain.py", "self._accepts()"): (TASK, FAILED_TEST),
    ("sockets/http_limits.py", "self._timed_out"): (WHEEL, WHEEL_TEST),
    ("sockets/http_limits.py", "self._rested"): (LOOP, "the client's connection ends at its timeout"),
    ("sockets/http_limits.py", "self._stop"): (LOOP, "it closes one idle connection"),
    ("sockets/http_limits.py", "self.transport.abort"): (LOOP, "the transport ends all the same"),
    ("sockets/keepalive.py", "self._due"): (WHEEL, WHEEL_TEST),
    ("sockets/asgi.py", "self._write"): (LOOP, "logging takes the errors of its handlers"),
    ("sockets/opening.py", "self._stop"): (LOOP, "it closes one idle connection"),
    ("sockets/protocol.py", "self._asgi.run(shared.app)"): (
        GUARD,
        "unit/sockets/test_protocol.py::test_message_that_asgi_does_not_allow_raises_in_the_application",
    ),
    ("sockets/protocol.py", "shared.tasks.discard"): (LOOP, "it cannot raise"),
    ("sockets/protocol.py", "self._end_turn"): (LOOP, "it cannot raise"),
    ("sockets/protocol.py", "self._read"): (CLIENT, "fanfare.sockets.protocol:WebSocketProtocol._handle"),
    ("sockets/protocol.py", "self._listener.end"): (LOOP, "fanfare.protocol.sessions:Session.end"),
    ("sockets/protocol.py", "callback or self.abort"): (LOOP, "the client's connection ends at its next byte"),
    ("sse/asgi.py", "_until_gone(receive, to_client)"): (TASK, "fanfare.sse.asgi:_until_gone"),
    ("sse/streams.py", "self.abort"): (LOOP, "the server ends all the same"),
    ("sse/streams.py", "self.end"): (LOOP, "the next heartbeat finds a client that is gone"),
    ("sse/streams.py", "self._beat"): (RESCHEDULED, "unit/sse/test_streams.py::"),
    ("sse/writer.py", "self._drain()"): (
        CLIENT,
        "unit/hub/test_writers.py::test_send_that_raises_drops_its_client_and_is_logged",
    ),
    ("testing/live_server.py", "close"): (REACHED, "unit/integration/test_live_server.py::"),
    ("webhooks/endpoint_queue.py", "self._send(chain, purges)"): (
        TASK,
        "fanfare.webhooks.endpoint_queue:EndpointQueue._send",
    ),
    ("webhooks/endpoint_queue.py", "functools.partial(self._ended, channels)"): (LOOP, "it cannot raise"),
    ("webhooks/endpoint_queue.py", "self._given_up"): (LOOP, "it only counts and logs"),
    ("webhooks/http_client.py", "look_up"): (
        CALLER,
        "unit/webhooks/test_http_client.py::test_fault_of_ours_is_a_logged_failure",
    ),
    ("webhooks/log_reader.py", "self._hub.count"): (LOOP, "it cannot raise"),
    ("webhooks/sender.py", "writer.run"): (
        SUPERVISOR,
        "unit/webhooks/test_sender.py::test_sender_that_fails_starts_again",
    ),
    ("webhooks/sender.py", "queue.run"): (SUPERVISOR, "fanfare.webhooks.endpoint_queue:EndpointQueue._fill"),
    ("webhooks/sender.py", "lambda _: self._ended(endpoint, name)"): (LOOP, "it cannot raise"),
    ("webhooks/service.py", "sending.run"): (SUPERVISOR, "fanfare.webhooks.sender:Sender._look"),
}

# While one of these raises, the worker is not ready.
RED = (
    "fanfare.engine.local.log_file:LogFile.write",
    "fanfare.engine.local.reader:LogReader.advance",
    "fanfare.hub.hub:Hub._deliver",
    "fanfare.hub.hub:Hub._obey",
)


def injections() -> list[Injection]:
    found = {proof for _, proof in TABLE.values() if proof.removeprefix(SLOW).startswith("fanfare.")}
    return [Injection(proof.removeprefix(SLOW), proof.startswith(SLOW)) for proof in sorted(found)]


INJECTIONS = injections()
