"""Five hundred pages ask at once whether they may join: the connections to PostgreSQL stay those of the pools."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlencode

import pytest

from tests.harness import postgresql, servers, signing, waiting

REQUESTS = 500
POOL = 3  # connections of one worker: fewer than the default, so that a leak shows
PATIENCE = 60.0  # for all of them, on a loaded machine; two quiet cores need about two seconds
# While five hundred wait for three connections, nobody may be turned away because the machine is slow.
POOL_TIMEOUT = 60

CHANNEL = "private-orders-7"
TOKEN = "0123456789abcdef0123456789abcdef"  # a CSRF token is 32 letters, and right if cookie and header agree

# A project's own app with a channel rule that asks the database.
SETTINGS = """
from myproject.settings import *

INSTALLED_APPS = [*INSTALLED_APPS, "orders"]
"""
RULE = """
from fanfare import channel


@channel("private-orders-{number:int}")
def may_join(user, number):
    return user.is_authenticated and user.groups.filter(name=f"orders {number}").exists()
"""

SIGN_IN = """
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.models import Group, User
from django.contrib.sessions.backends.db import SessionStore

user = User.objects.create_user("ann")
user.groups.add(Group.objects.create(name="orders 7"))
session = SessionStore()
session[SESSION_KEY] = str(user.pk)
session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
session[HASH_SESSION_KEY] = user.get_session_auth_hash()
session.save()
print(session.session_key, user.pk)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgresql.Cluster]:
    with postgresql.running() as cluster:
        yield cluster


class Visitor(NamedTuple):
    """A signed-in user's page."""

    session: str
    user_id: str
    server: servers.Server

    def request(self, number: int) -> tuple[bytes, str]:
        """What page `number` sends, and its socket id: every second one asks to sign in."""
        socket_id = f"{number + 1}.{number + 1}"
        fields = {"socket_id": socket_id}
        path = "/pusher/user-auth"
        if number % 2:
            fields["channel_name"] = CHANNEL
            path = "/pusher/auth"
        body = urlencode(fields).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {servers.HOST}:{self.server.port}\r\nConnection: close\r\n"
            f"Cookie: sessionid={self.session}; csrftoken={TOKEN}\r\nX-CSRFToken: {TOKEN}\r\n"
            f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body, socket_id

    def check(self, number: int, answer: bytes) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), answer
        given = json.loads(body)
        _, socket_id = self.request(number)
        application = self.server.application
        if number % 2:
            assert given == {"auth": signing.subscription(application, socket_id, CHANNEL, None)}
        else:
            assert json.loads(given["user_data"])["id"] == self.user_id
            signed = signing.hexadecimal(application.secret, f"{socket_id}::user::{given['user_data']}")
            assert given["auth"] == f"{application.key}:{signed}"


class Watch:
    """Counts the connections to a database, again and again, in a thread of its own."""

    def __init__(self, cluster: postgresql.Cluster, database: str) -> None:
        self._connection = cluster.connect()
        self._database = database
        self._stopping = threading.Event()
        self.most = self.looks = 0

    def count(self) -> int:
        [(count,)] = self._connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s", [self._database]
        ).fetchall()
        return int(count)

    def end_all(self) -> int:
        """End every connection to the database; how many there were."""
        found = self._connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [self._database]
        ).fetchall()
        waiting.until(lambda: self.count() == 0, 10, "they are gone")
        return len(found)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch)
        self._stopping.clear()
        thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            thread.join()

    def _watch(self) -> None:
        while not self._stopping.wait(0.005):  # a look takes less than a request
            self.most = max(self.most, self.count())
            self.looks += 1

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(scope="module", params=["uvicorn", "gunicorn"])
def visitor(
    request: pytest.FixtureRequest,
    cluster: postgresql.Cluster,
    fleet: servers.Fleet,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Visitor]:
    """A server with a database of its own in PostgreSQL, and somebody who is signed in there."""
    command, project = request.param, tmp_path_factory.mktemp("project")
    (project / "orders").mkdir()
    (project / "orders/__init__.py").touch()
    (project / "orders/channels.py").write_text(RULE)
    (project / "shop_settings.py").write_text(SETTINGS)
    cluster.create(command)
    url = cluster.url(command, pool_max_size=POOL, pool_timeout=POOL_TIMEOUT)
    deployment = fleet.deployment(DATABASE_URL=url, PYTHONPATH=str(project), DJANGO_SETTINGS_MODULE="shop_settings")
    deployment.manage("migrate", "--verbosity", "0")
    deployment.application = deployment.create_application("Load")
    session, user_id = deployment.shell(SIGN_IN).split()
    server = fleet.start(command, deployment)
    yield Visitor(session, user_id, server)
    server.stop()


@pytest.fixture
def watch(cluster: postgresql.Cluster, visitor: Visitor) -> Iterator[Watch]:
    watch = Watch(cluster, visitor.server.command)
    yield watch
    watch.close()


async def all_at_once(visitor: Visitor, numbers: range) -> list[bytes]:
    """Every page is connected before the first one asks."""
    opened = [await asyncio.open_connection(servers.HOST, visitor.server.port) for _ in numbers]
    try:
        for number, (_, writer) in zip(numbers, opened, strict=True):
            writer.write(visitor.request(number)[0])
        async with asyncio.timeout(PATIENCE):
            return await asyncio.gather(*(reader.read() for reader, _ in opened))
    finally:
        for _, writer in opened:
            writer.transport.abort()


async def hang_up(visitor: Visitor, numbers: range) -> None:
    """They ask, and are gone before they are answered."""
    opened = [await asyncio.open_connection(servers.HOST, visitor.server.port) for _ in numbers]
    for number, (_, writer) in zip(numbers, opened, strict=True):
        writer.write(visitor.request(number)[0])
    first = asyncio.create_task(opened[0][0].read(1))
    await asyncio.wait_for(first, PATIENCE)  # the server is in the midst of them
    for _, writer in opened:
        writer.transport.abort()


async def test_five_hundred_at_once_are_answered_with_no_more_connections_than_the_pools_have(
    visitor: Visitor, watch: Watch
) -> None:
    most = POOL * visitor.server.expected_workers
    with watch.watching():
        for _ in range(2):  # what the first time leaves open is missing the second time
            answers = await all_at_once(visitor, range(REQUESTS))
            for number, answer in enumerate(answers):
                visitor.check(number, answer)
            await hang_up(visitor, range(REQUESTS // 5))
        answers = await all_at_once(visitor, range(REQUESTS // 5))
        for number, answer in enumerate(answers):
            visitor.check(number, answer)
    assert watch.looks > 10, "it was watched"
    assert 1 <= watch.most <= most, f"{watch.most} connections; the pools have {most}"
    await asyncio.to_thread(waiting.until, lambda: watch.count() <= most, 10, "none is left beyond the pools")
    print(f"{visitor.server.command}: {watch.most} of {most} connections in {watch.looks} looks")


async def test_connections_that_the_database_has_ended_are_no_visitors_business(visitor: Visitor, watch: Watch) -> None:
    """As after a restart of PostgreSQL: the pools hold connections that are dead."""
    await all_at_once(visitor, range(REQUESTS // 5))
    ended = await asyncio.to_thread(watch.end_all)
    assert ended >= 1
    answers = await all_at_once(visitor, range(REQUESTS // 5))
    for number, answer in enumerate(answers):
        visitor.check(number, answer)
