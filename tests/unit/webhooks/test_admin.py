"""Deliveries and the health of endpoints in the admin, through Django's test client."""

from __future__ import annotations

from html import unescape

import pytest
from django.contrib.auth.models import Permission, User
from django.http import HttpResponse
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings

from fanfare.applications.models import WebhookEndpoint
from fanfare.webhooks import deliveries, http_client, models

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "admin:fanfare_delivery_changelist"
PAGE = "admin:fanfare_delivery_change"
REDELIVER = "admin:fanfare_delivery_redeliver"
HEALTH = "admin:fanfare_endpointhealth_changelist"


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
    deliveries.failed([delivery.pk], http_client.Outcome(500, "HTTP 500", "<b>broken</b>", 34))
    return delivery


@pytest.fixture
def admin_client(admin_user: User) -> Client:
    client = Client()
    client.force_login(admin_user)
    return client


@pytest.fixture
def viewer() -> Client:
    """A user who may view and not change."""
    user = User.objects.create_user("viewer", is_staff=True)
    user.user_permissions.add(*Permission.objects.filter(codename__in=["view_delivery", "view_endpointhealth"]))
    client = Client()
    client.force_login(user)
    return client


def text(response: HttpResponse) -> str:
    return unescape(response.content.decode())


def test_list_finds_by_channel_state_and_endpoint(admin_client: Client, failed: models.Delivery) -> None:
    for query in ({"q": "private"}, {"state__exact": "failed"}, {"webhook__id__exact": failed.webhook_id}):
        assert "private-chat" in text(admin_client.get(reverse(LIST), query))
    for query in ({"q": "presence"}, {"state__exact": "delivered"}):
        assert "private-chat" not in text(admin_client.get(reverse(LIST), query))


def test_page_shows_event_and_response_escaped(admin_client: Client, failed: models.Delivery) -> None:
    page = admin_client.get(reverse(PAGE, args=(failed.pk,)))
    assert page.status_code == 200
    assert '"data": "<script>"' in text(page)
    assert "<b>broken</b>" in text(page)
    assert b"<b>broken" not in page.content
    assert b'"<script>"' not in page.content
    assert "34 ms" in text(page)


def test_action_redelivers_finished_deliveries(admin_client: Client, failed: models.Delivery) -> None:
    chosen = {"action": "redeliver", "_selected_action": [failed.pk]}
    page = admin_client.post(reverse(LIST), chosen, follow=True)
    assert "Deliveries to be sent again: 1." in text(page)
    repeated = models.Delivery.objects.get(repeats=failed)
    assert (repeated.state, repeated.payload) == ("pending", failed.payload)
    page = admin_client.post(reverse(LIST), {**chosen, "_selected_action": [repeated.pk]}, follow=True)
    assert "Pending deliveries, which are sent anyway: 1." in text(page)
    assert models.Delivery.objects.count() == 2


def test_button_redelivers_one_delivery(admin_client: Client, failed: models.Delivery) -> None:
    address = reverse(REDELIVER, args=(failed.pk,))
    assert address in text(admin_client.get(reverse(PAGE, args=(failed.pk,))))
    assert admin_client.get(address).status_code == 405
    page = admin_client.post(address, follow=True)
    assert "Deliveries to be sent again: 1." in text(page)
    assert reverse(PAGE, args=(models.Delivery.objects.get(repeats=failed).pk,)) in text(page)


def test_redelivery_stays_on_the_admin_site_of_the_project(
    admin_client: Client, failed: models.Delivery, settings: Settings
) -> None:
    settings.ROOT_URLCONF = "tests.unit.applications.custom_site"
    page = f"/staff/fanfare/delivery/{failed.pk}"
    assert admin_client.post(f"{page}/redeliver/").headers["Location"] == f"{page}/change/"
    repeated = models.Delivery.objects.get(repeats=failed)
    assert f'href="/staff/fanfare/delivery/{repeated.pk}/change/"' in text(admin_client.get(f"{page}/change/"))


def test_user_who_may_only_view_cannot_redeliver(viewer: Client, failed: models.Delivery) -> None:
    page = text(viewer.get(reverse(PAGE, args=(failed.pk,))))
    assert "private-chat" in page
    assert reverse(REDELIVER, args=(failed.pk,)) not in page
    assert viewer.post(reverse(REDELIVER, args=(failed.pk,))).status_code == 403
    viewer.post(reverse(LIST), {"action": "redeliver", "_selected_action": [failed.pk]})
    assert models.Delivery.objects.count() == 1


def test_deliveries_cannot_be_added_or_edited(admin_client: Client, failed: models.Delivery) -> None:
    assert admin_client.get(reverse("admin:fanfare_delivery_add")).status_code == 403
    assert admin_client.post(reverse(PAGE, args=(failed.pk,)), {"channel": "other"}).status_code == 403


def test_health_of_an_endpoint_is_shown(viewer: Client, failed: models.Delivery) -> None:
    outcome = http_client.Outcome(None, "No response within 10 s", "", 10_000)
    deliveries.save_health(failed.webhook_id, 5, 30.0, outcome)
    deliveries.redeliver([failed])
    page = text(viewer.get(reverse(HEALTH)))
    assert "No response within 10 s" in page
    assert '<td class="field-waiting">1</td>' in page
    assert 'alt="False"' in page
    health = models.EndpointHealth.objects.get()
    assert viewer.get(reverse("admin:fanfare_endpointhealth_change", args=(health.pk,))).status_code == 200


def test_user_with_the_change_permission_redelivers(viewer: Client, failed: models.Delivery) -> None:
    User.objects.get(username="viewer").user_permissions.add(Permission.objects.get(codename="change_delivery"))
    assert viewer.post(reverse(REDELIVER, args=(failed.pk,))).status_code == 302
    assert models.Delivery.objects.filter(repeats=failed).count() == 1


def test_query_values_of_an_endpoint_are_not_shown(viewer: Client, failed: models.Delivery) -> None:
    WebhookEndpoint.objects.update(url="https://example.com/hook?token=a-secret")
    deliveries.save_health(failed.webhook_id, 5, 30.0, http_client.Outcome(500, "HTTP 500", "", 1))
    health = models.EndpointHealth.objects.get()
    for address in (
        reverse(LIST),
        reverse(PAGE, args=(failed.pk,)),
        reverse(HEALTH),
        reverse("admin:fanfare_endpointhealth_change", args=(health.pk,)),
    ):
        page = text(viewer.get(address))
        assert "https://example.com/hook?token=…" in page
        assert "a-secret" not in page


def test_payload_that_is_no_json_is_shown_as_it_is(admin_client: Client, failed: models.Delivery) -> None:
    models.Delivery.objects.update(payload="{damaged")
    assert "{damaged" in text(admin_client.get(reverse(PAGE, args=(failed.pk,))))
