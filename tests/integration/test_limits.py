"""Every limit of docs/reference/limits.md that has a counter is exceeded, while a neighbour's latency is measured.

The refusal, the counter and the line in the log are asserted. `python -m tests.storms --attack` measures the 99th
percentile of the neighbours' delays.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.harness import servers, waiting
from tests.storms import __main__ as storms
from tests.storms import attacks, neighbours
from tests.unit.docs import pages

PAGE = pages.ROOT / "docs/reference/limits.md"
TABLES = ("Of requests", "Of connections", "Of storage")
ATTEMPTS = 5
NEIGHBOURS = 5
SECONDS = 0.5
MAX_RATIO = 1.2
NOISE_S = 0.005  # a difference of the medians below it is noise on a machine with other load

# Limits whose test takes too long or too much here; each has a test with smaller numbers.
ELSEWHERE = {
    "closed.by_server": "unit/sockets/test_protocol.py::test_unanswered_ping_is_counted",
    "http.evicted.silent": "unit/sockets/test_http_limits.py::test_silent_connection_is_closed_without_an_answer",
    "http.refused.pipelined": "unit/sockets/test_http_limits.py::test_flood_of_pipelined_requests_is_cut_off",
    "http.refused.body_timeout": "unit/server/test_request_bodies.py::test_dripping_body_times_out_with_408",
    "api.refused.408": "unit/api/test_requests.py::test_stalled_body_times_out_with_408",
    "api.refused.429": "unit/api/test_members.py::test_writes_of_one_member_are_limited_and_those_of_others_are_not",
    "pusher.refused.4100": "unit/protocol/test_state_machine.py::test_too_many_early_frames_close_with_4100",
    "resume.too_many_tokens": "unit/protocol/test_page_sessions.py::test_new_token_over_the_limit_is_not_resumed",
    "resume.record_full": "unit/protocol/test_page_sessions.py::test_unsubscribed_channels_make_room_in_the_record",
    "sockets.refused.connections": "unit/sockets/test_accept_gate.py::test_full_worker_refuses",
    "sockets.refused.memory": "unit/sockets/test_accept_gate.py::test_full_worker_refuses",
    "sockets.refused.rate": "unit/sockets/test_accept_gate.py::test_client_that_would_wait_too_long_is_refused",
    "sockets.refused.handshake_timeout": "unit/sockets/test_protocol.py::test_handshake_without_an_answer_is_a_503",
    "api.refused.503": "unit/engine/test_disk_space.py::test_log_refuses_publications_above_its_limit_and_names_it",
    "engine.evicted": "unit/engine/test_disk_space.py::"
    "test_histories_lose_their_oldest_entries_where_the_log_is_short_of_space",
    "engine.sessions_dropped": "unit/engine/test_statistics.py::test_only_the_newest_late_sessions_are_kept",
    "webhooks.dropped": "unit/webhooks/test_log_reader.py::test_endpoint_with_too_many_pending_deliveries_gets_no_more",
    "webhooks.trimmed": "unit/webhooks/test_sender.py::test_finished_deliveries_are_trimmed_counted_and_logged",
    "layer.full": "unit/channel_layer/test_specification.py::test_group_message_is_dropped_for_a_full_member_only",
}


# -- the tests ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(fleet: servers.Fleet) -> Iterator[servers.Server]:
    server = fleet.start("uvicorn", fleet.deployment(**attacks.SETTINGS))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def idle(fleet: servers.Fleet) -> Iterator[servers.Server]:
    """A server that is not attacked, to compare delays with."""
    server = fleet.start("uvicorn", fleet.deployment(**attacks.SETTINGS))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def attacker(server: servers.Server) -> Iterator[neighbours.Attacker]:
    with neighbours.Attacker(server) as attacker:
        yield attacker


def documented() -> set[str]:
    """The counters of the tables."""
    cells = [row[3] for heading in TABLES for row in pages.table(PAGE, heading)]
    return {name for cell in cells for name in re.findall(r"[a-z]+(?:\.\w+)+", cell)}


def test_every_documented_counter_has_an_attack() -> None:
    assert documented() == set(attacks.ATTACKS) | set(ELSEWHERE)
    for name in ELSEWHERE.values():
        path, _, test = name.partition("::")
        assert f"def {test}(" in (pages.ROOT / "tests" / path).read_text(encoding="utf-8"), name


def test_every_limit_with_a_setting_has_a_counter() -> None:
    for heading in TABLES:
        for name, _, setting, counter, _ in pages.table(PAGE, heading):
            if setting != "none":
                assert counter != "none", name


@pytest.mark.parametrize("counter", attacks.ATTACKS)
def test_limit_is_refused_counted_and_logged(server: servers.Server, counter: str) -> None:
    attack, limited = attacks.ATTACKS[counter], attacks.Limited(server.port, server.application)
    before = limited.counter(counter)
    attack.run(limited)
    waiting.until(lambda: limited.counter(counter) > before, attacks.PATIENCE, f"{counter} has grown")
    if attack.log:
        waiting.until(lambda: re.search(attack.log, server.log_text()), attacks.PATIENCE, f"the log has {attack.log!r}")


@pytest.mark.parametrize("counter", attacks.ATTACKS)
async def test_neighbours_are_not_slowed_down(
    server: servers.Server, idle: servers.Server, attacker: neighbours.Attacker, counter: str
) -> None:
    """The medians, repeated, because a busy machine has noisy moments."""
    figures = []
    async with neighbours.connected(server, idle, NEIGHBOURS) as connected:
        for _ in range(ATTEMPTS):
            attacker.begin(counter)
            delays_s = await connected.delays_s(SECONDS)
            await asyncio.to_thread(attacker.end)
            assert connected.closed == 0
            attacked, beside = (statistics.median(each or [SECONDS]) for each in delays_s)  # without an event: late
            figures.append((attacked, beside))
            if attacked <= beside * MAX_RATIO or attacked - beside < NOISE_S:
                return
    raise AssertionError(f"medians in seconds, attacked and idle: {figures}")


def test_command_refuses_an_unknown_attack(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["tests.storms", "--attack", "closed.slow", "closed.fast"])
    with pytest.raises(SystemExit):
        storms.main()
    assert "unknown counters: closed.fast;" in capsys.readouterr().err


def test_attacker_answers_after_an_attack_that_cannot_be_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], server: servers.Server
) -> None:
    def fail(_: attacks.Limited) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(attacks.ATTACKS, "impossible", attacks.Attack(fail, ""))
    with pytest.raises(ZeroDivisionError):
        neighbours._repeat(attacks.Limited(server.port, server.application), "impossible", threading.Event())
    assert capsys.readouterr().out == "0\n"
