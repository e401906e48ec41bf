"""The admin's pages of the applications, through Django's test client."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import unescape

import pytest
from django.contrib.admin import site
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.http import HttpResponse
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from fanfare.applications import limits
from fanfare.applications.models import Application, ChannelRule, WebhookEndpoint
from tests.unit.applications import fakes

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "admin:fanfare_application_changelist"
ADD = "admin:fanfare_application_add"
CHANGE = "admin:fanfare_application_change"
DISABLE = "admin:fanfare_application_disable"
ENABLE = "admin:fanfare_application_enable"
ROTATE = "admin:fanfare_application_rotate_secret"
END = "admin:fanfare_application_end_old_secret"
DELETE = "admin:fanfare_application_delete"


@pytest.fixture
def shop() -> Application:
    return Application.objects.create(name="Shop", app_id="42", key="shop-key", secret="shop-secret")


@pytest.fixture
def declared() -> Application:
    return Application.objects.create(name="Declared", app_id="7", key="d-key", secret="d-secret", declared=True)


@pytest.fixture
def viewer() -> Client:
    """A user with the view permission alone."""
    user = User.objects.create_user("viewer", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_application"))
    user.user_permissions.add(Permission.objects.get(codename="view_webhookendpoint"))
    client = Client()
    client.force_login(user)
    return client


def text(response: HttpResponse) -> str:
    return unescape(response.content.decode())


def webhooks(*rows: dict[str, object], initial: int = 0) -> dict[str, object]:
    """The form fields of the webhooks on that page."""
    return formset("webhooks", rows, initial)


def rules(*rows: dict[str, object], initial: int = 0) -> dict[str, object]:
    """The form fields of the channel rules on that page."""
    return formset("rules", rows, initial)


def formset(prefix: str, rows: Sequence[dict[str, object]], initial: int) -> dict[str, object]:
    form: dict[str, object] = {f"{prefix}-TOTAL_FORMS": len(rows), f"{prefix}-INITIAL_FORMS": initial}
    return form | {f"{prefix}-{number}-{name}": value for number, row in enumerate(rows) for name, value in row.items()}


def filled(application: Application, **values: object) -> dict[str, object]:
    """The form that a browser sends from the page of one application."""
    form: dict[str, object] = {
        "name": application.name,
        "key": application.key,
        "allowed_origins": application.allowed_origins,
        **dict.fromkeys(limits.BOUNDS, ""),
        **webhooks(),
        **rules(),
    }
    form |= {"enabled": "on"} if application.enabled else {}
    return form | values


class TestList:
    def test_list_shows_names_ids_and_keys_and_no_secret(self, admin_client: Client, shop: Application) -> None:
        page = text(admin_client.get(reverse(LIST)))
        assert all(value in page for value in ("Shop", "42", "shop-key"))
        assert "shop-secret" not in page

    @pytest.mark.parametrize("words", ["shop", "42", "shop-key"])
    def test_search_finds_by_name_id_and_key(self, admin_client: Client, shop: Application, words: str) -> None:
        Application.objects.create(name="Other", app_id="9", key="other")
        page = text(admin_client.get(reverse(LIST), {"q": words}))
        assert "1 result" in page

    @pytest.mark.parametrize("model", ["application", "delivery", "endpointhealth", "outboxevent", "auditentry"])
    def test_empty_list_says_the_next_step(self, admin_client: Client, model: str) -> None:
        page = text(admin_client.get(reverse(f"admin:fanfare_{model}_changelist")))
        empty_list = next(one.empty_list for row, one in site._registry.items() if row._meta.model_name == model)
        assert empty_list in page

    def test_empty_result_says_to_clear_the_search(self, admin_client: Client, shop: Application) -> None:
        page = text(admin_client.get(reverse(LIST), {"q": "other"}))
        assert "No row matches. Clear the search and the filters." in page
        assert "Add an application:" not in page

    def test_page_begins_with_the_credentials(self, admin_client: Client, shop: Application) -> None:
        page = text(admin_client.get(reverse(CHANGE, args=[shop.pk])))
        places = [page.index(one) for one in ("field-app_id", "field-key", "field-hidden_secret", "field-name")]
        assert places == sorted(places)

    def test_list_has_no_editable_field(self, admin_client: Client, shop: Application) -> None:
        assert "form-0-enabled" not in text(admin_client.get(reverse(LIST)))

    def test_disable_action_asks_first(self, admin_client: Client, shop: Application, log: fakes.Log) -> None:
        log.publications.clear()
        selected = {"action": "disable_selected", "_selected_action": [shop.pk]}
        page = text(admin_client.post(reverse(LIST), selected))
        assert "Yes, disable" in page
        assert "Shop</strong> (id 42)" in page
        assert "do not reconnect by themselves" in page
        shop.refresh_from_db()
        assert shop.enabled
        assert log.announced == []

    def test_confirmed_disable_action_skips_declared_applications(
        self, admin_client: Client, shop: Application, declared: Application, log: fakes.Log
    ) -> None:
        log.publications.clear()
        selected = {"action": "disable_selected", "_selected_action": [shop.pk, declared.pk], "confirmed": "1"}
        page = text(admin_client.post(reverse(LIST), selected, follow=True))
        shop.refresh_from_db()
        declared.refresh_from_db()
        assert (shop.enabled, declared.enabled) == (False, True)
        assert "Disabled: Shop." in page
        assert "Managed in FANFARE_APPS, not changed: 1." in page
        assert log.announced == ["42"]
        assert LogEntry.objects.get().get_change_message() == "Was disabled."
        admin_client.post(reverse(LIST), {"action": "enable_selected", "_selected_action": [shop.pk]})
        shop.refresh_from_db()
        assert shop.enabled

    def test_delete_action_is_announced(self, admin_client: Client, shop: Application, log: fakes.Log) -> None:
        log.publications.clear()
        selected = {"action": "delete_selected", "_selected_action": [shop.pk], "post": "yes"}
        admin_client.post(reverse(LIST), selected)
        assert not Application.objects.exists()
        assert log.announced == ["42"]

    def test_delete_action_keeps_a_declared_application(self, admin_client: Client, declared: Application) -> None:
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

    def test_error_is_shown_beside_its_field(self, admin_client: Client) -> None:
        form = filled(Application(name="Shop"), app_id="x", secret="s", max_connections="0")
        response = admin_client.post(reverse(ADD), form)
        problems = response.context["adminform"].form.errors
        assert problems["app_id"] == ["The id has 1 to 15 digits and starts with no zero."]
        assert problems["max_connections"] == ["0 is below the minimum of 1."]
        assert not Application.objects.exists()


class TestOneApplication:
    def test_settings_can_be_changed_and_id_and_secret_cannot(self, admin_client: Client, shop: Application) -> None:
        form = filled(shop, name="Shop 2", client_events="on", max_connections="500", app_id="1", secret="mine")
        admin_client.post(reverse(CHANGE, args=[shop.pk]), form)
        shop.refresh_from_db()
        assert (shop.name, shop.client_events, shop.max_connections) == ("Shop 2", True, 500)
        assert (shop.app_id, shop.secret) == ("42", "shop-secret")

    def test_limits_are_folded_unless_the_application_has_some_of_its_own(
        self, admin_client: Client, shop: Application
    ) -> None:
        def is_folded() -> bool:
            fieldsets = admin_client.get(reverse(CHANGE, args=[shop.pk])).context["adminform"]
            return next(one.is_collapsible for one in fieldsets if one.name == "Limits")

        assert is_folded()
        Application.objects.filter(pk=shop.pk).update(max_connections=500)
        assert not is_folded()

    def test_limit_shows_its_default_and_its_bounds(self, admin_client: Client, shop: Application) -> None:
        page = text(admin_client.get(reverse(CHANGE, args=[shop.pk])))
        assert 'placeholder="102400"' in page
        assert 'placeholder="unlimited"' in page
        assert "From 1 to 1,048,576." in page

    def test_secret_is_folded(self, admin_client: Client, shop: Application) -> None:
        page = text(admin_client.get(reverse(CHANGE, args=[shop.pk])))
        assert "<summary>Show</summary><code data-copy>shop-secret</code></details>" in page

    @pytest.mark.parametrize("field", ["secret", "previous_secret", "webhooks__headers", "webhooks__url"])
    def test_viewer_does_not_find_secrets_with_a_filter_of_the_list(
        self, viewer: Client, shop: Application, field: str
    ) -> None:
        """A list that is filtered by `secret__startswith` would answer a guess of one character after the other."""
        for lookup in ("startswith", "contains", "regex"):
            assert viewer.get(reverse(LIST), {f"{field}__{lookup}": "a"}).status_code == 400

    def test_viewer_does_not_see_the_secret(self, viewer: Client, shop: Application) -> None:
        response = viewer.get(reverse(CHANGE, args=[shop.pk]))
        assert response.status_code == 200
        assert "shop-key" in text(response)
        assert "shop-secret" not in text(response)

    def test_declared_application_is_read_only(self, admin_client: Client, declared: Application) -> None:
        page = text(admin_client.get(reverse(CHANGE, args=[declared.pk])))
        assert "FANFARE_APPS" in page
        assert "Rotate secret" not in page
        assert "d-secret" in page
        form = filled(declared, name="Mine", max_connections="5")
        assert admin_client.post(reverse(CHANGE, args=[declared.pk]), form).status_code == 403
        declared.refresh_from_db()
        assert (declared.name, declared.max_connections) == ("Declared", None)
        assert admin_client.post(reverse(DELETE, args=[declared.pk]), {"post": "yes"}).status_code == 403

    def test_delete_is_announced(self, admin_client: Client, shop: Application, log: fakes.Log) -> None:
        log.publications.clear()
        admin_client.post(reverse(DELETE, args=[shop.pk]), {"post": "yes"})
        assert not Application.objects.exists()
        assert log.announced == ["42"]

    def test_switch_and_durations_can_be_set(self, admin_client: Client, shop: Application) -> None:
        form = filled(shop, subscription_counts="on", authorization_timeout="30", cache_seconds="60")
        admin_client.post(reverse(CHANGE, args=[shop.pk]), form)
        shop.refresh_from_db()
        assert (shop.subscription_counts, shop.authorization_timeout, shop.cache_seconds) == (True, 30, 60)

    @pytest.mark.parametrize("name", limits.BOUNDS)
    def test_number_out_of_bounds_is_refused_with_both_numbers(
        self, admin_client: Client, shop: Application, name: str
    ) -> None:
        least, most = limits.BOUNDS[name]
        page = reverse(CHANGE, args=[shop.pk])
        too_many = admin_client.post(page, filled(shop, **{name: most + 1}))
        assert f"{most + 1} is above the maximum of {most}." in text(too_many)
        too_few = admin_client.post(page, filled(shop, **{name: least - 1}))
        assert f"{least - 1} is below the minimum of {least}." in text(too_few)


class TestWebhooks:
    def test_webhook_is_added_with_its_filters_and_headers(
        self, admin_client: Client, shop: Application, log: fakes.Log
    ) -> None:
        log.publications.clear()
        row = {
            "url": "https://example.com/hook",
            "enabled": "on",
            "event_types": ["channel_occupied", "cache_miss"],
            "channel_prefix": "private-",
            "batching": "on",
            "headers": "Authorization: Bearer a:b\r\n\r\nX-From:  Shop ",
        }
        response = admin_client.post(reverse(CHANGE, args=[shop.pk]), filled(shop, **webhooks(row)))
        assert response.status_code == 302
        endpoint = shop.webhooks.get()
        assert (endpoint.url, endpoint.enabled, endpoint.batching) == ("https://example.com/hook", True, True)
        assert endpoint.event_types == ["channel_occupied", "cache_miss"]
        assert endpoint.channel_prefix == "private-"
        assert endpoint.headers == {"Authorization": "Bearer a:b", "X-From": "Shop"}
        assert log.announced == ["42"]

    def test_webhook_is_shown_as_it_was_entered(self, admin_client: Client, shop: Application) -> None:
        headers = {"Authorization": "Bearer abc", "X-From": "Shop"}
        shop.webhooks.create(url="https://example.com/", event_types=["cache_miss"], headers=headers)
        page = text(admin_client.get(reverse(CHANGE, args=[shop.pk])))
        assert "Authorization: Bearer abc\nX-From: Shop</textarea>" in page
        assert re.search(r'value="cache_miss"[^>]*checked', page)
        assert not re.search(r'value="client_event"[^>]*checked', page)

    def test_saving_the_page_unchanged_does_not_update_it(self, admin_client: Client, shop: Application) -> None:
        endpoint = shop.webhooks.create(url="https://example.com/", event_types=["cache_miss"], headers={"A": "b"})
        before = endpoint.updated_at
        row = {"id": endpoint.pk, "application": shop.pk, "url": endpoint.url, "enabled": "on"}
        row |= {"event_types": ["cache_miss"], "headers": "A: b", "channel_prefix": ""}
        form = filled(shop, **webhooks(row, initial=1))
        assert admin_client.post(reverse(CHANGE, args=[shop.pk]), form).status_code == 302
        endpoint.refresh_from_db()
        assert endpoint.updated_at == before

    @pytest.mark.parametrize(
        ("field", "value", "sentence"),
        [
            ("url", "ftp://example.com/", "The URL must start with http:// or https://."),
            ("url", "http://10.0.0.1/", "FANFARE_WEBHOOKS_ALLOW_PRIVATE=1"),
            ("headers", "Authorization", "Line 1 is not a name, a colon and a value."),
            ("headers", "A: 1\r\nA: 2", "The header A appears twice."),
            ("headers", "X-Pusher-Key: mine", "The header X-Pusher-Key is set by the server."),
            ("channel_prefix", "a b", "The prefix has a character that channel names do not have"),
            ("event_types", ["channel_filled"], "channel_filled is not one of the available choices"),
        ],
    )
    def test_error_is_shown_beside_its_field(
        self, admin_client: Client, shop: Application, field: str, value: object, sentence: str
    ) -> None:
        row = {"url": "https://example.com/", "enabled": "on", field: value}
        response = admin_client.post(reverse(CHANGE, args=[shop.pk]), filled(shop, **webhooks(row)))
        assert sentence in text(response)
        assert not WebhookEndpoint.objects.exists()

    def test_viewer_does_not_see_the_headers_and_the_query_of_the_url(self, viewer: Client, shop: Application) -> None:
        shop.webhooks.create(url="https://example.com/hook?token=hunter3", headers={"Authorization": "hunter2"})
        page = text(viewer.get(reverse(CHANGE, args=[shop.pk])))
        assert "https://example.com/hook?token=…" in page
        assert "hunter" not in page

    def test_rows_of_a_declared_application_are_read_only(self, admin_client: Client, declared: Application) -> None:
        declared.webhooks.create(url="https://example.com/hook")
        page = text(admin_client.get(reverse(CHANGE, args=[declared.pk])))
        assert "https://example.com/hook" in page
        assert 'name="webhooks-0-url"' not in page


RULE: dict[str, object] = {
    "pattern": "orders-*",
    "position": "1",
    "history_size": "1000",
    "history_seconds": "3600",
    "rewind_count": "0",
    "rewind_seconds": "0",
    "max_replay_entries": "300",
    "max_replay_bytes": "1048576",
    "stream_window_ms": "0",
}


class TestChannelRules:
    def test_rule_is_added(self, admin_client: Client, shop: Application, log: fakes.Log) -> None:
        log.publications.clear()
        row = RULE | {"history_size": "200000", "client_events": "on"}
        response = admin_client.post(reverse(CHANGE, args=[shop.pk]), filled(shop, **rules(row)))
        assert response.status_code == 302
        rule = shop.rules.get()
        assert (rule.pattern, rule.history_size, rule.client_events) == ("orders-*", 200_000, True)
        assert log.announced == ["42"]

    def test_new_rule_defaults_to_the_last_position(self, admin_client: Client, shop: Application) -> None:
        shop.rules.create(pattern="a", position=4)
        page = admin_client.get(reverse(CHANGE, args=[shop.pk]))
        (formset,) = [each.formset for each in page.context["inline_admin_formsets"] if each.formset.prefix == "rules"]
        proposed = {name: field.initial for name, field in formset.empty_form.fields.items()}
        assert proposed["position"] == 5
        assert (proposed["history_size"], proposed["max_replay_bytes"]) == (1_000, 1_048_576)
        assert "From 1 to 1,000,000." in text(page)

    def test_order_of_rules_can_be_changed(self, admin_client: Client, shop: Application) -> None:
        first, second = (shop.rules.create(pattern=name, position=nth) for nth, name in enumerate(("a*", "ab")))
        rows = [RULE | {"id": first.pk, "pattern": "a*", "position": "2"}, RULE | {"id": second.pk, "pattern": "ab"}]
        rows = [row | {"application": shop.pk} for row in rows]
        form = filled(shop, **rules(*rows, initial=2))
        assert admin_client.post(reverse(CHANGE, args=[shop.pk]), form).status_code == 302
        assert [rule.pattern for rule in shop.rules.all()] == ["ab", "a*"]

    @pytest.mark.parametrize(
        ("field", "value", "sentence"),
        [
            ("pattern", "a b", "The pattern matches no channel name"),
            ("history_size", "0", "0 is below the minimum of 1."),
            ("history_seconds", "2592001", "2592001 is above the maximum of 2592000."),
            ("rewind_count", "501", "501 is above the maximum of 500."),
            ("max_replay_bytes", "1023", "1023 is below the minimum of 1024."),
        ],
    )
    def test_error_is_shown_beside_its_field(
        self, admin_client: Client, shop: Application, field: str, value: object, sentence: str
    ) -> None:
        response = admin_client.post(reverse(CHANGE, args=[shop.pk]), filled(shop, **rules(RULE | {field: value})))
        assert sentence in text(response)
        assert not ChannelRule.objects.exists()

    def test_pattern_is_unique_in_an_application(self, admin_client: Client, shop: Application) -> None:
        page = reverse(CHANGE, args=[shop.pk])
        assert "duplicate" in text(admin_client.post(page, filled(shop, **rules(RULE, RULE))))
        other = Application.objects.create(name="Other")
        other.rules.create(pattern="orders-*")
        assert admin_client.post(page, filled(shop, **rules(RULE))).status_code == 302

    def test_rows_of_a_declared_application_are_read_only(self, admin_client: Client, declared: Application) -> None:
        declared.rules.create(pattern="orders-*")
        page = text(admin_client.get(reverse(CHANGE, args=[declared.pk])))
        assert "orders-*" in page
        assert 'name="rules-0-pattern"' not in page


class TestDisabling:
    def test_page_of_an_application_links_to_it_and_has_no_checkbox(
        self, admin_client: Client, shop: Application
    ) -> None:
        page = text(admin_client.get(reverse(CHANGE, args=[shop.pk])))
        assert reverse(DISABLE, args=[shop.pk]) in page
        assert 'name="enabled"' not in page
        admin_client.post(reverse(CHANGE, args=[shop.pk]), filled(shop))
        shop.refresh_from_db()
        assert shop.enabled, "a saved page without the checkbox must not disable the application"

    def test_it_asks_first(self, admin_client: Client, shop: Application) -> None:
        page = text(admin_client.get(reverse(DISABLE, args=[shop.pk])))
        assert "Yes, disable" in page
        assert "closed with 4003 and do not reconnect by themselves" in page
        shop.refresh_from_db()
        assert shop.enabled

    def test_post_disables_and_enables_again(self, admin_client: Client, shop: Application, log: fakes.Log) -> None:
        log.publications.clear()
        response = admin_client.post(reverse(DISABLE, args=[shop.pk]))
        assert response.headers["Location"] == reverse(CHANGE, args=[shop.pk])
        shop.refresh_from_db()
        assert not shop.enabled
        assert log.announced == ["42"]
        assert LogEntry.objects.get().get_change_message() == "Was disabled."
        page = text(admin_client.get(reverse(CHANGE, args=[shop.pk])))
        assert reverse(DISABLE, args=[shop.pk]) not in page
        assert reverse(ENABLE, args=[shop.pk]) in page
        assert "Yes, enable" in text(admin_client.get(reverse(ENABLE, args=[shop.pk])))
        admin_client.post(reverse(ENABLE, args=[shop.pk]))
        shop.refresh_from_db()
        assert shop.enabled

    def test_it_needs_the_permission_to_change(
        self, viewer: Client, admin_client: Client, shop: Application, declared: Application
    ) -> None:
        assert viewer.post(reverse(DISABLE, args=[shop.pk])).status_code == 403
        assert admin_client.post(reverse(DISABLE, args=[declared.pk])).status_code == 403
        shop.refresh_from_db()
        declared.refresh_from_db()
        assert shop.enabled
        assert declared.enabled

    def test_new_application_may_be_created_disabled(self, admin_client: Client) -> None:
        form = filled(Application(name="Later", enabled=False), app_id="9", key="later", secret="s")
        admin_client.post(reverse(ADD), form)
        assert not Application.objects.get(name="Later").enabled


class TestRotation:
    def test_it_asks_first(self, admin_client: Client, shop: Application) -> None:
        page = text(admin_client.get(reverse(ROTATE, args=[shop.pk])))
        assert "Yes, rotate the secret" in page
        assert "shop-secret" not in page
        shop.refresh_from_db()
        assert shop.secret == "shop-secret"

    def test_post_replaces_the_secret_and_logs_it(
        self, admin_client: Client, shop: Application, log: fakes.Log
    ) -> None:
        log.publications.clear()
        response = admin_client.post(reverse(ROTATE, args=[shop.pk]))
        assert response.headers["Location"] == reverse(CHANGE, args=[shop.pk])
        shop.refresh_from_db()
        assert shop.secret != "shop-secret"
        assert log.announced == ["42"]
        entry = LogEntry.objects.get()
        assert entry.get_change_message().startswith("Rotated the secret. The old one is valid until 20")
        assert shop.secret not in entry.change_message

    def test_page_shows_how_long_the_old_secret_is_valid(self, admin_client: Client, shop: Application) -> None:
        page = text(admin_client.get(reverse(ROTATE, args=[shop.pk])))
        assert re.search(r"beside the new one for 1\sday, until 20\d\d-\d\d-\d\d \d\d:\d\d UTC", page)
        admin_client.post(reverse(ROTATE, args=[shop.pk]))
        shop.refresh_from_db()
        assert (shop.previous_secret, shop.previous_secret_works) == ("shop-secret", True)
        page = text(admin_client.get(reverse(CHANGE, args=[shop.pk])))
        assert f"Valid until {shop.previous_secret_until:%Y-%m-%d %H:%M} UTC." in page
        assert "shop-secret" not in page
        assert "The secret before that is still valid." in text(admin_client.get(reverse(ROTATE, args=[shop.pk])))

    def test_pages_show_the_end_in_a_project_without_time_zones(
        self, admin_client: Client, shop: Application, settings: Settings
    ) -> None:
        settings.USE_TZ = False
        admin_client.post(reverse(ROTATE, args=[shop.pk]))
        shop.refresh_from_db()
        page = text(admin_client.get(reverse(CHANGE, args=[shop.pk])))
        assert f"Valid until {shop.previous_secret_until:%Y-%m-%d %H:%M}." in page
        assert shop.previous_secret_works

    def test_leaked_secret_can_be_refused_at_once(self, admin_client: Client, shop: Application) -> None:
        page = text(admin_client.post(reverse(ROTATE, args=[shop.pk]), {"end_old": "on"}, follow=True))
        assert "The old one is no longer valid." in page
        shop.refresh_from_db()
        assert shop.previous_secret == ""

    def test_without_a_grace_period_the_page_says_so(
        self, admin_client: Client, shop: Application, settings: Settings
    ) -> None:
        settings.FANFARE = {"SECRET_GRACE_SECONDS": 0}
        page = text(admin_client.get(reverse(ROTATE, args=[shop.pk])))
        assert "The old secret is refused at once" in page
        assert "end_old" not in page

    def test_old_secret_can_be_ended_early(self, admin_client: Client, shop: Application, log: fakes.Log) -> None:
        admin_client.post(reverse(ROTATE, args=[shop.pk]))
        log.publications.clear()
        assert reverse(END, args=[shop.pk]) in text(admin_client.get(reverse(CHANGE, args=[shop.pk])))
        assert "Yes, end the old secret" in text(admin_client.get(reverse(END, args=[shop.pk])))
        shop.refresh_from_db()
        assert shop.previous_secret_works
        admin_client.post(reverse(END, args=[shop.pk]))
        shop.refresh_from_db()
        assert (shop.previous_secret, shop.previous_secret_until) == ("", None)
        assert log.announced == ["42"]
        assert reverse(END, args=[shop.pk]) not in text(admin_client.get(reverse(CHANGE, args=[shop.pk])))

    def test_without_an_old_secret_there_is_nothing_to_end(self, admin_client: Client, shop: Application) -> None:
        page = text(admin_client.get(reverse(END, args=[shop.pk]), follow=True))
        assert "has no valid old secret" in page

    def test_it_needs_the_permission_to_change(self, viewer: Client, shop: Application) -> None:
        assert viewer.get(reverse(ROTATE, args=[shop.pk])).status_code == 403
        assert viewer.post(reverse(ROTATE, args=[shop.pk])).status_code == 403
        assert viewer.post(reverse(END, args=[shop.pk])).status_code == 403
        shop.refresh_from_db()
        assert shop.secret == "shop-secret"

    def test_it_needs_a_csrf_token(self, admin_user: User, shop: Application) -> None:
        client = Client(enforce_csrf_checks=True)
        client.force_login(admin_user)
        assert client.post(reverse(ROTATE, args=[shop.pk])).status_code == 403

    def test_it_needs_a_login(self, client: Client, shop: Application) -> None:
        assert client.get(reverse(ROTATE, args=[shop.pk])).status_code == 302

    def test_secret_of_a_declared_application_is_not_rotated(self, admin_client: Client, declared: Application) -> None:
        assert admin_client.post(reverse(ROTATE, args=[declared.pk])).status_code == 403
        declared.refresh_from_db()
        assert declared.secret == "d-secret"

    @pytest.mark.parametrize("object_id", ["999", "nonsense"])
    def test_unknown_application_is_a_404(self, admin_client: Client, object_id: str) -> None:
        assert admin_client.get(reverse(ROTATE, args=[object_id])).status_code == 404


class TestCustomSite:
    """A project may register the pages with an AdminSite of its own."""

    @pytest.fixture(autouse=True)
    def site(self, settings: Settings) -> None:
        settings.ROOT_URLCONF = "tests.unit.applications.custom_site"

    def test_site_has_all_pages_and_they_lead_to_each_other(self, admin_client: Client) -> None:
        index = text(admin_client.get("/staff/"))
        found = set(re.findall(r'href="(/staff/fanfare/[a-z]+/)"', index))
        assert {"/staff/fanfare/application/", "/staff/fanfare/console/", "/staff/fanfare/delivery/"} < found
        for url in found:
            page = text(admin_client.get(url))
            assert 'href="/staff/fanfare/' in page
            assert 'href="/admin/' not in page

    @pytest.mark.parametrize("slug", ["rotate-secret", "disable", "enable"])
    def test_pages_stay_on_the_site(self, admin_client: Client, shop: Application, slug: str) -> None:
        base = f"/staff/fanfare/application/{shop.pk}"
        page = text(admin_client.get(f"{base}/change/"))
        assert f"{base}/rotate-secret/" in page
        assert f"{base}/disable/" in page
        page = text(admin_client.get(f"{base}/{slug}/"))
        assert f"{base}/change/" in page
        assert "/admin/fanfare/" not in page
        assert admin_client.post(f"{base}/{slug}/").headers["Location"] == f"{base}/change/"

    def test_disable_action_stays_on_the_site(self, admin_client: Client, shop: Application) -> None:
        selected = {"action": "disable_selected", "_selected_action": [shop.pk]}
        page = text(admin_client.post("/staff/fanfare/application/", selected))
        assert 'href="/staff/fanfare/application/"' in page
        assert "/admin/fanfare/" not in page
