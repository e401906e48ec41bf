"""What an application may look like, and what every change of one does."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest
from django.core import serializers
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import transaction

from fanfare.applications import credentials, limits, rules
from fanfare.applications.models import Application, ChannelRule, Generation, WebhookEndpoint
from tests.unit.applications import fakes

pytestmark = pytest.mark.django_db(transaction=True)


def problem(column: str, **values: object) -> str:
    with pytest.raises(ValidationError) as caught:
        Application(**{"name": "Shop", **values}).full_clean()
    return caught.value.message_dict[column][0]


class TestValues:
    def test_application_needs_only_a_name(self) -> None:
        application = Application(name="Shop")
        application.full_clean()
        application.save()
        assert application.enabled
        assert not application.client_events
        assert credentials.ID.match(application.app_id)
        assert len(application.key) == len(application.secret) == 20

    def test_generated_ids_fit_in_32_bits(self) -> None:
        assert all(10**8 <= int(credentials.generate_id()) < 2**31 for _ in range(1000))

    @pytest.mark.parametrize("app_id", ["", "0", "042", "1" * 16, "12a", "-1", "1\n"])
    def test_id_is_a_number_that_is_exact_as_a_double(self, app_id: str) -> None:
        assert problem("app_id", app_id=app_id)

    @pytest.mark.parametrize("key", ["", "a/b", "a:b", "a b", "..", "é", "k" * 65])
    def test_key_has_no_slash_and_no_colon(self, key: str) -> None:
        assert problem("key", key=key)

    @pytest.mark.parametrize("secret", ["", "with space", "line\nbreak", "geheimé", "x" * 129])
    def test_invalid_secret_is_refused_and_not_shown(self, secret: str) -> None:
        message = problem("secret", secret=secret)
        assert not secret or secret not in message

    @pytest.mark.parametrize(("column", "field"), [("app_id", "id"), ("key", "key"), ("name", "name")])
    def test_id_key_and_name_are_unique(self, column: str, field: str) -> None:
        first = Application.objects.create(name="First")
        assert problem(column, **{column: getattr(first, column)}) == f"Another application has this {field}."

    def test_error_names_the_invalid_origin(self) -> None:
        message = problem("allowed_origins", allowed_origins="https://good.example\nhttps://bad.example/path")
        assert "'https://bad.example/path'" in message


class TestLimits:
    def test_each_limit_has_a_column_and_bounds_around_its_default(self) -> None:
        columns = {field.name for field in Application._meta.get_fields()}
        assert set(limits.BOUNDS) == {*limits.NAMES, *limits.DURATIONS} <= columns
        for name, (least, most) in limits.BOUNDS.items():
            default = limits.DEFAULTS[name]
            assert default is None or least <= default <= most

    @pytest.mark.parametrize("name", limits.BOUNDS)
    def test_error_for_a_limit_out_of_bounds_has_both_numbers(self, name: str) -> None:
        least, most = limits.BOUNDS[name]
        assert problem(name, **{name: most + 1}) == f"{most + 1} is above the maximum of {most}."
        assert problem(name, **{name: least - 1}) == f"{least - 1} is below the minimum of {least}."

    def test_each_number_of_a_rule_has_bounds_around_its_default(self) -> None:
        columns = {field.name for field in ChannelRule._meta.get_fields()}
        numbers = {field.name for field in dataclasses.fields(rules.Rule)} - {
            "pattern",
            "client_events",
            "stream_cancel",
            "record_members",
        }
        assert set(limits.RULE_BOUNDS) == set(limits.RULE_DEFAULTS) == numbers <= columns
        for name, (least, most) in limits.RULE_BOUNDS.items():
            assert least <= limits.RULE_DEFAULTS[name] <= most

    def test_limit_that_was_not_set_is_null(self) -> None:
        application = Application.objects.create(name="Shop")
        application.refresh_from_db()
        assert all(getattr(application, name) is None for name in limits.BOUNDS)


class TestChanges:
    def test_each_write_to_applications_raises_the_generation_and_announces_them(self, log: fakes.Log) -> None:
        def check(*announced: str) -> None:
            nonlocal generation
            now = Generation.current()
            assert now is not None
            assert generation is None or now > generation
            assert sorted(log.announced) == sorted(announced)
            generation = now
            log.publications.clear()

        generation: int | None = None
        first = Application.objects.create(name="First", app_id="1")
        check("1")
        second, _ = Application.objects.bulk_create(
            [Application(name="Second", app_id="2"), Application(name="Third", app_id="3")]
        )
        check("2", "3")
        first.client_events = True
        first.save(update_fields=["client_events"])
        check("1")
        Application.objects.exclude(app_id="1").update(enabled=False)
        check("2", "3")
        second.name = "Second renamed"
        Application.objects.bulk_update([second], ["name"])
        check("2")
        first.delete()
        check("1")
        Application.objects.filter(enabled=False).delete()
        check("2", "3")

    def test_each_write_to_webhooks_announces_their_application(self, log: fakes.Log) -> None:
        def check() -> None:
            nonlocal generation
            now = Generation.current()
            assert now is not None
            assert now > generation
            assert log.announced == ["1"]
            generation = now
            log.publications.clear()

        application = Application.objects.create(name="Shop", app_id="1")
        Application.objects.create(name="Other", app_id="2")
        generation = Generation.current() or 0
        log.publications.clear()
        first = application.webhooks.create(url="https://a.example")
        check()
        (second,) = WebhookEndpoint.objects.bulk_create(
            [WebhookEndpoint(application=application, url="https://b.example")]
        )
        check()
        first.batching = True
        first.save()
        check()
        WebhookEndpoint.objects.filter(pk=first.pk).update(enabled=False)
        check()
        second.channel_prefix = "private-"
        WebhookEndpoint.objects.bulk_update([second], ["channel_prefix"])
        check()
        first.delete()
        check()
        WebhookEndpoint.objects.all().delete()
        check()

    def test_each_write_to_rules_announces_their_application(self, log: fakes.Log) -> None:
        def check() -> None:
            nonlocal generation
            now = Generation.current()
            assert now is not None
            assert now > generation
            assert log.announced == ["1"]
            generation = now
            log.publications.clear()

        application = Application.objects.create(name="Shop", app_id="1")
        generation = Generation.current() or 0
        log.publications.clear()
        rule = application.rules.create(pattern="a-*")
        check()
        rule.history_size = 5
        rule.save()
        check()
        ChannelRule.objects.bulk_create([ChannelRule(application=application, pattern="b-*")])
        check()
        ChannelRule.objects.filter(pattern="b-*").update(position=1)
        check()
        rule.delete()
        check()
        ChannelRule.objects.all().delete()
        check()

    def test_fixture_may_contain_a_webhook_before_its_application(self, log: fakes.Log, tmp_path: Path) -> None:
        application = Application.objects.create(name="Shop", app_id="7")
        text = serializers.serialize("json", [application.webhooks.create(url="https://a.example"), application])
        Application.objects.all().delete()
        log.publications.clear()
        fixture = tmp_path / "shop.json"
        fixture.write_text(text)
        call_command("loaddata", fixture, verbosity=0)
        assert log.announced == ["7"]
        assert Application.objects.get().webhooks.count() == 1

    def test_webhooks_are_deleted_with_their_application(self) -> None:
        application = Application.objects.create(name="Shop")
        application.webhooks.create(url="https://a.example")
        application.delete()
        assert not WebhookEndpoint.objects.exists()

    def test_loaded_fixture_is_announced(self, log: fakes.Log) -> None:
        text = serializers.serialize("json", [Application.objects.create(name="Shop", app_id="7")])
        Application.objects.all().delete()
        log.publications.clear()
        before = Generation.current()
        for loaded in serializers.deserialize("json", text):
            with transaction.atomic():
                loaded.save()
        assert Generation.current() != before
        assert log.announced == ["7"]

    def test_announcement_is_a_control_entry(self, log: fakes.Log) -> None:
        Application.objects.create(name="Shop", app_id="42")
        (publication,) = log.publications
        assert publication.channel == "application.changed"
        assert publication.body == b"42"
        assert publication.kind.name == "CONTROL"

    def test_transaction_announces_once_after_its_commit(self, log: fakes.Log) -> None:
        with transaction.atomic():
            application = Application.objects.create(name="Shop", app_id="1")
            Application.objects.create(name="Other", app_id="2")
            application.save()
            assert log.announced == []
        assert log.announced == ["1", "2"]
        assert log.writes == 1

    def test_rollback_does_not_change_the_generation(self, log: fakes.Log) -> None:
        Application.objects.create(name="Shop")
        before, announced = Generation.current(), len(log.announced)

        def roll_back() -> None:
            with transaction.atomic():
                Application.objects.create(name="Other")
                raise RuntimeError

        with pytest.raises(RuntimeError):
            roll_back()
        assert Generation.current() == before
        assert len(log.announced) == announced

    def test_failing_log_is_a_warning_and_the_change_is_kept(
        self, log: fakes.Log, caplog: pytest.LogCaptureFixture
    ) -> None:
        log.is_down = True
        with caplog.at_level(logging.WARNING, "fanfare.applications"):
            Application.objects.create(name="Shop", app_id="1")
        assert Application.objects.filter(app_id="1").exists()
        assert "the disk is full" in caplog.text

    def test_generation_does_not_repeat_after_its_table_was_emptied(self) -> None:
        Application.objects.create(name="Shop")
        before = Generation.current()
        Generation.objects.all().delete()
        assert Generation.current() is None
        Application.objects.create(name="Other")
        assert Generation.current() != before
