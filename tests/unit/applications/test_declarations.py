"""FANFARE_APPS: how it is read, and how the database follows it."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connections
from pytest_django import Settings

from fanfare.applications import declarations, errors
from fanfare.applications.models import Application, Generation, WebhookEndpoint
from tests.unit.applications import fakes


def refusal(value: object) -> str:
    with pytest.raises(errors.DeclarationError) as caught:
        declarations.parse(value if isinstance(value, str) else json.dumps(value))
    message = str(caught.value)
    assert "\n" not in message
    return message


def entry(**values: object) -> dict[str, object]:
    return {"id": "1", "key": "key1", "secret": "secret1", **values}


def parsed(text: str) -> list[Application]:
    return [declaration.application for declaration in declarations.parse(text)]


class TestReading:
    @pytest.mark.parametrize("text", ["", "  \n", "[]"])
    def test_empty_text_declares_no_application(self, text: str) -> None:
        assert declarations.parse(text) == []

    def test_compact_form_has_id_key_secret_and_optionally_a_name(self) -> None:
        first, second = parsed(" 1:key1:secret1 ,\n 2:key2:secret2:The shop: north,")
        assert (first.app_id, first.key, first.secret, first.name) == ("1", "key1", "secret1", "Application 1")
        assert (second.app_id, second.name) == ("2", "The shop: north")
        assert first.enabled
        assert not first.client_events

    def test_json_form_takes_every_setting(self) -> None:
        (application,) = parsed(
            json.dumps(
                [
                    entry(
                        id=7,
                        name="Shop",
                        enabled=False,
                        client_events=True,
                        allowed_origins=["https://example.com", "*.example.org"],
                        max_connections=500,
                        max_event_bytes=None,
                        subscription_counts=True,
                        authorization_timeout=30,
                        cache_seconds=60,
                        previous_secret="secret0",
                    )
                ]
            )
        )
        assert (application.app_id, application.name, application.enabled) == ("7", "Shop", False)
        assert application.client_events
        assert application.allowed_origins == "https://example.com\n*.example.org"
        assert (application.max_connections, application.max_event_bytes) == (500, None)
        assert application.subscription_counts
        assert (application.authorization_timeout, application.cache_seconds) == (30, 60)
        assert (application.previous_secret, application.previous_secret_until) == ("secret0", None)

    def test_webhook_is_a_url_or_an_object(self) -> None:
        told = {
            "url": "https://example.org/",
            "events": ["cache_miss"],
            "channel_prefix": "cache-",
            "headers": {"Authorization": "Bearer abc"},
            "batching": True,
            "enabled": False,
        }
        (declaration,) = declarations.parse(json.dumps(entry(webhooks=["https://example.com/hook", told])))
        first, second = declaration.webhooks
        assert (first.url, first.event_types, first.headers) == ("https://example.com/hook", [], {})
        assert (first.enabled, first.batching, first.channel_prefix) == (True, False, "")
        assert (second.url, second.event_types, second.channel_prefix) == (
            "https://example.org/",
            ["cache_miss"],
            "cache-",
        )
        assert second.headers == {"Authorization": "Bearer abc"}
        assert (second.enabled, second.batching) == (False, True)

    def test_rule_has_a_pattern_and_a_history(self) -> None:
        short = {"pattern": "*", "history_size": 10, "history_seconds": 60}
        whole = {
            "pattern": "orders-*",
            "history_size": 200_000,
            "history_seconds": 86_400,
            "rewind_count": 20,
            "rewind_seconds": 30,
            "client_events": True,
            "max_replay_entries": 50_000,
            "max_replay_bytes": 33_554_432,
            "stream_window_ms": 60,
            "stream_cancel": True,
            "record_members": True,
        }
        (declaration,) = declarations.parse(json.dumps(entry(rules=[whole, short])))
        first, second = declaration.rules
        assert {field: getattr(first, field) for field in declarations.RULE_FIELDS} == whole
        assert (second.pattern, second.history_size, second.max_replay_entries) == ("*", 10, 300)
        assert first.position < second.position

    def test_one_json_object_is_one_application(self) -> None:
        assert [application.app_id for application in parsed(json.dumps(entry()))] == ["1"]

    @pytest.mark.parametrize(
        ("value", "sentence"),
        [
            (
                [entry(max_connections=0)],
                "entry 1 (id 1): max_connections: 0 is below the minimum of 1.",
            ),
            (
                [entry(max_connections=True)],
                "entry 1 (id 1): max_connections must be a whole number, or null for the default.",
            ),
            ([entry(client_events="yes")], "entry 1 (id 1): client_events must be true or false."),
            ([entry(allowed_origins=[1])], "entry 1 (id 1): allowed_origins must be a list of strings."),
            (
                [entry(cache_seconds=0)],
                "entry 1 (id 1): cache_seconds: 0 is below the minimum of 1.",
            ),
            (
                [entry(webhooks="https://example.com")],
                "entry 1 (id 1): webhooks must be a list of URLs, or of objects with a url.",
            ),
            (
                [entry(webhooks=["https://example.com", "example.org"])],
                "entry 1 (id 1): webhook 2: url: The URL must start with http:// or https://.",
            ),
            ([entry(webhooks=[{"events": []}])], "entry 1 (id 1): webhook 1: url is missing."),
            (
                [entry(webhooks=[{"url": "https://example.com", "batching": 1}])],
                "entry 1 (id 1): webhook 1: batching must be true or false.",
            ),
            (
                [entry(webhooks=[{"url": "https://example.com", "events": "cache_miss"}])],
                "entry 1 (id 1): webhook 1: events: The event types must be a list of strings.",
            ),
            (
                [entry(webhooks=[{"url": "https://example.com", "headers": {"A": 1}}])],
                "entry 1 (id 1): webhook 1: headers: The headers must be an object whose values are strings.",
            ),
            ([entry(rules=["*"])], "entry 1 (id 1): rules must be a list of objects with a pattern."),
            ([entry(rules=[{"pattern": "*"}])], "entry 1 (id 1): rule 1: history_size is missing."),
            (
                [entry(rules=[{"pattern": "*", "history_size": "1", "history_seconds": 1}])],
                "entry 1 (id 1): rule 1: history_size must be a whole number.",
            ),
            (
                [entry(rules=[{"pattern": "*", "history_size": 1, "history_seconds": 1, "client_events": 1}])],
                "entry 1 (id 1): rule 1: client_events must be true or false.",
            ),
            (
                [entry(rules=[{"pattern": "*", "history_size": 1, "history_seconds": 0}])],
                "entry 1 (id 1): rule 1: history_seconds: 0 is below the minimum of 1.",
            ),
            (
                [entry(rules=[{"pattern": "*", "history_size": 1, "history_seconds": 1}] * 2)],
                "entry 1 (id 1): rules 1 and 2 have the same pattern.",
            ),
            ([entry(), "2:b:c"], "entry 2 is not a JSON object."),
            ([{"id": "1", "key": "k"}], "entry 1 (id 1): secret is missing."),
            ([entry(), entry(id="2", secret="s")], "entries 1 and 2 have the same key."),
            ([entry(id=None)], "entry 1: id must be a string."),
            ("1:key", "entry 1 is not id:key:secret or id:key:secret:name."),
        ],
    )
    def test_error_names_the_entry_and_the_field(self, value: object, sentence: str) -> None:
        assert refusal(value) == f"FANFARE_APPS: {sentence}"

    def test_error_for_an_unknown_field_lists_the_fields(self) -> None:
        message = refusal([entry(max_conections=5)])
        assert "there is no field 'max_conections'" in message
        assert "max_connections" in message

    @pytest.mark.parametrize(
        "value",
        [
            '[{"id": "1", "key": "k", "secret": "hunter2"',
            [entry(secret="hunter2 hunter2")],
            [entry(secret=["hunter2"])],
            [entry(previous_secret="hunter2 hunter2")],
            [entry(webhooks=["https://me:hunter2@example.com/"])],
            [entry(webhooks=["https://10.0.0.1/?token=hunter2"])],
            [entry(webhooks=[{"url": "https://example.com", "headers": {"Authorization": "hunter2\n"}}])],
            "hunter2:key:1",
            "1:hunter2 hunter2:key",
            [entry(secret="hunter2", key="")],
        ],
    )
    def test_no_message_shows_a_secret(self, value: object) -> None:
        assert "hunter2" not in refusal(value)

    @pytest.mark.django_db  # Django 6.1 asks the database for its features
    def test_invalid_text_fails_the_system_check(self, settings: Settings) -> None:
        settings.FANFARE = {"APPS": "1:key"}
        with pytest.raises(SystemCheckError, match=r"fanfare\.E003.*entry 1 is not id:key:secret"):
            call_command("check")

    def test_declaration_error_is_improperly_configured(self) -> None:
        assert issubclass(errors.DeclarationError, ImproperlyConfigured)


@pytest.mark.django_db(transaction=True)
class TestWriting:
    def test_declared_applications_are_created(self) -> None:
        declarations.sync(declarations.parse("1:key1:secret1:Shop"))
        application = Application.objects.get()
        assert (application.app_id, application.key, application.secret) == ("1", "key1", "secret1")
        assert application.declared

    def test_second_sync_writes_nothing(self, log: fakes.Log) -> None:
        declarations.sync(declarations.parse("1:key1:secret1"))
        generation, announced = Generation.current(), len(log.announced)
        declarations.sync(declarations.parse("1:key1:secret1"))
        assert Generation.current() == generation
        assert len(log.announced) == announced

    def test_changed_declaration_updates_the_row(self) -> None:
        declarations.sync(declarations.parse(json.dumps(entry(client_events=True, max_connections=5))))
        row = Application.objects.get()
        declarations.sync(declarations.parse(json.dumps(entry(secret="another"))))
        changed = Application.objects.get()
        assert changed.pk == row.pk
        assert (changed.secret, changed.client_events, changed.max_connections) == ("another", False, None)

    def test_webhook_with_an_unchanged_url_keeps_its_row(self) -> None:
        def declare(*webhooks: object) -> dict[str, WebhookEndpoint]:
            declarations.sync(declarations.parse(json.dumps(entry(webhooks=webhooks))))
            return {endpoint.url: endpoint for endpoint in WebhookEndpoint.objects.all()}

        first = declare("https://a.example", "https://b.example")
        second = declare("https://c.example", {"url": "https://b.example", "batching": True})
        assert set(second) == {"https://b.example", "https://c.example"}
        assert second["https://b.example"].pk == first["https://b.example"].pk
        assert second["https://b.example"].batching
        assert declare() == {}

    def test_order_of_the_webhooks_does_not_matter(self) -> None:
        urls = ["https://a.example", "https://b.example"]
        declarations.sync(declarations.parse(json.dumps(entry(webhooks=urls))))
        generation = Generation.current()
        declarations.sync(declarations.parse(json.dumps(entry(webhooks=urls[::-1]))))
        assert Generation.current() == generation

    def test_rules_and_their_order_follow_the_declaration(self) -> None:
        def declare(*patterns: str) -> list[str]:
            rules = [{"pattern": pattern, "history_size": 1, "history_seconds": 1} for pattern in patterns]
            declarations.sync(declarations.parse(json.dumps(entry(rules=rules))))
            return [rule.pattern for rule in Application.objects.get().rules.all()]

        assert declare("a", "b", "c") == ["a", "b", "c"]
        generation = Generation.current()
        assert declare("a", "b", "c") == ["a", "b", "c"]
        assert Generation.current() == generation
        assert declare("c", "d", "a") == ["c", "d", "a"]
        assert declare() == []

    def test_declaration_ends_the_grace_period_of_an_earlier_rotation(self) -> None:
        row = Application.objects.create(name="By hand", app_id="1")
        row.rotate_secret()
        declarations.sync(declarations.parse(json.dumps(entry(previous_secret="secret0"))))
        row.refresh_from_db()
        assert (row.previous_secret, row.previous_secret_until) == ("secret0", None)

    def test_application_removed_from_the_declaration_is_disabled_and_not_deleted(self) -> None:
        declarations.sync(declarations.parse("1:key1:secret1,2:key2:secret2"))
        declarations.sync(declarations.parse("2:key2:secret2"))
        retired = Application.objects.get(app_id="1")
        assert not retired.enabled
        assert not retired.declared
        assert Application.objects.get(app_id="2").enabled

    def test_application_removed_from_the_declaration_can_be_edited_in_the_admin(self) -> None:
        declarations.sync(declarations.parse("1:key1:secret1"))
        declarations.sync([])
        Application.objects.update(enabled=True)
        declarations.sync([])
        assert Application.objects.get().enabled

    def test_declaration_takes_over_an_application_with_its_id(self) -> None:
        Application.objects.create(name="By hand", app_id="1", enabled=False)
        declarations.sync(declarations.parse("1:key1:secret1:Declared"))
        application = Application.objects.get()
        assert (application.name, application.enabled, application.declared) == ("Declared", True, True)

    @pytest.mark.parametrize("column", ["key", "name"])
    def test_key_or_name_of_an_undeclared_application_is_a_conflict(self, column: str) -> None:
        Application.objects.create(app_id="9", **{"name": "By hand", column: "taken"})
        with pytest.raises(errors.DeclarationError, match=rf"id 1 has the same {column} as application 9"):
            declarations.sync(declarations.parse(json.dumps(entry(**{column: "taken"}))))
        assert Application.objects.count() == 1

    def test_declared_applications_can_exchange_keys_and_names(self) -> None:
        declarations.sync(declarations.parse("1:a:s:First,2:b:s:Second"))
        declarations.sync(declarations.parse("1:b:s:Second,2:a:s:First"))
        assert list(Application.objects.order_by("app_id").values_list("app_id", "key", "name")) == [
            ("1", "b", "Second"),
            ("2", "a", "First"),
        ]

    def test_new_application_can_take_the_key_of_a_removed_one(self) -> None:
        declarations.sync(declarations.parse("1:key:s:Shop"))
        declarations.sync(declarations.parse("2:key:s:Shop"))
        assert Application.objects.get(key="key", name="Shop").app_id == "2"
        assert not Application.objects.get(app_id="1").enabled

    def test_workers_that_start_together_write_once(self) -> None:
        workers = 4
        together = threading.Barrier(workers)

        def work() -> None:
            together.wait()
            try:
                declarations.sync(declarations.parse("1:key1:secret1,2:key2:secret2"))
            finally:
                connections.close_all()

        with ThreadPoolExecutor(workers) as threads:
            for outcome in [threads.submit(work) for _ in range(workers)]:
                outcome.result()
        assert Application.objects.count() == 2
