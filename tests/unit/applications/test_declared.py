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

from apps.applications import declared, errors
from apps.applications.models import Application, Generation
from tests.unit.applications import fakes


def refusal(value: object) -> str:
    with pytest.raises(errors.DeclarationError) as caught:
        declared.parse(value if isinstance(value, str) else json.dumps(value))
    message = str(caught.value)
    assert "\n" not in message
    return message


def entry(**values: object) -> dict[str, object]:
    return {"id": "1", "key": "key1", "secret": "secret1", **values}


class TestReading:
    @pytest.mark.parametrize("text", ["", "  \n", "[]"])
    def test_nothing_declares_nothing(self, text: str) -> None:
        assert declared.parse(text) == []

    def test_the_compact_form_has_id_key_secret_and_maybe_a_name(self) -> None:
        first, second = declared.parse(" 1:key1:secret1 ,\n 2:key2:secret2:The shop: north,")
        assert (first.app_id, first.key, first.secret, first.name) == ("1", "key1", "secret1", "Application 1")
        assert (second.app_id, second.name) == ("2", "The shop: north")
        assert first.enabled
        assert not first.client_events

    def test_the_json_form_takes_every_setting(self) -> None:
        (application,) = declared.parse(
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
                    )
                ]
            )
        )
        assert (application.app_id, application.name, application.enabled) == ("7", "Shop", False)
        assert application.client_events
        assert application.allowed_origins == "https://example.com\n*.example.org"
        assert (application.max_connections, application.max_event_bytes) == (500, None)

    def test_one_json_object_is_one_application(self) -> None:
        assert [application.app_id for application in declared.parse(json.dumps(entry()))] == ["1"]

    @pytest.mark.parametrize(
        ("value", "sentence"),
        [
            (
                [entry(max_connections=0)],
                "entry 1 (id 1): max_connections: 0 is less than 1, the least that is allowed.",
            ),
            (
                [entry(max_connections=True)],
                "entry 1 (id 1): max_connections must be a whole number, or null for the default.",
            ),
            ([entry(client_events="yes")], "entry 1 (id 1): client_events must be true or false."),
            ([entry(allowed_origins=[1])], "entry 1 (id 1): allowed_origins must be a list of texts."),
            ([entry(), "2:b:c"], "entry 2 is not a JSON object."),
            ([{"id": "1", "key": "k"}], "entry 1 (id 1): secret is missing."),
            ([entry(), entry(id="2", secret="s")], "entries 1 and 2 have the same key."),
            ([entry(id=None)], "entry 1: id must be a text."),
            ("1:key", "entry 1 is not id:key:secret or id:key:secret:name."),
        ],
    )
    def test_a_mistake_is_named_by_entry_and_field(self, value: object, sentence: str) -> None:
        assert refusal(value) == f"FANFARE_APPS: {sentence}"

    def test_an_unknown_field_is_answered_with_the_known_ones(self) -> None:
        message = refusal([entry(max_conections=5)])
        assert "there is no field 'max_conections'" in message
        assert "max_connections" in message

    @pytest.mark.parametrize(
        "value",
        [
            '[{"id": "1", "key": "k", "secret": "hunter2"',
            [entry(secret="hunter2 hunter2")],
            [entry(secret=["hunter2"])],
            "hunter2:key:1",
            "1:hunter2 hunter2:key",
            [entry(secret="hunter2", key="")],
        ],
    )
    def test_no_message_shows_a_secret(self, value: object) -> None:
        assert "hunter2" not in refusal(value)

    def test_a_mistake_stops_the_system_check(self, settings: Settings) -> None:
        settings.FANFARE_APPS = "1:key"
        with pytest.raises(SystemCheckError, match=r"applications\.E001.*entry 1 is not id:key:secret"):
            call_command("check")

    def test_a_mistake_is_a_wrong_configuration(self) -> None:
        assert issubclass(errors.DeclarationError, ImproperlyConfigured)


@pytest.mark.django_db(transaction=True)
class TestWriting:
    def test_what_is_declared_is_there_afterwards(self) -> None:
        declared.sync(declared.parse("1:key1:secret1:Shop"))
        application = Application.objects.get()
        assert (application.app_id, application.key, application.secret) == ("1", "key1", "secret1")
        assert application.declared

    def test_a_second_time_nothing_is_written(self, log: fakes.Log) -> None:
        declared.sync(declared.parse("1:key1:secret1"))
        generation, announced = Generation.current(), len(log.announced)
        declared.sync(declared.parse("1:key1:secret1"))
        assert Generation.current() == generation
        assert len(log.announced) == announced

    def test_a_changed_declaration_changes_the_row(self) -> None:
        declared.sync(declared.parse(json.dumps(entry(client_events=True, max_connections=5))))
        row = Application.objects.get()
        declared.sync(declared.parse(json.dumps(entry(secret="another"))))
        changed = Application.objects.get()
        assert changed.pk == row.pk
        assert (changed.secret, changed.client_events, changed.max_connections) == ("another", False, None)

    def test_what_is_not_declared_any_more_is_disabled_and_not_deleted(self) -> None:
        declared.sync(declared.parse("1:key1:secret1,2:key2:secret2"))
        declared.sync(declared.parse("2:key2:secret2"))
        retired = Application.objects.get(app_id="1")
        assert not retired.enabled
        assert not retired.declared
        assert Application.objects.get(app_id="2").enabled

    def test_a_retired_application_belongs_to_the_admin_from_then_on(self) -> None:
        declared.sync(declared.parse("1:key1:secret1"))
        declared.sync([])
        Application.objects.update(enabled=True)
        declared.sync([])
        assert Application.objects.get().enabled

    def test_an_application_with_a_declared_id_is_taken_over(self) -> None:
        Application.objects.create(name="By hand", app_id="1", enabled=False)
        declared.sync(declared.parse("1:key1:secret1:Declared"))
        application = Application.objects.get()
        assert (application.name, application.enabled, application.declared) == ("Declared", True, True)

    @pytest.mark.parametrize("column", ["key", "name"])
    def test_a_key_or_name_of_an_application_made_by_hand_is_a_conflict(self, column: str) -> None:
        Application.objects.create(app_id="9", **{"name": "By hand", column: "taken"})
        with pytest.raises(errors.DeclarationError, match=rf"id 1 has the same {column} as application 9"):
            declared.sync(declared.parse(json.dumps(entry(**{column: "taken"}))))
        assert Application.objects.count() == 1

    def test_declared_applications_can_exchange_keys_and_names(self) -> None:
        declared.sync(declared.parse("1:a:s:First,2:b:s:Second"))
        declared.sync(declared.parse("1:b:s:Second,2:a:s:First"))
        assert list(Application.objects.order_by("app_id").values_list("app_id", "key", "name")) == [
            ("1", "b", "Second"),
            ("2", "a", "First"),
        ]

    def test_a_new_id_can_take_the_key_of_the_one_that_it_replaces(self) -> None:
        declared.sync(declared.parse("1:key:s:Shop"))
        declared.sync(declared.parse("2:key:s:Shop"))
        assert Application.objects.get(key="key", name="Shop").app_id == "2"
        assert not Application.objects.get(app_id="1").enabled

    def test_workers_that_start_together_do_it_once(self) -> None:
        workers = 4
        together = threading.Barrier(workers)

        def work() -> None:
            together.wait()
            try:
                declared.sync(declared.parse("1:key1:secret1,2:key2:secret2"))
            finally:
                connections.close_all()

        with ThreadPoolExecutor(workers) as threads:
            for outcome in [threads.submit(work) for _ in range(workers)]:
                outcome.result()
        assert Application.objects.count() == 2
