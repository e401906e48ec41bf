"""The code of docs/how-to/point-sdks.md, with TLS as it is written, and without TLS as the page says to change it."""

from __future__ import annotations

import contextlib
import functools
import json
import queue
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pusher
import pytest

from tests.harness import pusherjs, sdk, servers, snippets
from tests.harness.snippets import Address, section
from tests.sdks import backends, java
from tests.unit.docs import pages

Name = Callable[[str], str]

REPORT_EVENT = """
pusher.subscribe(CHANNEL)
  .bind("pusher:subscription_succeeded", () => console.log("subscribed"))
  .bind("created", (data) => console.log(JSON.stringify(data)));
"""
REPORT_ECHO_EVENT = """
echo.channel(CHANNEL)
  .subscribed(() => console.log("subscribed"))
  .listen(".created", (data) => console.log(JSON.stringify(data)));
"""
REPORT_SUBSCRIBED = """
pusher.channel("orders").bind("pusher:subscription_succeeded", () => console.log("subscribed"));
"""
REPORT_ID = 'pusher.subscribe("orders").bind("created", ({ id }) => console.log(id));'
PLACED = "const show = ({ id }) => console.log(id);\n" + pages.snippet("docs/how-to/migrate.md", "pusher.subscribe")


@pytest.fixture(scope="module")
def server(fleet: servers.Fleet) -> servers.Server:
    return fleet.start("uvicorn")


@pytest.fixture(scope="module")
def tls(server: servers.Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    with snippets.behind_tls(server, tmp_path_factory.mktemp("tls")) as address:
        yield address


@pytest.fixture(scope="module")
def kept(fleet: servers.Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """A server whose channel `orders` keeps its events, with TLS."""
    deployment = fleet.deployment()
    deployment.application = deployment.create_application("Kept", "--history", "orders=100,600")
    server = fleet.start("uvicorn", deployment)
    with snippets.behind_tls(server, tmp_path_factory.mktemp("kept")) as address:
        yield address
    server.stop()


@pytest.fixture(params=["TLS", "without TLS"])
def address(request: pytest.FixtureRequest, server: servers.Server) -> Address:
    return request.getfixturevalue("tls") if request.param == "TLS" else Address(server, server.port, None)


def created(lines: Iterator[str], server: servers.Server, channel: str) -> Any:
    """Publish an event when the program has subscribed. Returns the data that it printed."""
    assert next(lines) == "subscribed"
    sdk.client(server).trigger(channel, "created", {"id": 42})
    return json.loads(next(lines))


@pytest.fixture
def node(pusher_js: pusherjs.Runtime) -> Iterator[Callable[..., Iterator[str]]]:
    """`node(code, **environment)` runs a module, and yields the lines that it prints."""
    with contextlib.ExitStack() as stack:

        def run(code: str, **environment: str) -> Iterator[str]:
            return stack.enter_context(pusher_js.module(code, **environment))

        yield run


# -- clients -----------------------------------------------------------------------------------------------------------


def test_pusher_js_snippet_connects(node: Callable[..., Iterator[str]], address: Address, name: Name) -> None:
    (code, _), changes = section("pusher-js")
    channel = name("orders")
    report = REPORT_EVENT.replace("CHANNEL", json.dumps(channel))
    lines = node(address.fill_in(code, changes) + report, **address.environment)
    assert created(lines, address.server, channel) == {"id": 42}


def test_echo_snippet_connects(node: Callable[..., Iterator[str]], address: Address, name: Name) -> None:
    (code,), _ = section("Laravel Echo")
    _, changes = section("pusher-js")  # the page says: the same changes
    channel = name("orders")
    report = REPORT_ECHO_EVENT.replace("CHANNEL", json.dumps(channel))
    browser = "globalThis.window = globalThis;\n"
    lines = node(browser + address.fill_in(code, changes) + report, **address.environment)
    assert created(lines, address.server, channel) == {"id": 42}


def test_pysher_snippet_connects(address: Address, monkeypatch: pytest.MonkeyPatch, name: Name) -> None:
    """The snippet prints events of the channel `orders`."""
    for variable, value in address.environment.items():
        monkeypatch.setenv(variable, value)
    (code,), changes = section("Python: Pysher")
    channel = name("orders")
    printed: queue.Queue[str] = queue.Queue()
    names: dict[str, Any] = {"print": printed.put}
    exec(address.fill_in(code, changes).replace('"orders"', json.dumps(channel)), names)
    client = names["client"]
    try:
        subscribed = threading.Event()
        client.connection.bind("pusher_internal:subscription_succeeded", lambda *_: subscribed.set())
        publish = functools.partial(sdk.client(address.server).trigger, channel, "created", {"id": 42})
        found = None
        for _ in range(100):  # the snippet does not say when it has subscribed
            publish()
            with contextlib.suppress(queue.Empty):
                found = printed.get(timeout=0.2)
                break
        assert found is not None
        assert json.loads(found) == {"id": 42}
    finally:
        sdk.close_pysher(client)


# -- servers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "then", "event"),
    [
        (pages.snippet("README.md", 'wsHost: "127.0.0.1"'), "", "created"),
        (pages.snippet("README.md", "forceTLS: true"), REPORT_ID, "created"),
        (pages.snippet("docs/how-to/migrate.md", "forceTLS: true"), PLACED, "placed"),
    ],
    ids=["README", "README with TLS", "migrate"],
)
def test_pusher_js_code_of_other_pages_connects(
    node: Callable[..., Iterator[str]], server: servers.Server, tls: Address, code: str, then: str, event: str
) -> None:
    address = tls if "forceTLS: true" in code else Address(server, server.port, None)
    code = with_port(code.replace("my-key", "YOUR_KEY"), address)
    lines = node(f'import Pusher from "pusher-js";\n{code}{then}{REPORT_SUBSCRIBED}', **address.environment)
    assert next(lines) == "subscribed"
    sdk.client(server).trigger("orders", event, {"id": 42})
    assert next(lines) == "42"


def with_port(code: str, address: Address) -> str:
    """The code for this address; with its port, where the code uses the default one."""
    if "Port:" not in code:
        code = code.replace("forceTLS: true", "forceTLS: true, wssPort: 443")
    return address.fill_in(code, {})


RESUME = "../../apps/fanfare/static/fanfare/resume.mjs"


def test_plugin_of_the_guide_is_imported_from_a_bundle(node: Callable[..., Iterator[str]], tls: Address) -> None:
    """The channel has no history, so a position in it gets a reset."""
    code = pages.snippet("docs/how-to/resume.md", "loadStateOf(channel) });\n").replace("./fanfare/resume.mjs", RESUME)
    assert "install(Pusher, { onReset" in code
    code = code.replace("install(Pusher, {", "install(Pusher, { since: { orders: { epoch: 'another1', offset: 7 } },")
    options = with_port(pages.snippet("docs/how-to/migrate.md", "forceTLS: true").replace("my-key", "YOUR_KEY"), tls)
    lines = node(
        f"const loadStateOf = (name) => {{ console.log(name); }};{code}{options} pusher.subscribe('orders');",
        **tls.environment,
    )
    assert next(lines) == "orders"


def test_echo_with_the_plugin_reads_the_history(node: Callable[..., Iterator[str]], kept: Address) -> None:
    code = pages.snippet("docs/how-to/resume.md", "laravel-echo").replace("./fanfare/resume.mjs", RESUME)
    code = with_port(
        code.replace("{ limit: 20 });", "{ limit: 20 }); console.log(items.map(({ data }) => data));"), kept
    )
    sdk.client(kept.server).trigger("orders", "created", {"id": 42})
    lines = node(code, **kept.environment)
    assert "42" in next(lines)


SOCKET_IO = """
import { createServer } from "node:http";
import { Server } from "socket.io";
import { io as connect } from "socket.io-client";
const http = createServer(), io = new Server(http), order = { id: 42 };
const [listen, emit] = process.env.SERVER.split("\\n");
eval(listen);
io.of("/").adapter.on("join-room", (room) => { if (room === "orders") eval(emit); });
http.listen(0, "127.0.0.1", () => {
  const socket = connect(`http://127.0.0.1:${http.address().port}`);
  const show = ({ id }) => { console.log(id); socket.close(); io.close(); };
  eval(process.env.PAGE);
});
"""


def test_code_before_the_migration_from_socket_io_runs(node: Callable[..., Iterator[str]]) -> None:
    guide = "docs/how-to/migrate.md"
    server, page = pages.snippet(guide, "io.on("), pages.snippet(guide, "socket.emit(")
    assert list(node(SOCKET_IO, SERVER=server, PAGE=page)) == ["42"]


def test_python_snippet_publishes(server: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TLS: this library accepts no certificate authority of the system."""
    (code, _), changes = section("Python")
    published = record(monkeypatch)
    exec(Address(server, server.port, None).fill_in(code, changes), {})
    assert published == [{}]


def test_python_snippet_of_the_readme_publishes(server: servers.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    [code] = [one.text for one in pages.blocks(pages.ROOT / "README.md") if "client.trigger" in one.text]
    published = record(monkeypatch)
    exec(Address(server, server.port, None).fill_in(code, {}), {})
    assert published == [{}]


def test_python_snippet_with_an_own_authority_publishes(tls: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    (_, code), changes = section("Python")
    names: dict[str, Any] = {}
    exec(tls.fill_in(code, changes), names)
    assert names["client"].trigger("orders", "created", {"id": 42}) == {}


def record(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The results of `trigger`, which the snippet does not keep."""
    results: list[Any] = []
    trigger = pusher.Pusher.trigger

    def recorded(*arguments: Any) -> Any:
        results.append(trigger(*arguments))
        return results[-1]

    monkeypatch.setattr(pusher.Pusher, "trigger", recorded)
    return results


def test_node_snippet_publishes(node: Callable[..., Iterator[str]], address: Address) -> None:
    (code,), changes = section("Node")
    lines = node(address.fill_in(code, changes) + 'console.log("published");\n', **address.environment)
    assert list(lines) == ["published"]


# -- the others --------------------------------------------------------------------------------------------------------


def test_every_section_has_a_test_or_is_listed_without_one() -> None:
    text = snippets.PAGE.read_text(encoding="utf-8")
    with_code = {
        title
        for title, body in re.findall(r"^### ([^\n]+)\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
        if "```" in body
    }
    tested = {"pusher-js", "Laravel Echo", "Python: Pysher", "Python", "Node", *java.SECTIONS}
    tested |= {title for title, _ in backends.LANGUAGES.values()}
    listed = re.findall(r"The snippet for (\w+) was (?:not run|run by hand)", text)
    assert sorted(title.partition(":")[0] for title in with_code - tested) == sorted(listed)
