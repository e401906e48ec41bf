"""The JavaScript and the HTML of the guides in Chromium, with a server whose project is `guide_project`.

The snippets call functions of the reader's project, such as `show`; here they are `show`, which notes its arguments.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from tests.browser import conftest
from tests.browser.test_pusher_js import SCRIPT
from tests.harness import calls, deployments, event_streams, proxies, pusherjs, sdk, servers, signing, waiting
from tests.unit.docs import pages

Open = Callable[..., Page]

CHROMIUM_ARGUMENTS = [conftest.ALLOW_LOCAL]
MASTER_KEY = "Zm9yIHRoZSBndWlkZXMsIHdpdGggMzIgYnl0ZXMgISE="
SHOP = "http://127.0.0.1:8999"  # the host of other pages: answered by the test
REPLAY = 3  # events; a page that missed more gets none of them, but the reason

PREPARE = f"""
from django.contrib.auth.models import User
from rest_framework.authtoken.models import Token
application = Application.objects.get()
application.rules.create(pattern="*orders*", history_size=100, history_seconds=600, max_replay_entries={REPLAY})
application.rules.create(pattern="chat", history_size=100, history_seconds=600)
Token.objects.create(user=User.objects.get(), key="a-token")
User.objects.create_superuser("bea", password="{deployments.ADMIN_PASSWORD}")
"""
# What the guides expect in a page. `options` are those of point-sdks.md without TLS.
PAGE = """
window.shown = [];
window.show = (...what) => { shown.push(what.filter((one) => JSON.stringify(one) !== "{}")); }; // without metadata
window.exceptions = [];
addEventListener("error", ({ message }) => exceptions.push(message));
addEventListener("unhandledrejection", ({ reason }) => exceptions.push(String(reason)));
"""
OPTIONS = """{ cluster: "", wsHost: "127.0.0.1", wsPort: %d, forceTLS: false, enabledTransports: ["ws"] }"""
CSRF = "document.cookie.match(/csrftoken=(\\w+)/)[1]"


@pytest.fixture(scope="module")
def server(fleet: servers.Fleet) -> servers.Server:
    deployment = fleet.deployment(
        DJANGO_SETTINGS_MODULE="tests.browser.guide_project.settings",
        FANFARE_ENCRYPTION_MASTER_KEY=MASTER_KEY,
        FANFARE_CORS_ORIGINS=SHOP,
    )
    deployment.manage("migrate", "--verbosity", "0")
    deployment.shell(PREPARE)
    return fleet.start("uvicorn", deployment)


@pytest.fixture
def open_page(chromium: Browser, server: servers.Server) -> Iterator[Open]:
    """`open_page(path, user=None)`: a page of the server, for a user who has logged in."""
    with pusherjs.Runtime():  # installs the npm packages
        contexts: list[BrowserContext] = []

    def start(path: str = "/static/fanfare/site.css", user: str = "") -> Page:
        context = chromium.new_context()
        context.set_default_timeout(conftest.PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        if user:
            page.goto(server.url("/admin/"))
            page.get_by_label("Username").fill(user)
            page.get_by_label("Password").fill(deployments.ADMIN_PASSWORD)
            page.get_by_role("button", name="Log in").click()
            page.wait_for_selector("#user-tools")
        page.add_init_script(PAGE)
        page.goto(server.url(path))
        return page

    yield start
    for context in contexts:
        assert [page.evaluate("exceptions") for page in context.pages] == [[]]
        context.close()


def until(page: Page, expression: str, argument: Any = None) -> None:
    """`Page.wait_for_function` evaluates the expression in the page, where a Content Security Policy may forbid it."""
    waiting.until(lambda: page.evaluate(expression, argument), conftest.PATIENCE_MS / 1000, expression)


def guide_page(guide: str, containing: str, **query: str) -> str:
    return f"/page/?{urlencode({'guide': guide, 'containing': containing, **query})}"


def shows(page: Page, *what: Any) -> None:
    """Wait until the page has called `show` with these arguments."""
    until(page, "(what) => shown.some((one) => JSON.stringify(one) === what)", compact(what))


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def wait_subscribed(page: Page, channel: str, client: str = "fanfare") -> None:
    until(page, f"(name) => {client}.channel(name)?.subscribed", channel)


def load_pusher(page: Page, server: servers.Server, *, plugin: bool = False) -> None:
    page.add_script_tag(path=SCRIPT)
    if plugin:
        page.add_script_tag(url=server.url("/static/fanfare/resume.js"))


def token(server: servers.Server, seconds: int, *channels: str) -> str:
    now = int(time.time())
    claims = {"channels": channels, "rights": ["subscribe"], "iat": now, "exp": now + seconds, "jti": uuid4().hex}
    return signing.capability_token(server.application, claims)


# -- the template tag --------------------------------------------------------------------------------------------------


def test_page_of_the_client_tag_gets_private_events_and_runs_its_script(
    open_page: Open, server: servers.Server
) -> None:
    guide = "docs/how-to/page-client.md"
    page = open_page(user="admin")
    page.route("**/static/shop/orders.js", lambda route: route.fulfill(body=pages.snippet(guide, "shipped")))
    page.goto(server.url(guide_page(guide, "shop/orders.js")))
    wait_subscribed(page, "private-orders-42")
    calls.publish(server, "private-orders-42", "shipped", '{"id": 42}')
    shows(page, {"id": 42})


def test_encrypted_client_shows_the_plaintext(open_page: Open, server: servers.Server) -> None:
    guide = "docs/how-to/encrypted-channels.md"
    page = open_page(guide_page(guide, "encrypted=True"), "admin")
    page.evaluate(f"() => {{ {pages.snippet(guide, 'fanfare.subscribe')} }}")
    channel = "private-encrypted-patient-7"
    wait_subscribed(page, channel)
    publisher = sdk.client(server, encryption_master_key_base64=MASTER_KEY)
    publisher.trigger(channel, "finding", {"text": "all is well"})
    shows(page, "all is well")


def test_page_of_a_snapshot_gets_the_events_since_it(open_page: Open, server: servers.Server) -> None:
    calls.publish(server, "orders", "created", '"before the page"')
    page = open_page(guide_page("docs/how-to/snapshot.md", "since=positions"))
    calls.publish(server, "orders", "created", '"before the subscription"')
    page.evaluate("() => { fanfare.subscribe('orders').bind('created', show); }")
    until(page, "shown.length")
    assert page.evaluate("shown") == [["before the subscription"]]


@pytest.mark.parametrize(
    ("guide", "code", "function"),
    [
        ("docs/how-to/snapshot.md", pages.snippet("docs/how-to/snapshot.md", "fanfare:reset"), "loadRows"),
        ("docs/how-to/page-client.md", pages.snippet("docs/how-to/page-client.md", "fanfare:reset"), "reload"),
    ],
)
def test_page_with_positions_of_another_log_loads_its_rows(
    open_page: Open, guide: str, code: str, function: str
) -> None:
    since = compact({"orders": {"epoch": "another1", "offset": 7}})
    page = open_page(guide_page("docs/how-to/snapshot.md", "since=positions", since=since))
    page.evaluate(f"() => {{ const {function} = show; {code} fanfare.subscribe('orders'); }}")
    shows(page, "orders")


def test_snapshot_without_a_template_loads_rows_after_a_reset(open_page: Open, server: servers.Server) -> None:
    page = open_page()
    load_pusher(page, server, plugin=True)
    code = pages.snippet("docs/how-to/snapshot.md", "since: answer.positions")
    page.evaluate(
        f"""() => {{
            const load = show, answer = {{ positions: {{ orders: {{ epoch: "another1", offset: 7 }} }} }};
            {code}
            new Pusher("{server.application.key}", {OPTIONS % server.port}).subscribe("orders");
        }}"""
    )
    shows(page, "orders")


# -- users -------------------------------------------------------------------------------------------------------------


def test_user_signs_in_and_sees_who_comes_online(open_page: Open, server: servers.Server) -> None:
    guide = "docs/how-to/sign-in-users.md"
    code = pages.snippet(guide, "pusher.signin") + pages.snippet(guide, "watchlist.bind")
    found = []
    for user in ("admin", "bea"):
        page = open_page(user=user)
        load_pusher(page, server)
        page.evaluate(
            f"""() => {{
                const key = "{server.application.key}", options = {OPTIONS % server.port}, token = {CSRF};
                {code}
                window.pusher = pusher;
            }}"""
        )
        until(page, "pusher.user.user_data")
        found.append(page)
    assert found[0].evaluate("pusher.user.user_data.user_info") == {"name": "admin"}
    shows(found[0], [found[1].evaluate("pusher.user.user_data.id")])
    sdk.client(server).send_to_user(found[0].evaluate("pusher.user.user_data.id"), "paid", {"order": 7})
    shows(found[0], {"order": 7})


def test_page_of_another_host_signs_in_with_the_session(open_page: Open, server: servers.Server) -> None:
    page = open_page(user="admin")
    page.route(f"{SHOP}/**", lambda route: route.fulfill(body="<title>shop</title>", content_type="text/html"))
    page.goto(f"{SHOP}/")
    load_pusher(page, server)
    code = pages.snippet("docs/how-to/sign-in-users.md", 'credentials: "include"')
    code = code.replace("https://live.example.com", server.url("").rstrip("/"))
    page.evaluate(
        f"""() => {{
            const key = "{server.application.key}", options = {OPTIONS % server.port};
            {code}
            pusher.signin();
            pusher.subscribe("private-orders-42").bind("pusher:subscription_succeeded", () => show("subscribed"));
            window.pusher = pusher;
        }}"""
    )
    shows(page, "subscribed")
    until(page, "pusher.user.user_data")


def test_token_of_rest_framework_authorizes_a_channel(open_page: Open, server: servers.Server) -> None:
    """In a page without a session."""
    page = open_page()
    load_pusher(page, server)
    options = pages.snippet("docs/how-to/drf-and-celery.md", "channelAuthorization")
    page.evaluate(
        f"""() => {{
            for (const token of ["a-token", "another-token"]) {{
                {options}
                const pusher = new Pusher("{server.application.key}", {{ ...{OPTIONS % server.port}, ...options }});
                const channel = pusher.subscribe("private-orders-42");
                channel.bind("pusher:subscription_succeeded", () => show(token, "subscribed"));
                channel.bind("pusher:subscription_error", () => show(token, "refused"));
            }}
        }}"""
    )
    shows(page, "a-token", "subscribed")
    shows(page, "another-token", "refused")


def test_page_renews_its_capability_token(open_page: Open, server: servers.Server) -> None:
    page = open_page()
    load_pusher(page, server)
    guide = "docs/how-to/capability-tokens.md"
    connect, renew = pages.snippet(guide, "customHandler"), pages.snippet(guide, "TokenExpired")
    tokens = [token(server, seconds, "private-anything") for seconds in (5, 600)]
    page.evaluate(
        f"""(tokens) => {{
            const key = "{server.application.key}", options = {OPTIONS % server.port};
            const fetchToken = async () => {{ show("renewed"); return tokens[1]; }};
            let token = tokens[0];
            {connect}
            const channel = pusher.subscribe("private-anything");
            {renew}
            channel.bind("pusher:subscription_succeeded", () => show("subscribed"));
            channel.bind("tick", show);
        }}""",
        tokens,
    )
    shows(page, "renewed")
    until(page, "shown.filter(([what]) => what === 'subscribed').length === 2")
    calls.publish(server, "private-anything", "tick", "1")
    shows(page, 1)


# -- Server-Sent Events ------------------------------------------------------------------------------------------------


def test_event_source_shows_events_and_reloads_after_a_loss(open_page: Open, server: servers.Server) -> None:
    """The channel `news` has no history, so the events that were published before the reconnect are lost."""
    page = open_page()
    code = pages.snippet("docs/how-to/sse.md", "was_recovering").replace("YOUR_KEY", server.application.key)
    with proxies.in_front_of(server) as proxy:
        page.goto(proxy.url("/static/fanfare/site.css"))
        page.evaluate(
            f"() => {{ const location = {{ reload: () => show('reload') }}; {code} window.source = source; }}"
        )
        until(page, "source.readyState === EventSource.OPEN")
        calls.publish(server, "sport", "goal", '{"score": "1:0"}')
        shows(page, "sport", "goal", {"score": "1:0"})
        proxy.reset_all()
        shows(page, "reload")
        page.evaluate("source.close()")


def test_event_source_of_a_private_channel_needs_its_token(open_page: Open, server: servers.Server) -> None:
    page = open_page()
    code = pages.snippet("docs/how-to/sse.md", "&token=").replace("YOUR_KEY", server.application.key)
    made = event_streams.token(server.application, "private-orders-*", seconds=600)
    page.evaluate(f"(token) => {{ window.source = {code} source.onmessage = ({{ data }}) => show(data); }}", made)
    until(page, "source.readyState === EventSource.OPEN")
    calls.publish(server, "private-orders-7", "paid", '{"id": 7}')
    until(page, "shown.some(([data]) => JSON.parse(data).event === 'paid')")
    page.evaluate("source.close()")


def test_page_of_django_eventstream_shows_the_same_after_its_migration(open_page: Open, server: servers.Server) -> None:
    """The server of the code before is the test."""
    guide = "docs/how-to/migrate.md"
    page = open_page()
    page.route(
        "**/events/?channel=orders",
        lambda route: route.fulfill(body='data: {"id": 6}\n\n', content_type="text/event-stream"),
    )
    page.evaluate(f"() => {{ {pages.snippet(guide, '/events/?channel=orders')} }}")
    shows(page, {"id": 6})
    code = pages.snippet(guide, "/sse/my-key").replace("my-key", server.application.key)
    page.evaluate(f"() => {{ {code} }}")
    for _ in range(100):  # the snippet keeps no object to wait for
        calls.publish(server, "orders", "placed", '{"id": 7}')
        if page.evaluate("shown.length > 1"):
            break
        time.sleep(0.1)
    shows(page, {"id": 7})


# -- history, streams and the plugin -----------------------------------------------------------------------------------


def test_page_replaces_and_removes_messages(open_page: Open, server: servers.Server) -> None:
    guide = "docs/how-to/history.md"
    page = open_page()
    load_pusher(page, server, plugin=True)
    page.evaluate(
        f"""() => {{
            FanfareResume.install(Pusher);
            const pusher = new Pusher("{server.application.key}", {OPTIONS % server.port});
            const channel = pusher.subscribe("chat");
            for (const how of ["plain", "plugin"]) {{
                const replace = (id, data) => show(how, "replace", id, data), remove = (id) => show(how, "remove", id);
                if (how === "plain") {{ {pages.snippet(guide, "fanfare:revised")} }}
                else {{ {pages.snippet(guide, "channel.revisions")} }}
            }}
            window.pusher = pusher;
        }}"""
    )
    wait_subscribed(page, "chat", "pusher")
    with calls.Caller(server) as caller:
        place = caller.publish("chat", "message", '{"text": "teh"}', info="offset").body["channels"]["chat"]
        message = f"{place['epoch']}:{place['offset']}"
        route = f"channels/chat/history/{message}/revise"
        assert caller.signed("POST", route, {"data": '{"text": "the"}', "by": "7"}).status == 200
        assert caller.signed("POST", route, {"delete": "1"}).status == 200
    for how in ("plain", "plugin"):
        shows(page, how, "replace", message, {"text": "the"})
        shows(page, how, "remove", message)


def test_page_with_the_plugin_shows_a_stream(open_page: Open, server: servers.Server) -> None:
    page = open_page()
    load_pusher(page, server, plugin=True)
    page.evaluate(
        f"""() => {{
            FanfareResume.install(Pusher);
            const pusher = new Pusher("{server.application.key}", {OPTIONS % server.port});
            const channel = pusher.subscribe("chat");
            {pages.snippet("docs/how-to/stream-answers.md", 'channel.stream("answer"')}
            window.pusher = pusher;
        }}"""
    )
    wait_subscribed(page, "chat", "pusher")
    with calls.Caller(server) as caller:
        path = "channels/chat/streams"
        assert caller.signed("POST", path, {"name": "answer", "id": "a"}).status == 200
        for seq, fields in ((1, {"text": "The first"}), (2, {"text": " words", "state": "done"})):
            assert caller.signed("POST", f"{path}/a/append", {"seq": seq, **fields}).status == 200
    shows(page, "a", "The first words", "done")


def resumes(page: Page, server: servers.Server, proxy: proxies.ThreadedProxy, reason: str) -> None:
    """The page, which shows `created`, gets a missed event, and the reason when it has missed too many."""
    wait_subscribed(page, "orders", "pusher")
    calls.publish(server, "orders", "created", '"seen"')
    shows(page, "seen")
    proxy.reset_all()
    calls.publish(server, "orders", "created", '"missed"')
    shows(page, "missed")
    wait_subscribed(page, "orders", "pusher")
    with calls.Caller(server) as caller:
        events = [{"channel": "orders", "name": "created", "data": '"too many"'}] * (REPLAY + 1)
        proxy.reset_all()
        assert caller.signed("POST", "batch_events", {"batch": events}).status == 200
    until(page, "(reason) => shown.some((one) => one.includes(reason))", reason)


def test_page_with_a_token_resumes(open_page: Open, server: servers.Server) -> None:
    page = open_page()
    load_pusher(page, server)
    code = without_tls(pages.snippet("docs/how-to/resume.md", "wsPath"), server)
    with proxies.in_front_of(server) as proxy:
        code = code.replace(f"wsPort: {server.port}", f"wsPort: {proxy.port}")
        page.evaluate(
            f"""() => {{
                const loadOrders = () => show("loadOrders");
                {code}
                pusher.channel("orders").bind("created", show);
                window.pusher = pusher;
            }}"""
        )
        resumes(page, server, proxy, "loadOrders")
        page.evaluate("pusher.disconnect()")


def test_page_with_the_plugin_resumes(open_page: Open, server: servers.Server) -> None:
    page = open_page()
    text = pages.snippet("docs/how-to/resume.md", "FanfareResume.install", language="html")
    text = without_tls(text.replace("https://realtime.example.com", server.url("").rstrip("/")), server)
    with proxies.in_front_of(server) as proxy:
        text = text.replace(f"wsPort: {server.port}", f"wsPort: {proxy.port}")
        page.set_content(text.replace("<script>", "<script>const loadStateOf = (name) => show('reset', name);"))
        page.evaluate("() => { window.pusher = pusher; pusher.subscribe('orders').bind('created', show); }")
        resumes(page, server, proxy, "reset")
        page.evaluate("pusher.disconnect()")


def without_tls(code: str, server: servers.Server) -> str:
    code, count = re.subn("forceTLS: true", f"forceTLS: false, wsPort: {server.port}", code)
    assert count == 1
    return code.replace("realtime.example.com", servers.HOST).replace("YOUR_KEY", server.application.key)
