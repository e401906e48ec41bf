from __future__ import annotations

import types

import orjson
import pytest

from fanfare.server import claims, errors, root_path, routing, urlconf


def answering(name, log):
    async def application(scope, receive, send):
        log.append(name)

    return application


@pytest.fixture
def answered():
    return []


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ({"type": "lifespan"}, ["lifespan"]),
        ({"type": "websocket", "path": "/app/key"}, ["websocket"]),
        ({"type": "http", "path": "/"}, ["http"]),
        ({"type": "something.new"}, []),
    ],
)
async def test_router_dispatches_by_the_type_of_the_scope(answered, scope, expected):
    router = routing.Router(**{name: answering(name, answered) for name in ("lifespan", "websocket", "http")})
    await router(scope, None, None)
    assert answered == expected


# -- the table of HTTP requests --------------------------------------------------------------------------------------

KEY = "278d425bdf160c739803"
PAGES = {"/users/5/terminate_connections", "/apps/7/channels", "/sse/news", "/api/openapi.json", "/metrics"}


@pytest.fixture
def table(answered, monkeypatch):
    """The rows of fanfare.asgi, with applications that say their name, in a project that has some pages."""
    monkeypatch.setattr(urlconf, "route", lambda path: path if path in PAGES else None)
    server = types.SimpleNamespace(
        running=True, registry=types.SimpleNamespace(by_key=lambda key: KEY if key == KEY else None)
    )
    keys = claims.Keys(server)

    def build(url_prefix=""):
        seen = answered.append

        def named(name):
            async def application(scope, receive, send):
                seen((name, scope.get("root_path", ""), scope["path"]) if url_prefix else name)

            return application

        rows = [
            routing.Route("/apps/", named("api"), claims.is_api, is_certain=claims.is_signed),
            routing.Route("/users/", named("api"), claims.is_api, is_certain=claims.is_signed),
            routing.Route("/sse/", named("sse"), claims.is_sse, is_certain=keys.is_sse),
            routing.Route("/health/", named("health"), claims.is_health, yields_to=claims.to_no_page),
            routing.Route("/metrics", named("metrics"), claims.is_metrics, yields_to=urlconf.has_own),
            routing.Route("/api/", named("description"), claims.is_description, yields_to=urlconf.has_own),
        ]
        return routing.Http(rows, named("django"), url_prefix=url_prefix, at_root=rows[:2])

    return build


def request(path, method="GET", query="", **scope):
    return {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": [], **scope}


SIGNED = "auth_key=a&auth_timestamp=1&auth_version=1.0&auth_signature=ff"


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (request("/apps/1001/events", "POST"), "api"),
        (request("/apps/1001/events", "OPTIONS"), "api"),
        (request("/apps/1001/channels/news/users"), "api"),
        (request("/users/9/terminate_connections", "POST"), "api"),
        (request("/sse/unknown"), "sse"),
        (request(f"/sse/{KEY}"), "sse"),
        (request("/health/ready"), "health"),
        (request("/health/live/", "HEAD"), "health"),
    ],
)
async def test_routes_of_fanfare_are_answered_by_fanfare(table, answered, scope, expected):
    await table()(scope, None, None)
    assert answered == [expected]


@pytest.mark.parametrize(
    ("path", "method"),
    [
        *(("/", "GET"), ("/apps", "GET"), ("/apps/", "GET"), ("/apps/5/edit", "GET"), ("/apps/5/events", "GET")),
        *(("/apps/shop/events", "POST"), ("/apps/0/events", "POST"), ("/apps/1001/channels", "POST")),
        *(("/users/", "GET"), ("/users/5", "GET"), ("/users/5/terminate_connections", "GET")),
        *(("/sse/", "GET"), ("/sse/a/b", "GET"), ("/sse/anything", "POST")),
        *(("/health/", "GET"), ("/health/db", "GET"), ("/health/ready", "POST")),
        *(("/api/", "GET"), ("/api/docs", "GET"), ("/api/openapi.json", "POST"), ("/metrics/x", "GET")),
    ],
)
async def test_other_paths_and_methods_below_the_same_prefixes_go_to_django(table, answered, path, method):
    await table()(request(path, method), None, None)
    assert answered == ["django"]


@pytest.mark.parametrize("path", sorted(PAGES))
async def test_a_page_of_the_project_wins_over_a_request_that_may_be_meant_for_it(table, answered, path):
    method = "POST" if "terminate" in path else "GET"
    await table()(request(path, method), None, None)
    assert answered == ["django"]


@pytest.mark.parametrize(
    "path", ["/apps/7/channels", "/users/5/terminate_connections", "/apps/7/nothing", "/apps/shop/events"]
)
async def test_a_signed_request_goes_to_the_api_even_where_the_project_has_a_page(table, answered, path):
    await table()(request(path, query=SIGNED), None, None)
    assert answered == ["api"]


async def test_a_stream_of_a_known_key_goes_to_fanfare_even_where_the_project_has_a_page(table, answered, monkeypatch):
    monkeypatch.setattr(urlconf, "route", lambda path: "<path:rest>")
    await table()(request(f"/sse/{KEY}"), None, None)
    await table()(request("/sse/something"), None, None)
    assert answered == ["sse", "django"]


async def test_a_catch_all_of_the_project_does_not_hide_the_description_and_the_metrics(table, answered, monkeypatch):
    monkeypatch.setattr(urlconf, "route", lambda path: "<path:rest>")
    await table()(request("/api/openapi.json"), None, None)
    await table()(request("/metrics"), None, None)
    assert answered == ["description", "metrics"]


async def test_a_page_that_django_redirects_to_with_a_slash_is_a_page_of_the_project(table, answered, monkeypatch):
    monkeypatch.setattr(urlconf, "route", lambda path: path if path == "/sse/news/" else None)
    await table()(request("/sse/news"), None, None)
    await table()(request("/sse/other"), None, None)
    assert answered == ["django", "sse"]


async def test_below_a_root_path_the_table_is_the_same(table, answered):
    await table()(request("/rt/apps/1001/events", "POST", root_path="/rt"), None, None)
    await table()(request("/rt/health/ready", root_path="/rt"), None, None)
    await table()(request("/rt", root_path="/rt"), None, None)
    assert answered == ["api", "health", "django"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/realtime/apps/7/channels", "api"),  # the project's page of this path is at the root
        ("/realtime/sse/news", "sse"),
        ("/realtime/health/ready", "health"),
        ("/realtime/metrics", "metrics"),
        ("/realtime/api/openapi.json", "description"),
    ],
)
async def test_with_a_url_prefix_every_route_is_below_it(table, answered, path, name):
    await table("/realtime")(request(path), None, None)
    assert answered == [(name, "/realtime", path)]


@pytest.mark.parametrize(
    "path", ["/apps/1001/channels", "/sse/unknown", f"/sse/{KEY}", "/health/ready", "/metrics", "/realtime/nothing"]
)
async def test_with_a_url_prefix_the_root_belongs_to_django(table, answered, path):
    await table("/realtime")(request(path), None, None)
    assert answered == [("django", "", path)]


async def test_with_a_url_prefix_signed_requests_stay_at_the_root_for_sdks_that_send_no_prefix(table, answered):
    scope = request("/apps/1001/events", "POST", SIGNED, raw_path=b"/apps/1001/events")
    await table("/realtime")(scope, None, None)
    assert answered == [("api", "/realtime", "/realtime/apps/1001/events")]


# -- the root path ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/x/y", "/rt/x/y", "/rt/rt/x/y"])
@pytest.mark.parametrize(("server_says", "script_name"), [("/rt", None), ("", "/rt"), ("/other", "/rt/")])
async def test_the_root_path_stands_once_before_the_path_however_it_came(path, server_says, script_name):
    seen = []

    async def application(scope, receive, send):
        seen.append((scope["root_path"], scope["path"], scope["raw_path"], root_path.below(scope)))

    scope = request(path, root_path=server_says, raw_path=path.encode())
    await root_path.RootPath(application, script_name)(scope, None, None)
    assert seen == [("/rt", "/rt/x/y", b"/rt/x/y", "/x/y")]


@pytest.mark.parametrize("path", ["/rt", "/rt/", "/"])
async def test_the_front_page_below_a_root_path_has_a_slash(path):
    seen = []

    async def application(scope, receive, send):
        seen.append(root_path.below(scope))

    await root_path.RootPath(application, "/rt")(request(path, root_path=""), None, None)
    assert seen == ["/"]


async def test_without_a_root_path_the_scope_is_passed_on_as_it_is():
    seen = []

    async def application(scope, receive, send):
        seen.append(scope)

    scope = request("/x", root_path="")
    await root_path.RootPath(application)(scope, None, None)
    assert seen[0] is scope


# -- applications that need a started worker -------------------------------------------------------------------------


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


async def test_the_first_request_starts_the_worker_and_later_ones_do_not(answered):
    server = FakeServer()
    application = routing.Started(server, answering("api", answered))
    await application({"type": "http"}, None, None)
    await application({"type": "http"}, None, None)
    assert answered == ["api", "api"]
    assert server.starts == 1


async def refused(scope, sent, moves=False):
    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    await routing.Started(FakeServer(fails=True), answering("api", sent), moves=lambda: moves)(scope, receive, send)


async def test_a_request_to_a_worker_that_cannot_start_gets_503_and_where_to_look():
    sent = []
    await refused({"type": "http"}, sent)
    start, body = sent
    assert start["status"] == 503
    assert (b"retry-after", b"1") in start["headers"]
    answer = orjson.loads(body["body"])
    assert answer == {"error": "This server cannot work now; /health/ready says why.", "code": "not_started"}


async def test_a_websocket_to_a_worker_that_cannot_start_is_closed_with_4100():
    sent = []
    await refused({"type": "websocket"}, sent)
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.close"]
    assert sent[1]["code"] == 4100
    assert "/srv" not in sent[1]["reason"]


async def test_a_websocket_to_a_worker_that_moves_its_clients_is_closed_with_4200():
    sent = []
    await refused({"type": "websocket"}, sent, moves=True)
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.close"]
    assert sent[1]["code"] == 4200
