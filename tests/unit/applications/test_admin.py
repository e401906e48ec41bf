"""The admin's pages of the applications, through Django's test client."""

from __future__ import annotations

from html import unescape

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.http import HttpResponse
from django.test import Client
from django.urls import reverse

from apps.applications import limits
from apps.applications.models import Application
from tests.unit.applications import fakes

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "admin:applications_application_changelist"
ADD = "admin:applications_application_add"
CHANGE = "admin:applications_application_change"
ROTATE = "admin:applications_application_rotate_secret"
DELETE = "admin:applications_application_delete"


@pytest.fixture
def shop() -> Application:
    return Application.objects.create(name="Shop", app_id="42", key="shop-key", secret="shop-secret")


@pytest.fixture
def declared() -> Application:
    return Application.objects.create(name="Declared", app_id="7", key="d-key", secret="d-secret", declared=True)


@pytest.fixture
def viewer() -> Client:
    """Somebody who may look and not touch."""
    user = User.objects.create_user("viewer", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_application"))
    client = Client()
    client.force_login(user)
    return client


def text(response: HttpResponse) -> str:
    return unescape(response.content.decode())


def filled(application: Application, **values: object) -> dict[str, object]:
    """What a browser sends from the page of one application."""
    form: dict[str, object] = {
        "name": application.name,
        "key": application.key,
        "allowed_origins": application.allowed_origins,
        **dict.fromkeys(limits.NAMES, ""),
    }
    form |= {"enabled": "on"} if application.enabled else {}
    return form | values


def switches(*applications: Application, on: set[str]) -> dict[str, object]:
    """What a browser sends from the list when somebody saves its switches."""
    form: dict[str, object] = {
        "form-TOTAL_FORMS": len(applications),
        "form-INITIAL_FORMS": len(applications),
        "_save": "1",
    }
    for number, application in enumerate(applications):
        form[f"form-{number}-id"] = application.pk
        if application.name in on:
            form[f"form-{number}-enabled"] = "on"
    return form


class TestList:
    def test_it_shows_names_ids_and_keys_and_no_secret(self, admin_client: Client, shop: Application) -> None:
        page = text(admin_client.get(reverse(LIST)))
        assert all(value in page for value in ("Shop", "42", "shop-key"))
        assert "shop-secret" not in page

    @pytest.mark.parametrize("words", ["shop", "42", "shop-key"])
    def test_it_finds_by_name_id_and_key(self, admin_client: Client, shop: Application, words: str) -> None:
        Application.objects.create(name="Other", app_id="9", key="other")
        page = text(admin_client.get(reverse(LIST), {"q": words}))
        assert "1 result" in page

    def test_a_switch_enables_and_disables(self, admin_client: Client, shop: Application, log: fakes.Log) -> None:
        log.publications.clear()
        admin_client.post(reverse(LIST), switches(shop, on=set()))
        shop.refresh_from_db()
        assert not shop.enabled
        assert log.announced == ["42"]

    def test_the_switch_of_a_declared_application_does_nothing(
        self, admin_client: Client, declared: Application
    ) -> None:
        admin_client.post(reverse(LIST), switches(declared, on=set()))
        declared.refresh_from_db()
        assert declared.enabled

    def test_the_actions_switch_the_selected_ones_and_say_what_they_left(
        self, admin_client: Client, shop: Application, declared: Application, log: fakes.Log
    ) -> None:
        log.publications.clear()
        selected = {"action": "disable", "_selected_action": [shop.pk, declared.pk]}
        page = text(admin_client.post(reverse(LIST), selected, follow=True))
        shop.refresh_from_db()
        declared.refresh_from_db()
        assert (shop.enabled, declared.enabled) == (False, True)
        assert "Disabled: 1." in page
        assert "left alone: 1." in page
        assert log.announced == ["42"]
        assert LogEntry.objects.get().get_change_message() == "Was disabled."
        admin_client.post(reverse(LIST), {"action": "enable", "_selected_action": [shop.pk]})
        shop.refresh_from_db()
        assert shop.enabled

    def test_the_delete_action_is_announced(self, admin_client: Client, shop: Application, log: fakes.Log) -> None:
        log.publications.clear()
        selected = {"action": "delete_selected", "_selected_action": [shop.pk], "post": "yes"}
        admin_client.post(reverse(LIST), selected)
        assert not Application.objects.exists()
        assert log.announced == ["42"]

    def test_the_delete_action_spares_a_declared_application(self, admin_client: Client, declared: Application) -> None:
        selected = {"action": "delete_selected", "_selected_action": [declared.pk], "post": "yes"}
        admin_client.post(reverse(LIST), selected)
        assert Application.objects.exists()


class TestAdding:
    def test_credentials_are_generated_and_may_be_replaced(self, admin_client: Client) -> None:
        page = admin_client.get(reverse(ADD))
        initial = page.context["adminform"].form
        assert initial["key"].value()
        form = filled(Application(name="Moved"), app_id="99", key="old-key", secret="old-secret")
        admin_client.post(reverse(ADD), form)
        application = Application.objects.get(name="Moved")
        assert (application.app_id, application.key, application.secret) == ("99", "old-key", "old-secret")

    def test_a_mistake_is_said_beside_its_field(self, admin_client: Client) -> None:
        form = filled(Application(name="Shop"), app_id="x", secret="s", max_connections="0")
        response = admin_client.post(reverse(ADD), form)
        problems = response.context["adminform"].form.errors
        assert problems["app_id"] == ["The id has 1 to 15 digits and starts with no zero."]
        assert problems["max_connections"] == ["0 is less than 1, the least that is allowed."]
        assert not Application.objects.exists()


class TestOneApplication:
    def test_its_settings_can_be_changed_and_its_id_and_secret_cannot(
        self, admin_client: Client, shop: Application
    ) -> None:
        form = filled(shop, name="Shop 2", client_events="on", max_connections="500", app_id="1", secret="mine")
        admin_client.post(reverse(CHANGE, args=[shop.pk]), form)
        shop.refresh_from_db()
        assert (shop.name, shop.client_events, shop.max_connections) == ("Shop 2", True, 500)
        assert (shop.app_id, shop.secret) == ("42", "shop-secret")

    def test_a_limit_shows_its_default_and_its_bounds(self, admin_client: Client, shop: Application) -> None:
        page = text(admin_client.get(reverse(CHANGE, args=[shop.pk])))
        assert 'placeholder="102400"' in page
        assert 'placeholder="unlimited"' in page
        assert "From 1 to 1,048,576." in page

    def test_the_secret_is_folded_away(self, admin_client: Client, shop: Application) -> None:
        page = text(admin_client.get(reverse(CHANGE, args=[shop.pk])))
        assert "<summary>Show</summary><code data-copy>shop-secret</code></details>" in page

    def test_who_may_only_look_does_not_see_the_secret(self, viewer: Client, shop: Application) -> None:
        response = viewer.get(reverse(CHANGE, args=[shop.pk]))
        assert response.status_code == 200
        assert "shop-key" in text(response)
        assert "shop-secret" not in text(response)

    def test_a_declared_one_can_be_seen_and_not_changed(self, admin_client: Client, declared: Application) -> None:
        page = text(admin_client.get(reverse(CHANGE, args=[declared.pk])))
        assert "FANFARE_APPS" in page
        assert "Rotate secret" not in page
        assert "d-secret" in page
        form = filled(declared, name="Mine", max_connections="5")
        assert admin_client.post(reverse(CHANGE, args=[declared.pk]), form).status_code == 403
        declared.refresh_from_db()
        assert (declared.name, declared.max_connections) == ("Declared", None)
        assert admin_client.post(reverse(DELETE, args=[declared.pk]), {"post": "yes"}).status_code == 403

    def test_deleting_is_announced(self, admin_client: Client, shop: Application, log: fakes.Log) -> None:
        log.publications.clear()
        admin_client.post(reverse(DELETE, args=[shop.pk]), {"post": "yes"})
        assert not Application.objects.exists()
        assert log.announced == ["42"]


class TestRotation:
    def test_it_asks_first(self, admin_client: Client, shop: Application) -> None:
        page = text(admin_client.get(reverse(ROTATE, args=[shop.pk])))
        assert "Yes, rotate the secret" in page
        assert "shop-secret" not in page
        shop.refresh_from_db()
        assert shop.secret == "shop-secret"

    def test_it_replaces_the_secret_and_writes_it_down(
        self, admin_client: Client, shop: Application, log: fakes.Log
    ) -> None:
        log.publications.clear()
        response = admin_client.post(reverse(ROTATE, args=[shop.pk]))
        assert response.headers["Location"] == reverse(CHANGE, args=[shop.pk])
        shop.refresh_from_db()
        assert shop.secret != "shop-secret"
        assert log.announced == ["42"]
        entry = LogEntry.objects.get()
        assert entry.get_change_message() == "Rotated the secret."
        assert shop.secret not in entry.change_message

    def test_it_needs_the_permission_to_change(self, viewer: Client, shop: Application) -> None:
        assert viewer.get(reverse(ROTATE, args=[shop.pk])).status_code == 403
        assert viewer.post(reverse(ROTATE, args=[shop.pk])).status_code == 403
        shop.refresh_from_db()
        assert shop.secret == "shop-secret"

    def test_it_needs_a_token_against_forgery(self, admin_user: User, shop: Application) -> None:
        client = Client(enforce_csrf_checks=True)
        client.force_login(admin_user)
        assert client.post(reverse(ROTATE, args=[shop.pk])).status_code == 403

    def test_it_needs_a_login(self, client: Client, shop: Application) -> None:
        assert client.get(reverse(ROTATE, args=[shop.pk])).status_code == 302

    def test_the_secret_of_a_declared_application_stays(self, admin_client: Client, declared: Application) -> None:
        assert admin_client.post(reverse(ROTATE, args=[declared.pk])).status_code == 403
        declared.refresh_from_db()
        assert declared.secret == "d-secret"

    @pytest.mark.parametrize("object_id", ["999", "nonsense"])
    def test_an_application_that_does_not_exist_is_not_found(self, admin_client: Client, object_id: str) -> None:
        assert admin_client.get(reverse(ROTATE, args=[object_id])).status_code == 404
