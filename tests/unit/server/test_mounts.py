from __future__ import annotations

import asyncio
import importlib
import logging
import sys

import orjson
import pytest
from django.core.exceptions import ImproperlyConfigured

from fanfare.server import mounts

FASTAPI = """
import contextlib

import fastapi

log = []


@contextlib.asynccontextmanager
async def lifespan(app):
    log.append("opened")
    yield {"shelf": ["tea"]}
    log.append("closed")


app = fastapi.FastAPI(lifespan=lifespan)


@app.get("/items", name="items")
async def items(request: fastapi.Request):
    request.state.seen = True
    return {"items": request.state.shelf, "url": str(request.url_for("items"))}


@app.get("/seen")
async def seen(request: fastapi.Request):
    return hasattr(request.state, "seen")


@app.websocket("/echo")
async def echo(socket: fastapi.WebSocket):
    await socket.accept()
    await socket.send_text(socket.scope["root_path"])
    await socket.close()
"""

PLAIN = """
answered = []


async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        raise ValueError("only http here")
    answered.append((scope["root_path"], scope["path"]))


async def silent(scope, receive, send):
    if scope["type"] == "http":
        answered.append((scope["root_path"], scope["path"]))


async def chatty(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def breaks_off(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.complete"})
    raise RuntimeError("its connection is gone")


class Inner:
    async def app(self, scope, receive, send):
        answered.append(scope["type"])


inner = Inner()
number = 4
"""

FAILING = """
import contextlib

import fastapi

attempts = []


@contextlib.asynccontextmanager
async def lifespan(app):
    attempts.append(1)
    raise RuntimeError("the till is empty")
    yield


app = fastapi.FastAPI(lifespan=lifespan)
"""


async def otherwise(scope, receive, send):
    scope["answered by"] = "otherwise"


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """Modules that a person could have beside manage.py. Each test has fresh ones."""
    texts = {"shop": FASTAPI, "plain": PLAIN, "failing": FAILING, "needy": "import nowhere_to_be_found", "bug": "1 / 0"}
    for name, text in texts.items():
        (tmp_path / f"guest_{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, f"guest_{name}", raising=False)
    monkeypatch.syspath_prepend(tmp_path)


def module(name):
    return importlib.import_module(f"guest_{name}")


async def get(application, path, **scope):
    """Status and body of a GET, or who else was asked."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "server": ("localhost", 80),
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        **scope,
    }
    await application(scope, receive, send)
    if not sent:
        return scope.get("answered by")
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], orjson.loads(body) if body else b""


# -- what is written in the setting ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "target", "part"),
    [
        ("/shop", "guest_missing:app", "has '/shop=guest_missing:app': there is no module 'guest_missing'."),
        ("/shop", "guest_shop.inner:app", "there is no module 'guest_shop.inner'."),
        ("/shop", "guest_shop:application", "the module 'guest_shop' has no 'application'."),
        ("/shop", "guest_plain:inner.nothing", "the module 'guest_plain' has no 'inner.nothing'."),
        ("/shop", "guest_plain:number", "'number' is not an ASGI application but of type int."),
        ("/shop", "guest_needy:app", "the module 'guest_needy' imports 'nowhere_to_be_found', which does not exist."),
        ("/shop", "guest_shop", "has '/shop=guest_shop'; an entry looks like /shop=main:app."),
        ("/shop", "guest_shop:", "an entry looks like"),
        ("/shop", 7, "an entry looks like"),
        ("shop", "guest_shop:app", "has the prefix 'shop'; it is a path such as /shop"),
        ("/", "guest_shop:app", "has the prefix '/'"),
        ("/a//b", "guest_shop:app", "has the prefix '/a//b'"),
        ("/a%20b", "guest_shop:app", "has the prefix '/a%20b'"),
        ("/apps", "guest_shop:app", "has '/apps', where the server itself answers."),
        ("/apps/mine", "guest_shop:app", "has '/apps/mine', where the server itself answers."),
        ("/api", "guest_shop:app", "has '/api', where the server itself answers."),
    ],
)
def test_invalid_mount_is_refused_by_name_and_value(prefix, target, part):
    with pytest.raises(ImproperlyConfigured) as caught:
        mounts.Mounts({prefix: target}, taken=["/apps/", "/api/openapi.json"])
    assert part in str(caught.value)
    assert str(caught.value).startswith("FANFARE_ASGI_MOUNTS ")


def test_a_mistake_inside_of_a_module_is_shown_as_it_is_with_the_mount_that_it_was_imported_for():
    with pytest.raises(ZeroDivisionError) as caught:
        mounts.Mounts({"/bug": "guest_bug:app"})
    assert "FANFARE_ASGI_MOUNTS" in caught.value.__notes__[0]


# -- who answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/plain", [("/plain", "/plain")]),
        ("/plain/", [("/plain", "/plain/")]),
        ("/plain/a/b", [("/plain", "/plain/a/b")]),
        ("/plain/sub/x", [("/plain/sub", "/plain/sub/x")]),
        ("/plainly", []),
        ("/", []),
    ],
)
async def test_a_mount_gets_its_paths_whole_and_the_part_that_led_there(path, expected):
    application = mounts.Mounts({"/plain": "guest_plain:application", "/plain/sub/": "guest_plain:silent"}).before(
        otherwise
    )
    answered = await get(application, path)
    assert module("plain").answered == expected
    assert answered == (None if expected else "otherwise")


async def test_a_mount_below_the_servers_own_root_path_knows_both():
    application = mounts.Mounts({"/plain": "guest_plain:application"}).before(otherwise)
    await get(application, "/fanfare/plain/x", root_path="/fanfare")
    assert module("plain").answered == [("/fanfare/plain", "/fanfare/plain/x")]


def test_without_mounts_the_application_is_not_wrapped():
    assert mounts.Mounts().before(otherwise) is otherwise


async def test_an_attribute_of_an_object_can_be_mounted():
    await get(mounts.Mounts({"/x": "guest_plain:inner.app"}).before(otherwise), "/x/")
    assert module("plain").answered == ["lifespan", "http"]


async def test_fastapi_routes_links_and_describes_itself_below_its_prefix():
    application = mounts.Mounts({"/shop": "guest_shop:app"}).before(otherwise)
    assert await get(application, "/shop/items") == (
        200,
        {"items": ["tea"], "url": "http://localhost/shop/items"},
    )
    status, description = await get(application, "/shop/openapi.json")
    assert (status, description["servers"]) == (200, [{"url": "/shop"}])
    assert (await get(application, "/shop/nothing"))[0] == 404


async def test_a_websocket_goes_to_its_mount():
    application = mounts.Mounts({"/shop": "guest_shop:app"}).before(otherwise)
    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    scope = {"type": "websocket", "path": "/shop/echo", "root_path": "", "query_string": b"", "headers": []}
    await application(scope, receive, send)
    assert [message["type"] for message in sent] == ["websocket.accept", "websocket.send", "websocket.close"]
    assert sent[1]["text"] == "/shop"


# -- its life --------------------------------------------------------------------------------------------------------


async def test_a_lifespan_is_run_once_around_everything_and_its_state_is_in_every_request():
    mounted = mounts.Mounts({"/shop": "guest_shop:app"})
    application = mounted.before(otherwise)
    await mounted.start()
    assert module("shop").log == ["opened"]
    assert (await get(application, "/shop/items"))[1]["items"] == ["tea"]
    assert await get(application, "/shop/seen") == (200, False), "each request has a copy of its own"
    await mounted.stop()
    assert module("shop").log == ["opened", "closed"]


async def test_the_state_of_the_server_below_is_there_too():
    mounted = mounts.Mounts({"/shop": "guest_shop:app"})
    await mounted.start()
    below = {"till": 3}
    assert (await get(mounted.before(otherwise), "/shop/items", state=below))[1]["items"] == ["tea"]
    assert below == {"till": 3}
    await mounted.stop()


async def test_without_a_lifespan_below_a_crowd_of_first_visitors_starts_it_once():
    application = mounts.Mounts({"/shop": "guest_shop:app"}).before(otherwise)
    answers = await asyncio.gather(*(get(application, "/shop/items") for _ in range(20)))
    assert {status for status, _ in answers} == {200}
    assert module("shop").log == ["opened"]


async def test_the_first_visitor_may_hang_up_without_taking_the_start_with_it():
    mounted = mounts.Mounts({"/shop": "guest_shop:app"})
    first = asyncio.create_task(mounted.start())
    await asyncio.sleep(0)
    first.cancel()
    assert (await get(mounted.before(otherwise), "/shop/items"))[0] == 200
    assert module("shop").log == ["opened"]


@pytest.mark.parametrize("name", ["application", "silent", "chatty"])
async def test_an_application_that_knows_no_lifespan_runs_without(name):
    mounted = mounts.Mounts({"/plain": f"guest_plain:{name}"})
    async with asyncio.timeout(20):
        await mounted.start()
        await mounted.stop()


async def test_a_start_that_fails_is_logged_and_leaves_the_other_mounts_running(caplog):
    mounted = mounts.Mounts({"/failing-first": "guest_failing:app", "/shop": "guest_shop:app"})
    await mounted.start()
    assert mounted.problem == (
        "FANFARE_ASGI_MOUNTS: /failing-first=guest_failing:app did not start: RuntimeError: the till is empty"
    )
    assert mounted.problem in caplog.text
    assert "Traceback" in caplog.text
    assert module("shop").log == ["opened"]
    await mounted.stop()
    assert module("shop").log == ["opened", "closed"]


async def test_an_application_can_be_mounted_as_an_object():
    await get(mounts.Mounts({"/x": module("plain").application}).before(otherwise), "/x/")
    assert module("plain").answered == [("/x", "/x/")]


async def test_the_projects_own_application_has_its_lifespan_and_its_state():
    mounted = mounts.Mounts()
    application = mounted.of_project(module("shop").app)
    await mounted.start()
    assert await get(application, "/items") == (200, {"items": ["tea"], "url": "http://localhost/items"})
    await mounted.stop()
    assert module("shop").log == ["opened", "closed"]


async def test_on_first_use_a_failed_start_is_a_503_and_is_not_repeated_for_a_crowd():
    application = mounts.Mounts({"/failing": "guest_failing:app"}).before(otherwise)
    for _ in range(3):
        status, body = await get(application, "/failing/")
        assert (status, body["code"]) == (503, "mount_failed")
        assert "till" not in body["error"]
    assert len(module("failing").attempts) == 1


async def test_on_first_use_a_failed_start_is_tried_again_later(monkeypatch):
    monkeypatch.setattr(mounts, "RETRY_SECONDS", 0.0)
    application = mounts.Mounts({"/failing": "guest_failing:app"}).before(otherwise)
    for _ in range(3):
        await get(application, "/failing/")
    assert len(module("failing").attempts) == 3


async def test_a_lifespan_that_breaks_off_is_in_the_log_and_the_end_does_not_wait_for_it(caplog):
    mounted = mounts.Mounts({"/plain": "guest_plain:breaks_off"})
    with caplog.at_level(logging.ERROR):
        await mounted.start()
        async with asyncio.timeout(20):
            await mounted.stop()
    assert "The lifespan of FANFARE_ASGI_MOUNTS: /plain=guest_plain:breaks_off ended early." in caplog.text
