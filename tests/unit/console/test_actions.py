"""Actions on workers and webhooks: permissions, the audit log, and the action itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.utils import timezone

from fanfare.applications import loading
from fanfare.applications.models import Application, WebhookEndpoint
from fanfare.console import requests
from fanfare.console.endpoints import connections, webhooks, workers
from fanfare.console.models import AuditEntry
from fanfare.console.permissions import Access
from fanfare.console.reports import Collection, Report
from fanfare.console.worker_control import Action
from fanfare.webhooks.models import Delivery, State

pytestmark = pytest.mark.django_db(transaction=True)


class Deployment:
    """The parts of a worker that the actions use; `asked`: the requests to the control; `revoked`: applications and ids
    of tokens."""

    def __init__(self, application: Application) -> None:
        self.asked: list[tuple[str, Action]] = []
        self.revoked: list[tuple[str, str]] = []
        self.connections = SimpleNamespace(revoke=self._revoke)
        self.control = SimpleNamespace(request=self._request)
        self.reports = self
        self.registry = SimpleNamespace(by_id={application.app_id: loading.snapshot(application)}.get)

    async def _request(self, worker: str, action: Action) -> None:
        self.asked.append((worker, action))

    async def _revoke(self, app: str, token_id: str) -> None:
        self.revoked.append((app, token_id))

    async def collect(self) -> Collection:
        return Collection((Report("w1", "node", 7, "1.0", 0.0),), {}, 1)


@pytest.fixture
def endpoint() -> WebhookEndpoint:
    application = Application.objects.create(name="Shop")
    return WebhookEndpoint.objects.create(application=application, url="https://example.com/hook")


def request(endpoint: WebhookEndpoint, /, *permissions: str, app: str | None = None, **body: Any) -> requests.Request:
    """A request of a user with these permissions, for the application of `endpoint` or for another one."""
    app_id = endpoint.application.app_id
    access = Access("1", "ann", dict.fromkeys(permissions, frozenset({app_id if app is None else app})))
    return requests.Request(Deployment(endpoint.application), access, {}, {"app": app_id, **body})


def delivery(endpoint: WebhookEndpoint, state: str = State.FAILED) -> Delivery:
    created = {"entry": 1, "created_at": timezone.now(), "state": state}
    return Delivery.objects.create(webhook=endpoint, event="channel_occupied", channel="news", payload="{}", **created)


async def actions() -> list[tuple[str, str, str]]:
    return [(one.user, one.action, one.target) async for one in AuditEntry.objects.order_by("id")]


async def test_worker_is_drained_and_the_action_recorded(endpoint: WebhookEndpoint) -> None:
    asked = request(endpoint, "drain_worker", worker="w1", action="drain")
    await workers.worker(asked)
    assert asked.worker.asked == [("w1", Action.DRAIN)]
    assert await actions() == [("ann", "drain", "node 7")]


@pytest.mark.parametrize(
    ("permission", "worker", "action", "status"),
    [("view_console", "w1", "drain", 403), ("drain_worker", "w1", "kill", 400), ("drain_worker", "gone", "drain", 404)],
)
async def test_wrong_action_on_a_worker_does_nothing(
    endpoint: WebhookEndpoint, permission: str, worker: str, action: str, status: int
) -> None:
    asked = request(endpoint, permission, worker=worker, action=action)
    with pytest.raises(requests.Problem) as raised:
        await workers.worker(asked)
    assert raised.value.status == status
    assert asked.worker.asked == []
    assert await actions() == []


async def test_endpoint_is_paused_and_resumed(endpoint: WebhookEndpoint) -> None:
    for enabled in (False, True):
        await webhooks.pause(request(endpoint, "manage_webhooks", endpoint=endpoint.pk, enabled=enabled))
        assert await WebhookEndpoint.objects.filter(pk=endpoint.pk, enabled=enabled).aexists()
    assert [action for _, action, _ in await actions()] == ["pause webhook", "resume webhook"]


async def test_endpoint_of_another_application_is_not_paused(endpoint: WebhookEndpoint) -> None:
    with pytest.raises(requests.Problem) as raised:
        await webhooks.pause(request(endpoint, "manage_webhooks", app="77", endpoint=endpoint.pk, enabled=False))
    assert raised.value.status == 403
    await endpoint.arefresh_from_db()
    assert endpoint.enabled


async def test_endpoint_of_a_declared_application_is_not_paused(endpoint: WebhookEndpoint) -> None:
    await Application.objects.filter(pk=endpoint.application_id).aupdate(declared=True)
    with pytest.raises(requests.Problem) as raised:
        await webhooks.pause(request(endpoint, "manage_webhooks", endpoint=endpoint.pk, enabled=False))
    assert raised.value.status == 409


async def test_failed_delivery_is_sent_again(endpoint: WebhookEndpoint) -> None:
    failed = await sync_to_async(delivery)(endpoint)
    await webhooks.redeliver(request(endpoint, "manage_webhooks", delivery=failed.pk))
    assert await Delivery.objects.filter(repeats=failed, state=State.PENDING).acount() == 1
    assert await actions() == [("ann", "redeliver", "news")]


async def test_pending_delivery_is_left_alone(endpoint: WebhookEndpoint) -> None:
    pending = await sync_to_async(delivery)(endpoint, State.PENDING)
    with pytest.raises(requests.Problem) as raised:
        await webhooks.redeliver(request(endpoint, "manage_webhooks", delivery=pending.pk))
    assert raised.value.status == 404


async def test_list_has_only_the_applications_of_the_user(endpoint: WebhookEndpoint) -> None:
    await sync_to_async(delivery)(endpoint)
    seen = await webhooks.webhooks(request(endpoint, "view_console"))
    assert [one["url"] for one in seen["endpoints"]] == ["https://example.com/hook"]
    assert [one["channel"] for one in seen["deliveries"]] == ["news"]
    assert await webhooks.webhooks(request(endpoint, "view_console", app="77")) == {"endpoints": [], "deliveries": []}


async def test_token_is_revoked_by_its_id_and_the_action_recorded(endpoint: WebhookEndpoint) -> None:
    asked = request(endpoint, "disconnect_client", token="5d41402abc4b")
    await connections.revoke(asked)
    assert asked.worker.revoked == [(endpoint.application.app_id, "5d41402abc4b")]
    assert await actions() == [("ann", "revoke", "5d41402abc4b")]


@pytest.mark.parametrize(
    ("permission", "app", "token", "status"),
    [
        ("view_console", None, "5d41402abc4b", 403),
        ("disconnect_client", "77", "5d41402abc4b", 403),
        ("disconnect_client", None, "a.b/c", 400),
        ("disconnect_client", None, "", 400),
    ],
)
async def test_wrong_revocation_does_nothing(
    endpoint: WebhookEndpoint, permission: str, app: str | None, token: str, status: int
) -> None:
    asked = request(endpoint, permission, app=app, token=token)
    asked.body["app"] = endpoint.application.app_id
    with pytest.raises(requests.Problem) as raised:
        await connections.revoke(asked)
    assert raised.value.status == status
    assert asked.worker.revoked == []
    assert await actions() == []
