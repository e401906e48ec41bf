from __future__ import annotations

import orjson
import pytest

from fanfare.server import errors, routing


def answering(name, log):
    async def application(scope, receive, send):
        log.append(name)

    return application


@pytest.fixture
def answered():
    return []


@pytest.fixture
def router(answered):
    return routing.Router(
        lifespan=answering("lifespan", answered),
        websocket=answering("websocket", answered),
        http={"/apps/": answering("api", answered), "/": answering("django", answered)},
    )


@pytest.mark.parametrize(
    ("scope", "who"),
    [
        ({"type": "lifespan"}, ["lifespan"]),
        ({"type": "websocket", "path": "/app/key"}, ["websocket"]),
        ({"type": "http", "path": "/apps/1/events"}, ["api"]),
        ({"type": "http", "path": "/app/key"}, ["django"]),
        ({"type": "http", "path": "/apps"}, ["django"]),
        ({"type": "http", "path": "/"}, ["django"]),
        ({"type": "something.new"}, []),
    ],
)
async def test_a_scope_goes_to_whom_it_belongs(router, answered, scope, who):
    await router(scope, None, None)
    assert answered == who


class FakeServer:
    def __init__(self, *, fails=False):
        self.running = False
        self.fails = fails
        self.starts = 0

    async def started(self):
        self.starts += 1
        if self.fails:
            raise errors.NotStarted("The log in /srv/secret is on fire.")
        self.running = True


async def test_the_first_request_starts_the_worker_and_the_others_do_not(answered):
    server = FakeServer()
    application = routing.Started(server, answering("api", answered))
    await application({"type": "http"}, None, None)
    await application({"type": "http"}, None, None)
    assert answered == ["api", "api"]
    assert server.starts == 1


async def refused(scope, sent):
    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    await routing.Started(FakeServer(fails=True), answering("api", sent))(scope, receive, send)


async def test_a_request_to_a_worker_that_cannot_start_gets_503_and_where_to_look():
    sent = []
    await refused({"type": "http"}, sent)
    start, body = sent
    assert start["status"] == 503
    assert (b"retry-after", b"1") in start["headers"]
    answer = orjson.loads(body["body"])
    assert answer == {"error": "This server cannot work now; /health/ready says why.", "code": "not_started"}


async def test_a_websocket_to_a_worker_that_cannot_start_is_closed_with_a_code_that_lets_it_come_back():
    sent = []
    await refused({"type": "websocket"}, sent)
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.close"]
    assert sent[1]["code"] == 4100
    assert "/srv" not in sent[1]["reason"]
