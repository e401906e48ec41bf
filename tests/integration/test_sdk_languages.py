"""The code of docs/how-to/point-sdks.md and of the landing page for Java, Kotlin and Go, with Pusher's libraries.

`python -m tests.sdks php ruby` runs the code for PHP and Ruby, whose libraries are on no index that CI reaches.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import parts, servers, snippets
from tests.sdks import backends, java


@pytest.fixture(scope="module")
def addresses(fleet: servers.Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[snippets.Addresses]:
    server = fleet.start("gunicorn", fleet.deployment(FANFARE_DEBUG="1"))
    with snippets.addresses(server, tmp_path_factory.mktemp("tls")) as found:
        yield found
    server.stop()


def test_java_and_kotlin_code_has_all_features(addresses: snippets.Addresses, tmp_path: Path) -> None:
    for program in ("javac", "mvn"):
        parts.executable(program)
    outcomes = dict(java.check(java.Machine(tmp_path), addresses))
    assert [what for what, works in outcomes.items() if not works] == []


def test_go_code_publishes(addresses: snippets.Addresses, tmp_path: Path) -> None:
    parts.executable("go")
    assert all(works for _, works in backends.check(["go"], addresses, tmp_path, tmp_path))
