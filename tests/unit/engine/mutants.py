"""Faults of the engines, put in on purpose. `test_mutants` requires the suite to find each of them.

The first twelve of each engine are those that an earlier suite did not find.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.unit.engine.patches import Patch


@dataclass(frozen=True, slots=True)
class Mutant:
    """`found_by`: tests of `Conformance` or `FailureConformance`, at least one of which fails."""

    name: str
    patches: tuple[Patch, ...]
    found_by: tuple[str, ...]


def _mutant(name: str, found_by: str, *changes: tuple[str, str, str]) -> Mutant:
    return Mutant(name, tuple(Patch(*change) for change in changes), tuple(found_by.split()))


_LOCAL = "fanfare.engine.local."
_POSTGRES = "fanfare.engine.postgres."
_REDIS = "fanfare.engine.redis."
_LUA = "fanfare.engine.redis.scripts:"
_SQL = "fanfare.engine.postgres.database:functions.sql"

GAP = "test_frozen_worker_gets_every_entry_or_reports_a_gap"
CUT_GAP = "test_worker_that_is_cut_off_until_the_log_is_trimmed_gets_every_entry_or_reports_a_gap"
CONSUMER = "test_consumer_gets_every_entry_of_its_kinds_after_a_trim"
TRANSIENT = "test_transient_consumer_begins_at_the_newest_entry"
WRITTEN = "test_when_written_waits_for_a_slow_store"
AWAY = "test_store_away_refuses_in_time_and_recovers_by_itself"
KILLED = "test_departure_of_a_killed_worker_is_announced_once_within_the_lease"
RESTORE = "test_no_position_is_given_twice_after_a_restore"
AT_ONCE = "test_publication_straight_after_a_restore_gets_no_position_of_before"
KEY = "test_idempotency_key_outlives_seconds_and_its_publisher"
TRIMMED = "test_kept_entries_survive_the_trim"
LATE = "test_late_record_of_a_session_survives_the_trim"
TORN = "test_publications_of_one_channel_are_written_together_or_not_at_all"
LEASE = "test_lease_of_a_killed_worker_passes_on_to_one_worker"
CUT_LEASE = "test_lease_of_a_cut_off_worker_is_lost_before_another_gets_it"
ORDER = "test_entries_of_concurrent_processes_arrive_once_and_in_one_order"
SHARED = "test_snapshots_of_one_channel_that_are_answered_together_are_read_once"
INTEREST = "test_entries_of_other_channels_are_not_delivered"
OCCUPIED = "test_channel_is_occupied_and_vacated_once_for_all_workers"
TAKEN = "test_only_the_previous_holder_gets_session_taken"
OLDER = "test_record_of_a_previous_holder_does_not_replace_the_newer_one"
MEMBERS = "test_only_the_first_and_last_connection_of_a_user_are_announced"
PARTIAL = "test_recovery_is_refused_with_a_reason_and_never_partial"
BUDGET = "test_budget_holds_for_all_workers_and_refuses_whole_calls"
BARRIER = "test_delivery_continues_a_snapshot_without_gap_or_repeat"
CHUNKS = "test_long_recovery_comes_in_chunks_while_more_is_published"
BACKLOG = "test_large_backlog_is_delivered_in_order_and_in_several_steps"
SOCKET = "test_join_of_a_socket_as_another_user_ends_the_membership_of_the_first"
FROZEN = "test_frozen_worker_and_the_others_agree_about_its_members"

LOCAL = (
    _mutant(
        "a socket keeps its first user",
        SOCKET,
        (f"{_LOCAL}presence:Subscribe.run", "owner is not None and owner != user_id", "False"),
    ),
    _mutant("gaps are never reported", GAP, (f"{_LOCAL}reader:LogReader._look", 'return "trimmed"', "pass")),
    _mutant(
        "the trim holds nothing for consumers",
        CONSUMER,
        (
            f"{_LOCAL}maintenance:Trim._trim",
            "AND (id <= ? OR {held.is_free})",
            "AND (id <= ? OR TRUE)",
        ),
    ),
    _mutant(
        "when_written calls at once",
        WRITTEN,
        (f"{_LOCAL}engine:LocalEngine.when_written", "if self._worker is None:", "if True:"),
    ),
    _mutant(
        "subscriptions register no interest",
        INTEREST,
        (
            f"{_LOCAL}engine:LocalEngine.set_subscribers",
            "self._worker.reader.local.subscribe(app, channel, count > 0)",
            "pass",
        ),
    ),
    _mutant("a leave is not retried", AWAY, (f"{_LOCAL}worker:Worker._left", "operation.failed = True", "pass")),
    _mutant(
        "dead workers are never removed",
        KILLED,
        (f"{_LOCAL}worker:Worker._remove_dead", "if lock.acquire():", "if False:"),
    ),
    _mutant(
        "epochs never change",
        RESTORE,
        (f"{_LOCAL}schema:new_epoch", "return ", 'return "00000000" or '),
    ),
    _mutant(
        "keys are forgotten after a second",
        KEY,
        (f"{_LOCAL}appends:Append._append", "interface.IDEMPOTENCY_SECONDS", "1"),
    ),
    _mutant(
        "late sessions are dropped",
        LATE,
        (f"{_LOCAL}maintenance:Trim.run", "now_s - interface.LATE_SECONDS", "now_s"),
    ),
    _mutant(
        "health is always good",
        AWAY,
        (f"{_LOCAL}worker:Worker.problem", "if self._commits", "if False and self._commits"),
    ),
    _mutant(
        "appends are torn",
        TORN,
        (
            f"{_LOCAL}engine:LocalEngine.append",
            "operation = appends.AwaitedAppend(publications, loop, budget)",
            (
                "[self._commits.submit(appends.AwaitedAppend([one], loop)) for one in publications[:-1]]; "
                "operation = appends.AwaitedAppend(publications[-1:], loop, budget)"
            ),
        ),
    ),
    _mutant("a lease has two holders", LEASE, (f"{_LOCAL}locks:Leases.acquire", "if lock.acquire():", "if True:")),
    # -- others --------------------------------------------------------------------------------------------------------
    _mutant(
        "members of a dead worker leave twice",
        KILLED,
        (
            f"{_LOCAL}presence:RemoveWorker.run",
            "def run(self, transaction: Transaction) -> None:",
            (
                "def run(self, transaction: Transaction) -> None:\n"
                "    transaction.log(interface.Kind.MEMBER_REMOVED, '1', 'presence-c', b'', user_id='ann')"
            ),
        ),
    ),
    _mutant(
        "subscriptions are answered before the backlog is delivered",
        f"{ORDER} {BARRIER}",
        (
            f"{_LOCAL}reader:LogReader._step",
            "if self._backlog:\n        reason = self._hand_over()",
            (
                "for subscription, answer in answers:\n        self.answer(subscription, answer)\n"
                "    answers = []\n    if self._backlog:\n        reason = self._hand_over()"
            ),
        ),
    ),
    _mutant(
        "each subscription reads its own snapshot",
        SHARED,
        (f"{_LOCAL}reader:Snapshot._once", "if key in self._known:", "if False:"),
    ),
    _mutant(
        "every worker announces that a channel is occupied",
        OCCUPIED,
        (f"{_LOCAL}counts:_store", "and not _is_occupied(cursor, app, channel):\n", "and True:\n"),
    ),
    _mutant(
        "a session is taken without a word to its holder",
        TAKEN,
        (f"{_LOCAL}sessions:TakeSession.run", "if before is not None:", "if False:"),
    ),
    _mutant(
        "an older holder's record replaces the newer one",
        OLDER,
        (f"{_LOCAL}sessions:SaveSession.run", "WHERE holder IN ('', ?)", "WHERE 1 OR holder = ?"),
    ),
    _mutant(
        "every connection of a user is announced",
        MEMBERS,
        (f"{_LOCAL}presence:Subscribe.run", "if not present:", "if True:"),
    ),
    _mutant(
        "an expired position is recovered in part",
        PARTIAL,
        (f"{_LOCAL}recovery:RecoveryReader._after", '"position_expired"', "None"),
    ),
    _mutant(
        "a budget counts calls and not publications",
        BUDGET,
        (f"{_LOCAL}appends:Append._spend", "len(self.publications)", "1"),
    ),
    _mutant(
        "a step of the backlog loses its last entry",
        BACKLOG,
        (f"{_LOCAL}reader:LogReader._hand_over", "self._deliver(step)", "self._deliver(step[:-1] or step)"),
    ),
    _mutant(
        "the trim deletes kept entries",
        TRIMMED,
        (f"{_LOCAL}maintenance:Trim._trim", 'AND id <= ? AND "offset" IS NULL', "AND id <= ?"),
    ),
)

POSTGRES = (
    _mutant(
        "a socket keeps its first user", SOCKET, (_SQL, "AND m.user_id <> p_user[v_i] RETURNING", "AND false RETURNING")
    ),
    _mutant(
        "gaps are never reported", f"{GAP} {CUT_GAP}", (f"{_POSTGRES}reader:Reader._gap", 'return "trimmed"', "pass")
    ),
    _mutant("the trim holds nothing for consumers", CONSUMER, (_SQL, "(v_kinds >> kind) & 1 = 0", "true")),
    _mutant(
        "when_written calls at once",
        WRITTEN,
        (f"{_POSTGRES}engine:PostgresEngine.when_written", "self._here().when_written(then)", "then()"),
    ),
    _mutant(
        "subscriptions register no interest",
        INTEREST,
        (f"{_POSTGRES}worker:Worker.set_subscribers", "if channel != interface.CONNECTIONS:", "if False:"),
    ),
    _mutant(
        "a leave is not retried",
        AWAY,
        ("fanfare.engine.leaves:Leaves.begin", "leave.failed = True", "pass"),
    ),
    _mutant(
        "dead workers are never removed",
        KILLED,
        (_SQL, "IF NOT FOUND THEN\n        RETURN false;", "IF true THEN\n        RETURN false;"),
    ),
    _mutant(
        "epochs never change",
        f"{RESTORE} {AT_ONCE}",
        (_SQL, "WHERE split_part(s.server, ':', 3) <> v_file", "WHERE false"),
    ),
    _mutant(
        "keys are forgotten after a second",
        KEY,
        (_SQL, "clock_timestamp() + 600 * interval '1 second'", "clock_timestamp() + 1 * interval '1 second'"),
    ),
    _mutant(
        "late sessions are dropped",
        LATE,
        (_SQL, "expires <= clock_timestamp() - 86400 * interval '1 second'", "expires <= clock_timestamp()"),
    ),
    _mutant(
        "health is always good", f"{AWAY} {CUT_LEASE}", (f"{_POSTGRES}worker:Worker.problem", "if ", "if False and ")
    ),
    _mutant(
        "appends are torn",
        TORN,
        (
            f"{_POSTGRES}worker:Worker.append",
            "self.submit(wanted, settled)",
            (
                "[self.submit([one]) for one in wanted[:-1]]; self.submit(wanted[-1:], "
                "lambda rows, error: settled({n: rows[0] for n in range(len(wanted))} if rows else {}, error))"
            ),
        ),
    ),
    _mutant(
        "a lease has two holders",
        LEASE,
        (_SQL, "WHERE l.worker = excluded.worker OR l.until < clock_timestamp()", "WHERE true"),
    ),
    # -- others --------------------------------------------------------------------------------------------------------
    _mutant(
        "members of a dead worker leave twice",
        KILLED,
        (
            _SQL,
            "PERFORM {schema}.depart_{form}(r.app, r.channel, r.user_id);",
            (
                "PERFORM {schema}.depart_{form}(r.app, r.channel, r.user_id); "
                "PERFORM {schema}.depart_{form}(r.app, r.channel, r.user_id);"
            ),
        ),
    ),
    _mutant(
        "the departure of a user is announced with each connection",
        f"{KILLED} {MEMBERS}",
        (
            _SQL,
            "channel = p_channel AND user_id = p_user) THEN\n        RETURN;",
            "channel = p_channel AND user_id = p_user) THEN\n        NULL;",
        ),
    ),
    _mutant(
        "a lease lives as long as its worker believes",
        CUT_LEASE,
        (f"{_POSTGRES}leases:Leases.lose_all", "lease.lost.set()", "pass"),
    ),
    _mutant(
        "snapshots are read after the entries, in another transaction",
        f"{ORDER} {BARRIER}",
        (
            f"{_POSTGRES}reader:Reader._look",
            "ISOLATION LEVEL REPEATABLE READ READ ONLY",
            "ISOLATION LEVEL READ COMMITTED",
        ),
        (
            f"{_POSTGRES}reader:Reader._look",
            "cursors = {",
            "await connection.execute('SELECT pg_sleep(0.01)'); cursors = {",
        ),
    ),
    _mutant(
        "ids are given outside of the lock",
        ORDER,
        (_SQL, "SELECT last_value + CASE", "PERFORM pg_sleep(0.001); SELECT last_value + CASE"),
        (_SQL, "PERFORM pg_advisory_xact_lock(", "PERFORM pg_try_advisory_xact_lock("),
    ),
    _mutant(
        "each subscription reads its own snapshot",
        SHARED,
        (
            f"{_POSTGRES}reader:_questions",
            'asked["members"] = where',
            (
                'own = type("Own", (str,), {"of": wanted, "__hash__": lambda one: id(one.of), '
                '"__eq__": lambda one, other: one.of is other.of}); asked["members"] = (own(where[0]), where[1])'
            ),
        ),
    ),
    _mutant(
        "every worker announces that a channel is occupied",
        OCCUPIED,
        (_SQL, "IF NOT v_present AND p_channel[v_i] <> '' THEN", "IF p_channel[v_i] <> '' THEN"),
    ),
    _mutant(
        "a session is taken without a word to its holder",
        TAKEN,
        (_SQL, "IF v_session.holder <> '' AND", "IF false AND"),
    ),
    _mutant(
        "an older holder's record replaces the newer one",
        OLDER,
        (_SQL, "WHERE p_user[v_i] = '' OR s.holder IN ('', p_user[v_i])", "WHERE true"),
    ),
    _mutant(
        "every connection of a user is announced",
        MEMBERS,
        (_SQL, "IF NOT v_present THEN\n                        INSERT", "IF true THEN\n                        INSERT"),
    ),
    _mutant(
        "an expired position is recovered in part",
        PARTIAL,
        (_SQL, "reason := 'position_expired';", "reason := NULL;"),
    ),
    _mutant(
        "a budget counts calls and not publications",
        BUDGET,
        (_SQL, "v_spent + p_size[v_j]", "v_spent + 1"),
    ),
    _mutant(
        "a step of the backlog loses its last entry",
        BACKLOG,
        (
            f"{_POSTGRES}reader:Reader._step",
            "if not self._hand_over(step):",
            "if not self._hand_over(step[:-1]):",
        ),
    ),
    _mutant(
        "the trim deletes kept entries",
        TRIMMED,
        (_SQL, 'DELETE FROM {schema}.log WHERE "offset" IS NULL AND', "DELETE FROM {schema}.log WHERE"),
    ),
    _mutant(
        "a worker that was taken for dead goes on",
        FROZEN,
        (f"{_POSTGRES}worker:Worker._beat", "if not known or", "if"),
    ),
    _mutant(
        "a worker that was away removes the others",
        AWAY,
        (f"{_POSTGRES}worker:Worker._beat", "> leases.LEASE_S else ()", "> -1 else ()"),
    ),
)

REDIS = (
    _mutant(
        "a socket keeps its first user", SOCKET, (f"{_LUA}apply.lua", "depart(id, app, channel, socket) -- a", "-- a")
    ),
    _mutant(
        "gaps are never reported",
        CUT_GAP,
        (f"{_LUA}enter.lua", "reason = 'trimmed'", "reason = ''"),
        (f"{_LUA}enter.lua", "reason = 'worker_unknown'", "reason = ''"),
    ),
    _mutant(
        "a server with another run id and an older log is the same one",
        f"{RESTORE} {AT_ONCE}",
        (f"{_LUA}common.lua", "if state[1] == run then", "if state[1] then"),
        (f"{_LUA}common.lua", "if known ~= generation then", "if true then"),
    ),
    _mutant(
        "the trim holds nothing for consumers",
        CONSUMER,
        (f"{_LUA}beat.lua", "upto = math.min(upto, tonumber(position))", ""),
    ),
    _mutant(
        "a transient consumer is registered like the others",
        TRANSIENT,
        (f"{_LUA}apply.lua", "            if lasts then\n", "            if false then\n"),
    ),
    _mutant(
        "when_written calls at once",
        WRITTEN,
        (f"{_REDIS}engine:RedisEngine.when_written", "self._here().when_written(then)", "then()"),
    ),
    _mutant(
        "subscriptions register no interest",
        INTEREST,
        (
            f"{_REDIS}worker:Worker.set_subscribers",
            "self.of(app, channel).subscribe(app, channel, on=count > 0)",
            "pass",
        ),
    ),
    _mutant(
        "leaves are not repeated",
        AWAY,
        (f"{_REDIS}subscriptions:Subscriptions.repeat_leaves", "self.leave(key)", "pass"),
    ),
    _mutant(
        "dead workers are never removed",
        KILLED,
        (f"{_REDIS}worker:Worker.beaten", "self._reap(partition, life.decode())", "pass"),
    ),
    _mutant(
        "there is one epoch for ever",
        RESTORE,
        (f"{_LUA}common.lua", "return generation .. birth", "return 'once' .. birth"),
    ),
    _mutant(
        "keys are forgotten after a second",
        KEY,
        (f"{_LUA}append.lua", "'EX', IDEMPOTENCY_SECONDS", "'EX', 1"),
    ),
    _mutant(
        "late records of sessions are dropped", LATE, (f"{_LUA}apply.lua", "expires + LATE_MS <= now", "expires <= now")
    ),
    _mutant(
        "health is always good",
        AWAY,
        (
            f"{_REDIS}engine:RedisEngine.health",
            "problem = worker.problem() if worker is not None else None",
            "problem = None",
        ),
    ),
    _mutant(
        "appends are torn",
        TORN,
        (
            f"{_REDIS}appends:Appends._append",
            "except UnicodeEncodeError as error:",
            ("except UnicodeEncodeError as error:\n        self._append(publications[:1], self._loop.create_future())"),
        ),
    ),
    _mutant(
        "a lease has two holders", LEASE, (f"{_LUA}apply.lua", "owner ~= life and is_alive(owner)", "is_alive('none')")
    ),
    _mutant(
        "a lease of a cut-off worker is not lost",
        CUT_LEASE,
        (f"{_REDIS}leases:Leases.expire", "lease.lost.set()", "pass"),
    ),
    _mutant(
        "a reply is handled before the messages in front of it",
        f"{BARRIER} {ORDER}",
        (f"{_REDIS}wire:Wire.data_received", "            if messages:\n", "            if False:\n"),
    ),
    _mutant(
        "a snapshot is read for each subscriber",
        SHARED,
        (f"{_REDIS}calls:CallQueue._take", "GROUP_OPERATIONS", "1"),
    ),
    _mutant("budgets are not counted", BUDGET, (f"{_LUA}append.lua", "redis.call('SET', key, spent, 'PX', 2000)", "")),
    _mutant(
        "a previous holder overwrites a newer record",
        OLDER,
        (
            f"{_LUA}apply.lua",
            "if former == holder or (before and before ~= '' and before ~= holder) then",
            "if false then",
        ),
    ),
    _mutant(
        "each connection of a user is announced",
        MEMBERS,
        (
            f"{_LUA}presence.lua",
            "redis.call('HINCRBY', P .. 'u:' .. id, user, 1) > 1",
            "redis.call('HINCRBY', P .. 'u:' .. id, user, 1) < 1",
        ),
    ),
    _mutant(
        "a recovery is given although entries are missing",
        PARTIAL,
        (f"{_LUA}apply.lua", "answer[3] = 'position_expired'", "answer[3] = ''"),
    ),
)
