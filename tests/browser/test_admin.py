"""The admin in a real browser: what an operator does to applications, and what their clients notice."""

from __future__ import annotations

import re
from uuid import uuid4

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenWindow
from tests.harness import calls, deployments, servers, waiting, wire

AT_ONCE = 3.0  # seconds


@pytest.fixture
def server(production: servers.Server) -> servers.Server:
    """Four workers: the one that serves the admin is rarely the one that has the socket."""
    return production


@pytest.fixture
def admin(server: servers.Server, window: OpenWindow) -> Page:
    """A window that is logged in."""
    page = window()
    log_in(page, server)
    return page


def log_in(page: Page, server: servers.Server) -> None:
    page.goto(server.url("/admin/"))
    page.get_by_label("Username").fill(deployments.ADMIN_NAME)
    page.get_by_label("Password").fill(deployments.ADMIN_PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#user-tools")).to_contain_text(re.compile(deployments.ADMIN_NAME, re.IGNORECASE))


def create(admin: Page, server: servers.Server, name: str) -> deployments.Application:
    """Create an application by hand; its credentials as the page shows them."""
    admin.goto(server.url("/admin/fanfare/application/add/"))
    admin.get_by_label("Name", exact=False).first.fill(name)
    admin.get_by_role("button", name="Save and continue editing").click()
    expect(admin.locator(".messagelist")).to_contain_text("was added successfully")
    application = read(admin)
    waiting.until(lambda: knows(server, application), AT_ONCE, "the workers take up the new application")
    return application


def read(admin: Page) -> deployments.Application:
    """The credentials on an application's page."""
    admin.locator("details.secret summary").click()
    return deployments.Application(
        id=admin.locator(".field-app_id .readonly").inner_text(),
        key=admin.locator("#id_key").input_value(),
        secret=admin.locator("details.secret code").inner_text(),
    )


def knows(server: servers.Server, application: deployments.Application) -> bool:
    with calls.Caller(server, application) as caller:
        return caller.signed("GET", "channels").status == 200


def test_a_created_application_works_and_a_disabled_one_loses_its_sockets(server: servers.Server, admin: Page) -> None:
    name = f"Shop {uuid4().hex[:6]}"
    application = create(admin, server, name)
    with wire.Wire(server.port, f"/app/{application.key}?protocol=7") as socket:
        established = socket.receive()
        assert established is not None
        assert b"connection_established" in established.payload

        admin.goto(server.url("/admin/fanfare/application/"))
        row = admin.locator("#result_list tr", has_text=name)
        row.locator("input.action-select").check()
        admin.get_by_label("Action:").select_option("disable_selected")
        admin.get_by_role("button", name="Run the selected action").or_(admin.get_by_role("button", name="Go")).click()
        expect(admin.locator("#content")).to_contain_text("closed with 4003 and do not reconnect by themselves")
        admin.get_by_role("button", name="Yes, disable").click()
        expect(admin.locator(".messagelist")).to_contain_text(f"Disabled: {name}.")

        socket.socket.settimeout(AT_ONCE)
        while (frame := socket.receive()) is not None and frame.opcode != wire.CLOSE:
            continue
        assert frame is not None
        assert int.from_bytes(frame.payload[:2], "big") == 4100, "its clients come back if it is enabled again"
    with calls.Caller(server, application) as caller:
        assert caller.signed("GET", "channels").status == 403


def test_a_rotated_secret_leaves_the_old_one_a_grace_period_that_can_be_ended(
    server: servers.Server, admin: Page
) -> None:
    old = create(admin, server, f"Shop {uuid4().hex[:6]}")
    admin.get_by_role("link", name="Rotate secret").click()
    expect(admin.locator("#content")).to_contain_text(
        "The old secret stays valid beside the new one for 1\xa0day, until 20"
    )
    admin.get_by_role("button", name="Yes, rotate the secret").click()
    expect(admin.locator(".messagelist")).to_contain_text("has a new secret. The old one is valid until 20")
    new = read(admin)
    assert (new.id, new.key) == (old.id, old.key)
    assert new.secret != old.secret
    waiting.until(lambda: knows(server, new), AT_ONCE, "the new secret is accepted")
    assert knows(server, old)
    admin.get_by_role("link", name="End old secret").click()
    admin.get_by_role("button", name="Yes, end the old secret").click()
    expect(admin.locator(".messagelist")).to_contain_text("is no longer valid")
    waiting.until(lambda: not knows(server, old), AT_ONCE, "the old secret is refused")
    assert knows(server, new)


def test_leaked_secret_is_refused_at_once(server: servers.Server, admin: Page) -> None:
    old = create(admin, server, f"Shop {uuid4().hex[:6]}")
    admin.get_by_role("link", name="Rotate secret").click()
    admin.get_by_label("The old secret has leaked").check()
    admin.get_by_role("button", name="Yes, rotate the secret").click()
    expect(admin.locator(".messagelist")).to_contain_text("has a new secret. The old one is no longer valid.")
    new = read(admin)
    waiting.until(lambda: knows(server, new), AT_ONCE, "the new secret is accepted")
    waiting.until(lambda: not knows(server, old), AT_ONCE, "the old secret is refused")


def test_added_webhook_is_shown_as_it_was_entered(server: servers.Server, admin: Page) -> None:
    create(admin, server, f"Shop {uuid4().hex[:6]}")
    admin.get_by_role("button", name="Add another Webhook").click()
    webhook = admin.locator("#webhooks-0")
    webhook.get_by_label("URL").fill("https://example.com/hook")
    webhook.get_by_label("cache_miss").check()
    webhook.get_by_label("Headers").fill("Authorization: Bearer abc")
    admin.get_by_role("button", name="Save and continue editing").click()
    expect(admin.locator(".messagelist")).to_contain_text("changed successfully")
    expect(webhook.get_by_label("URL")).to_have_value("https://example.com/hook")
    expect(webhook.get_by_label("cache_miss")).to_be_checked()
    expect(webhook.get_by_label("client_event")).not_to_be_checked()
    expect(webhook.get_by_label("Headers")).to_have_value("Authorization: Bearer abc")


def test_a_channel_rule_is_added_after_the_others_and_reaches_the_workers(server: servers.Server, admin: Page) -> None:
    application = create(admin, server, f"Shop {uuid4().hex[:6]}")
    for number, pattern in enumerate(("orders-*", "*")):
        admin.get_by_role("button", name="Add another Channel rule").click()
        rule = admin.locator(f"#rules-{number}")
        rule.get_by_label("Pattern").fill(pattern)
        rule.get_by_label("History size").fill("50")
        admin.get_by_role("button", name="Save and continue editing").click()
        expect(admin.locator(".messagelist")).to_contain_text("changed successfully")
        expect(rule.get_by_label("Pattern")).to_have_value(pattern)
        expect(rule.get_by_label("Position")).to_have_value(str(number + 1))
        expect(rule.get_by_label("History size")).to_have_value("50")
        expect(rule.get_by_label("Max replay entries")).to_have_value("300")

    def keeps() -> bool:
        with calls.Caller(server, application) as caller:
            return caller.signed("GET", "channels/orders-7/history").status == 200

    waiting.until(keeps, AT_ONCE, "the workers know the rule")


def test_a_deleted_application_is_unknown(server: servers.Server, admin: Page) -> None:
    application = create(admin, server, f"Shop {uuid4().hex[:6]}")
    admin.get_by_role("link", name="Delete").click()
    admin.get_by_role("button", name="Yes, I").click()
    expect(admin.locator(".messagelist")).to_contain_text("deleted successfully")
    waiting.until(lambda: not knows(server, application), AT_ONCE, "its key is refused")


def test_the_secret_is_hidden_until_it_is_asked_for(server: servers.Server, admin: Page) -> None:
    application = create(admin, server, f"Shop {uuid4().hex[:6]}")
    admin.reload()
    secret = admin.locator("details.secret code")
    expect(secret).not_to_be_visible()
    admin.locator("details.secret summary").click()
    expect(secret).to_have_text(application.secret)


def test_an_event_that_cannot_be_sent_is_seen_in_the_outbox_and_sent_again(admin: Page, server: servers.Server) -> None:
    channel = f"outbox-{uuid4().hex[:8]}"
    frame = f'{{"event":"created","channel":"{channel}","data":"1"}}'
    server.deployment.shell(
        "from fanfare.integration import models, outbox\n"
        f"row = models.OutboxEvent.objects.create(app_id={server.application.id!r}, channel={channel!r}, "
        f"frame={frame!r})\n"
        "outbox.fail('default', row.pk, 'The data is too large.')"
    )
    admin.goto(server.url(f"/admin/fanfare/outboxevent/?q={channel}"))
    expect(admin.locator("#result_list tbody tr")).to_contain_text("The data is too large.")
    admin.locator("#result_list .action-select").check()
    admin.get_by_label("Action:").select_option("retry")
    admin.get_by_role("button", name="Go").click()
    expect(admin.locator(".messagelist")).to_contain_text("Events to be sent again: 1.")

    def is_sent() -> bool:
        admin.reload()
        return admin.locator("#result_list tbody tr").count() == 0

    waiting.until(is_sent, 30.0, "the relay has sent it")
