from __future__ import annotations

import io

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from fanfare.applications import loading, rules
from fanfare.applications.models import Application
from tests.unit.applications import fakes

pytestmark = pytest.mark.django_db(transaction=True)


def create(*arguments: str) -> dict[str, str]:
    """The printed credentials by variable."""
    output = io.StringIO()
    call_command("createapplication", *arguments, stdout=output)
    return dict(line.split("=", 1) for line in output.getvalue().splitlines())


def refusal(*arguments: str) -> str:
    output = io.StringIO()
    with pytest.raises(CommandError) as caught:
        call_command("createapplication", *arguments, stdout=output)
    assert output.getvalue() == ""
    assert caught.value.returncode == 1
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_output_is_the_credentials_as_shell_lines_only() -> None:
    printed = create("Shop")
    application = Application.objects.get()
    assert printed == {
        "FANFARE_APP_ID": application.app_id,
        "FANFARE_APP_KEY": application.key,
        "FANFARE_APP_SECRET": application.secret,
    }


def test_options_set_the_fields() -> None:
    create(
        *("Shop", "--id", "42", "--key", "k", "--secret", "a$b", "--client-events"),
        *("--max-connections", "7", "--max-event-bytes", "2048", "--disabled"),
        *("--subscription-counts", "--authorization-timeout", "30"),
    )
    application = Application.objects.get(app_id="42")
    assert (application.name, application.key, application.secret) == ("Shop", "k", "a$b")
    assert (application.max_connections, application.max_event_bytes) == (7, 2048)
    assert application.client_events
    assert application.subscription_counts
    assert application.authorization_timeout == 30
    assert not application.enabled


def test_webhook_option_can_be_repeated(log: fakes.Log) -> None:
    create("Shop", "--id", "42", "--webhook", "https://example.com/a", "--webhook", "http://example.org:8080/b")
    urls = [endpoint.url for endpoint in Application.objects.get().webhooks.all()]
    assert urls == ["https://example.com/a", "http://example.org:8080/b"]
    assert log.announced == ["42"]
    assert log.writes == 1


def test_channel_rules_are_given_by_pattern(log: fakes.Log) -> None:
    create(
        *("Shop", "--id", "42"),
        *("--history", "orders-*=200000,86400", "--history", "a=b,c-*=100, 60", "--history", "*=10,5"),
        *("--replay", "orders-*=50000,33554432", "--rewind", "a=b,c-*=20", "--rewind", "*=5,30"),
    )
    application = loading.fetch("42")
    assert application is not None
    assert list(application.rules) == [
        rules.Rule("orders-*", 200_000, 86_400, max_replay_entries=50_000, max_replay_bytes=33_554_432),
        rules.Rule("a=b,c-*", 100, 60, rewind_count=20),
        rules.Rule("*", 10, 5, rewind_count=5, rewind_seconds=30),
    ]
    assert log.announced == ["42"]
    assert log.writes == 1


def test_secret_with_special_characters_is_quoted_for_the_shell() -> None:
    assert create("Shop", "--secret", "a$b")["FANFARE_APP_SECRET"] == "'a$b'"


def test_new_application_is_announced_to_running_workers(log: fakes.Log) -> None:
    create("Shop", "--id", "42")
    assert log.announced == ["42"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["Another", "--id", "42"], "--id: Another application has this id."),
        (["Another", "--key", "taken"], "--key: Another application has this key."),
        (["Shop"], "NAME: Another application has this name."),
        (["Another", "--max-connections", "0"], "--max-connections: 0 is below the minimum of 1."),
        (["Another", "--max-connections", "many"], "--max-connections: “many” value must be an integer."),
        (["Another", "--id", "x"], "--id: The id has 1 to 15 digits and starts with no zero."),
        (
            ["Another", "--authorization-timeout", "4"],
            "--authorization-timeout: 4 is below the minimum of 5.",
        ),
        (["Another", "--webhook", "example.com"], "--webhook: The URL must start with http:// or https://."),
        (
            ["Another", "--webhook", "https://example.com/", "--webhook", "https://"],
            "--webhook, number 2: The URL has no host.",
        ),
        (["Another", "--history", "orders"], "--history: 'orders' is not PATTERN=COUNT,SECONDS."),
        (["Another", "--history", "orders=1"], "--history: 'orders=1' is not PATTERN=COUNT,SECONDS."),
        (["Another", "--rewind", "=1"], "--rewind: '=1' is not PATTERN=COUNT[,SECONDS]."),
        (
            ["Another", "--history", "a=0,60"],
            "--history a=0,60: 0 is below the minimum of 1.",
        ),
        (
            ["Another", "--history", "a=many,60"],
            "--history a=many,60: “many” value must be an integer.",
        ),
        (
            ["Another", "--history", "a b=1,60"],
            "--history a b=1,60: The pattern matches no channel name: use letters, digits, _-=@,.; and *.",
        ),
        (
            ["Another", "--history", "a=1,60", "--replay", "a=1,1"],
            "--replay a=1,1: 1 is below the minimum of 1024.",
        ),
        (
            ["Another", "--history", "a=1,60", "--replay", "b=1,1024"],
            "--replay b=1,1024: there is no --history with this pattern.",
        ),
        (["Another", "--history", "a=1,60", "--history", "a=2,60"], "--history: the pattern a appears twice."),
        ([""], "NAME: This field cannot be blank."),
    ],
)
def test_invalid_option_is_refused_in_one_sentence(arguments: list[str], sentence: str) -> None:
    create("Shop", "--id", "42", "--key", "taken")
    assert refusal(*arguments) == sentence
    assert Application.objects.count() == 1


def test_database_without_migrations_is_refused_in_one_sentence() -> None:
    call_command("migrate", "fanfare", "zero", verbosity=0)
    try:
        assert refusal("Shop") == "The database is not migrated: run `python manage.py migrate`."
    finally:
        call_command("migrate", verbosity=0)
    assert Application._meta.db_table in connection.introspection.table_names()
