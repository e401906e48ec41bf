"""The log of deliveries and the endpoints' health, through Django's test client."""

from __future__ import annotations

from html import unescape

import pytest
from django.contrib.auth.models import Permission, User
from django.http import HttpResponse
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from fanfare.applications.models import WebhookEndpoint
from fanfare.webhooks import courier, models, outbox

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "admin:fanfare_delivery_changelist"
PAGE = "admin:fanfare_delivery_change"
REDELIVER = "admin:fanfare_delivery_redeliver"
HEALTH = "admin:fanfare_health_changelist"


@pytest.fixture
def failed(endpoint: WebhookEndpoint) -> models.Delivery:
    delivery = models.Delivery.objects.create(
        webhook=endpoint,
        event="client_event",
        channel="private-chat",
        payload='{"name":"client_event","data":"<script>"}',
        entry=7,
        created_at=timezone.now(),
    )
    outbox.failed([delivery.pk], courier.Outcome(500, "HTTP 500", "<b>broken</b>", 34))
    return delivery


@pytest.fixture
def admin_client(admin_user: User) -> Client:
    client = Client()
    client.force_login(admin_user)
    return client


@pytest.fixture
def viewer() -> Client:
    """Somebody who may look and not touch."""
    user = User.objects.create_user("viewer", is_staff=True)
    user.user_permissions.add(*Permission.objects.filter(codename__in=["view_delivery", "view_health"]))
    client = Client()
    client.force_login(user)
    return client


def text(response: HttpResponse) -> str:
    return unescape(response.content.decode())


def test_the_list_finds_by_channel_state_and_endpoint(admin_client: Client, failed: models.Delivery) -> None:
    for query in ({"q": "private"}, {"state__exact": "failed"}, {"webhook__id__exact": failed.webhook_id}):
        assert "private-chat" in text(admin_client.get(reverse(LIST), query))
    for query in ({"q": "presence"}, {"state__exact": "delivered"}):
        assert "private-chat" not in text(admin_client.get(reverse(LIST), query))


def test_the_page_shows_the_event_and_the_answer_and_runs_nothing(
    admin_client: Client, failed: models.Delivery
) -> None:
    page = admin_client.get(reverse(PAGE, args=(failed.pk,)))
    assert page.status_code == 200
    assert '"data": "<script>"' in text(page)
    assert "<b>broken</b>" in text(page)
    assert b"<b>broken" not in page.content
    assert b'"<script>"' not in page.content
    assert "34 ms" in text(page)


def test_the_action_redelivers_what_is_finished(admin_client: Client, failed: models.Delivery) -> None:
    chosen = {"action": "redeliver", "_selected_action": [failed.pk]}
    page = admin_client.post(reverse(LIST), chosen, follow=True)
    assert "To be delivered again: 1." in text(page)
    repeated = models.Delivery.objects.get(repeats=failed)
    assert (repeated.state, repeated.payload) == ("pending", failed.payload)
    page = admin_client.post(reverse(LIST), {**chosen, "_selected_action": [repeated.pk]}, follow=True)
    assert "Still waiting for their delivery, so left alone: 1." in text(page)
    assert models.Delivery.objects.count() == 2


def test_the_button_redelivers_one(admin_client: Client, failed: models.Delivery) -> None:
    address = reverse(REDELIVER, args=(failed.pk,))
    assert address in text(admin_client.get(reverse(PAGE, args=(failed.pk,))))
    assert admin_client.get(address).status_code == 405
    page = admin_client.post(address, follow=True)
    assert "To be delivered again: 1." in text(page)
    assert reverse(PAGE, args=(models.Delivery.objects.get(repeats=failed).pk,)) in text(page)


def test_who_may_only_look_cannot_redeliver(viewer: Client, failed: models.Delivery) -> None:
    page = text(viewer.get(reverse(PAGE, args=(failed.pk,))))
    assert "private-chat" in page
    assert reverse(REDELIVER, args=(failed.pk,)) not in page
    assert viewer.post(reverse(REDELIVER, args=(failed.pk,))).status_code == 403
    viewer.post(reverse(LIST), {"action": "redeliver", "_selected_action": [failed.pk]})
    assert models.Delivery.objects.count() == 1


def test_nobody_adds_or_edits_a_delivery(admin_client: Client, failed: models.Delivery) -> None:
    assert admin_client.get(reverse("admin:fanfare_delivery_add")).status_code == 403
    assert admin_client.post(reverse(PAGE, args=(failed.pk,)), {"channel": "other"}).status_code == 403


def test_the_health_of_an_endpoint_is_shown(viewer: Client, failed: models.Delivery) -> None:
    outbox.save_health(failed.webhook_id, courier.Outcome(None, "No answer within 10 seconds", "", 10_000), 5, 30.0)
    outbox.redeliver([failed])
    page = text(viewer.get(reverse(HEALTH)))
    assert "No answer within 10 seconds" in page
    assert '<td class="field-waiting">1</td>' in page
    assert 'alt="False"' in page
    health = models.Health.objects.get()
    assert viewer.get(reverse("admin:fanfare_health_change", args=(health.pk,))).status_code == 200
