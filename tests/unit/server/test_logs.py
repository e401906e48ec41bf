from __future__ import annotations

import json
import logging
import sys

import pytest

from fanfare.server import logs


@pytest.fixture
def loggers(monkeypatch):
    """Loggers of this test alone: `own`, and `server` below which a server's handler may be."""
    names = {"own": "tests.logs.own", "server": "tests.logs.server"}
    monkeypatch.setattr(logs, "NAME", names["own"])
    monkeypatch.setattr(logs, "SERVERS", ("tests.logs.none", names["server"]))
    found = {key: logging.getLogger(name) for key, name in names.items()}
    yield found
    for logger in found.values():
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.NOTSET)


@pytest.fixture
def unify(monkeypatch):
    """In a process without handlers; pytest has its own at the root while a test runs."""

    def call():
        with monkeypatch.context() as patch:
            patch.setattr(logging.getLogger(), "handlers", [])
            logs.unify()

    return call


def test_without_a_configuration_our_lines_go_where_the_servers_lines_go(loggers, unify):
    handler = logging.NullHandler()
    loggers["server"].addHandler(handler)
    unify()
    assert loggers["own"].handlers == [handler]
    assert loggers["own"].isEnabledFor(logging.INFO)
    unify()
    assert loggers["own"].handlers == [handler]


def test_a_handler_of_the_project_stays_the_only_one(loggers, unify):
    own, handler = logging.NullHandler(), logging.NullHandler()
    loggers["server"].addHandler(handler)
    loggers["own"].addHandler(own)
    unify()
    assert loggers["own"].handlers == [own]


def test_a_level_of_the_project_stays(loggers, unify):
    loggers["server"].addHandler(logging.NullHandler())
    loggers["own"].setLevel(logging.ERROR)
    unify()
    assert not loggers["own"].isEnabledFor(logging.WARNING)


def test_the_servers_lines_on_the_console_get_the_projects_format(loggers, unify):
    formatter = logging.Formatter("{message}", style="{")
    own, console, file = logging.StreamHandler(), logging.StreamHandler(sys.stderr), logging.NullHandler()
    own.setFormatter(formatter)
    loggers["own"].addHandler(own)
    loggers["server"].addHandler(console)
    loggers["server"].addHandler(file)
    unify()
    assert console.formatter.inner is formatter
    assert own.formatter.inner is formatter
    unify()
    assert own.formatter.inner is formatter
    assert file.formatter is None


def test_json_is_the_format_of_all_console_handlers(loggers, monkeypatch, capsys):
    handler = logging.StreamHandler(sys.stderr)
    loggers["server"].addHandler(handler)
    with monkeypatch.context() as patch:
        patch.setattr(logging.getLogger(), "handlers", [])
        logs.unify(as_json=True)
    loggers["own"].warning("%s is slow", "1.2", extra={"socket": "1.2"})
    line = json.loads(capsys.readouterr().err)
    assert (line["message"], line["socket"], line["level"]) == ("1.2 is slow", "1.2", "WARNING")
