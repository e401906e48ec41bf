"""`manage.py fanfare tail` through the end of the worker that it reads from."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from fanfare.console import client
from fanfare.management.commands.fanfare import Command

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
LINE = b'{"items":[],"seen":0}\n'


def batch(*events: str) -> dict[str, Any]:
    items = [{"at": 0, "type": "event", "channel": "orders", "event": event} for event in events]
    return {"items": items, "seen": len(items)}


def run(monkeypatch: pytest.MonkeyPatch, *streams: Any) -> tuple[str, str]:
    """The output and the errors of a tail of two lines. Each stream is a list of batches, the last of which may be an
    exception."""
    following = iter(streams)

    def stream(_client: client.Client, _path: str, _arguments: Any) -> Iterator[Any]:
        for one in next(following):
            if isinstance(one, Exception):
                raise one
            yield one

    monkeypatch.setattr(client.Client, "stream", stream)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    out, err = io.StringIO(), io.StringIO()
    call_command("fanfare", "tail", "--limit", "2", stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def test_tail_goes_on_at_another_worker_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    lost, refused = client.ConsoleError("The connection was lost."), client.ConsoleError("No worker answers.")
    out, err = run(monkeypatch, [batch("before"), lost], [refused], [batch(), batch("after")])
    assert [line.split()[-1] for line in out.splitlines()] == ["before", "after"]
    assert err.count("live since") == 3  # live, not live, live
    assert "The connection was lost. Connecting again." in err


def test_tail_that_the_worker_ended_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _, err = run(monkeypatch, [batch("before")], [batch("after")])
    assert "The worker ended the connection." in err


def test_tail_without_a_worker_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandError, match="No worker answers"):
        run(monkeypatch, [client.ConsoleError("No worker answers.")])


def test_tail_is_live_while_the_worker_reads_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    _, err = run(monkeypatch, [{**batch(), "reads_log": False}, batch("a"), {**batch(), "reads_log": True}, batch("b")])
    not_live, live = err.splitlines()
    assert "not live since" in not_live
    assert "does not read the log" in not_live
    assert live.startswith("… live since")


def test_tail_with_a_wrong_filter_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandError, match="no pattern"):
        run(monkeypatch, [{**batch(), "problem": "This is no pattern.", "field": "channel"}])


def test_workers_that_do_not_answer_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _, err = run(monkeypatch, [{**batch("a", "b"), "missing": 1}])
    assert "no answer from 1 worker" in err


def test_lost_items_of_a_slow_output_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    _, err = run(monkeypatch, [{**batch("a", "b"), "missed": 7}])
    assert "7 were lost" in err


def test_stream_of_a_killed_worker_raises_console_error(db: None) -> None:
    """The response ends within a chunk."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(HEAD + b"%x\r\n" % len(LINE) + LINE + b"\r\n50\r\n{")

        thread = threading.Thread(target=serve)
        thread.start()
        values = client.Client(f"http://127.0.0.1:{server.getsockname()[1]}").stream("tail")
        assert next(values) == {"items": [], "seen": 0}
        with pytest.raises(client.ConsoleError, match="was lost"):
            next(values)
        thread.join()


@pytest.mark.parametrize("action", ["stats", "tail", "connections"])
def test_url_without_scheme_is_refused_with_an_example(action: str) -> None:
    with pytest.raises(CommandError, match=r"--url is 'localhost:8000'.*such as http://127"):
        call_command("fanfare", action, "--url", "localhost:8000")


@pytest.mark.parametrize("arguments", [["--json", "--app", "7", "tail"], ["tail", "--json", "--app", "7"]])
def test_common_options_stand_before_the_action_or_after_it(arguments: list[str]) -> None:
    options = Command().create_parser("manage.py", "fanfare").parse_args(arguments)
    assert (options.json, options.app) == (True, "7")
    assert Command().create_parser("manage.py", "fanfare").parse_args(["tail"]).json is False
