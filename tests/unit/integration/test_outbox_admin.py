"""The outbox in the admin, through Django's test client."""

from __future__ import annotations

from html import unescape

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse

from fanfare.integration import models, outbox

pytestmark = pytest.mark.django_db

LIST = "admin:fanfare_outboxevent_changelist"
PAGE = "admin:fanfare_outboxevent_change"


@pytest.fixture
def waiting() -> models.OutboxEvent:
    return row("waiting")


@pytest.fixture
def failed() -> models.OutboxEvent:
    event = row("failed")
    outbox.fail("default", event.pk, "There is no application with the id '9'.")
    event.refresh_from_db()
    return event


def row(event: str) -> models.OutboxEvent:
    frame = f'{{"event":"{event}","channel":"orders-{event}","data":"<script>"}}'
    return models.OutboxEvent.objects.create(app_id="9", channel=f"orders-{event}", frame=frame)


@pytest.fixture
def viewer() -> Client:
    """A user who may view and not change."""
    user = User.objects.create_user("viewer", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_outboxevent"))
    client = Client()
    client.force_login(user)
    return client


def page(client: Client, name: str, *arguments: object, **query: str) -> str:
    response = client.get(reverse(name, args=arguments), query)
    assert response.status_code == 200
    return response.content.decode()


def test_waiting_and_failed_events_are_listed_with_their_reason(
    admin_client: Client, waiting: models.OutboxEvent, failed: models.OutboxEvent
) -> None:
    everything = unescape(page(admin_client, LIST))
    for part in ("orders-waiting", "orders-failed", "There is no application with the id '9'."):
        assert part in everything
    failures = page(admin_client, LIST, state="failed")
    assert ("orders-failed" in failures, "orders-waiting" in failures) == (True, False)
    assert "orders-waiting" in page(admin_client, LIST, state="waiting")
    found = page(admin_client, LIST, q="orders-wait")
    assert ("orders-failed" in found, "orders-waiting" in found) == (False, True)


def test_event_is_shown_escaped_and_cannot_be_edited(admin_client: Client, failed: models.OutboxEvent) -> None:
    shown = page(admin_client, PAGE, failed.pk)
    assert "&lt;script&gt;" in shown
    assert 'name="_save"' not in shown
    assert admin_client.get(reverse("admin:fanfare_outboxevent_add")).status_code == 403


def test_failed_events_are_sent_again_and_waiting_ones_left_alone(
    admin_client: Client, waiting: models.OutboxEvent, failed: models.OutboxEvent
) -> None:
    chosen = {"action": "retry", "_selected_action": [waiting.pk, failed.pk]}
    response = admin_client.post(reverse(LIST), chosen, follow=True)
    assert "Events to be sent again: 1." in response.content.decode()
    failed.refresh_from_db()
    assert (failed.failed_at, failed.reason) == (None, "")


def test_user_who_may_only_view_cannot_send_again(viewer: Client, failed: models.OutboxEvent) -> None:
    assert "Send selected failed events again" not in page(viewer, LIST)
    viewer.post(reverse(LIST), {"action": "retry", "_selected_action": [failed.pk]})
    failed.refresh_from_db()
    assert failed.failed_at is not None


def test_permission_to_change_outbox_events_is_enough_to_send_them_again(
    viewer: Client, failed: models.OutboxEvent
) -> None:
    User.objects.get(username="viewer").user_permissions.add(Permission.objects.get(codename="change_outboxevent"))
    viewer.post(reverse(LIST), {"action": "retry", "_selected_action": [failed.pk]})
    failed.refresh_from_db()
    assert failed.failed_at is None


def test_damaged_row_is_listed(admin_client: Client, failed: models.OutboxEvent) -> None:
    models.OutboxEvent.objects.update(frame="{damaged")
    assert "(damaged)" in page(admin_client, LIST)
    assert "{damaged" in page(admin_client, PAGE, failed.pk)
