from __future__ import annotations

import logging

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
def adopt(monkeypatch):
    """In a process without handlers; pytest has its own at the root while a test runs."""

    def call():
        with monkeypatch.context() as patch:
            patch.setattr(logging.getLogger(), "handlers", [])
            logs.adopt()

    return call


def test_without_a_configuration_our_lines_go_where_the_servers_lines_go(loggers, adopt):
    handler = logging.NullHandler()
    loggers["server"].addHandler(handler)
    adopt()
    assert loggers["own"].handlers == [handler]
    assert loggers["own"].isEnabledFor(logging.INFO)
    adopt()
    assert loggers["own"].handlers == [handler]


def test_a_handler_of_the_project_stays_the_only_one(loggers, adopt):
    own, handler = logging.NullHandler(), logging.NullHandler()
    loggers["server"].addHandler(handler)
    loggers["own"].addHandler(own)
    adopt()
    assert loggers["own"].handlers == [own]


def test_a_level_of_the_project_stays(loggers, adopt):
    loggers["server"].addHandler(logging.NullHandler())
    loggers["own"].setLevel(logging.ERROR)
    adopt()
    assert not loggers["own"].isEnabledFor(logging.WARNING)
