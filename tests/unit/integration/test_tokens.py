from __future__ import annotations

import time
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command

from fanfare import UserData, capability, errors, revoke_capability, sse_token
from fanfare.applications import models
from fanfare.protocol import capabilities, revocations
from fanfare.testing import captured_events


def test_token_has_channels_user_and_expiry(application: models.Application) -> None:
    grant = capabilities.verify(
        sse_token(["private-orders-*"], user_id="42", seconds=60), (application.secret,), time.time()
    )
    assert (grant.channels, grant.user_id) == (("private-orders-*",), "42")
    assert 55 < grant.expires - time.time() <= 60


def test_single_channel_may_be_a_str(application: models.Application) -> None:
    grant = capabilities.verify(sse_token("private-a"), (application.secret,), time.time())
    assert grant.channels == ("private-a",)


def test_app_argument_selects_the_secret(application: models.Application) -> None:
    other = models.Application.objects.create(name="other", app_id="8", key="key-8", secret="secret-8")
    for app in (other, "8"):
        assert capabilities.verify(sse_token("private-a", app=app), ("secret-8",), time.time())
    with pytest.raises(errors.NoApplication):
        sse_token("private-a", app="9")


@pytest.mark.parametrize("channels", [[], ["private a"], [""], ["private-a"] * 101, ["x" * 200] * 50])
def test_invalid_channels_are_refused(application: models.Application, channels: Any) -> None:
    with pytest.raises(errors.InvalidName):
        sse_token(channels)


@pytest.mark.parametrize("channel", ["presence-x", "presence-*"])
def test_presence_channel_is_refused_with_the_reason(application: models.Application, channel: str) -> None:
    with pytest.raises(errors.InvalidName, match=r"SSE connections carry none.*'private-"):
        sse_token([channel])


@pytest.mark.parametrize("user", [User(pk=42), 42, "42", UserData("42")])
def test_user_may_be_given_in_every_form(application: models.Application, user: Any) -> None:
    grant = capabilities.verify(sse_token("private-a", user_id=user), (application.secret,), time.time())
    assert grant.user_id == "42"


def test_token_without_a_lifetime_is_refused(application: models.Application) -> None:
    with pytest.raises(ValueError, match="valid for 1 second"):
        sse_token("private-a", seconds=0)


def test_command_prints_the_token(application: models.Application, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("ssetoken", "private-a", "private-b", "--user", "42", "--seconds", "60")
    grant = capabilities.verify(capsys.readouterr().out.strip(), (application.secret,), time.time())
    assert (grant.channels, grant.user_id) == (("private-a", "private-b"), "42")
    with pytest.raises(CommandError, match="no application"):
        call_command("ssetoken", "private-a", "--app", "9")


def test_capability_has_rights_user_info_and_an_id(application: models.Application) -> None:
    token = capability(["presence-*"], user=42, info={"name": "Ann"}, rights=["subscribe", "presence"], seconds=60)
    found = capabilities.verify(token, (application.secret,), time.time())
    assert (found.rights, found.user_id, found.info) == ({"subscribe", "presence"}, "42", '{"name":"Ann"}')
    assert found.token_id == token.id
    assert 55 < token.expires - time.time() <= 60


@pytest.mark.parametrize(
    "wrong", [{"rights": ["read"]}, {"rights": []}, {"rights": ["presence"]}, {"seconds": 10**8}, {"seconds": 0}]
)
def test_impossible_capability_is_refused(application: models.Application, wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"rights|user|seconds"):
        capability("private-a", **wrong)
    with pytest.raises(errors.UnencodableData):
        capability("private-a", info=object())


def test_token_is_revoked_by_itself_or_by_its_id(application: models.Application) -> None:
    token = capability("private-a", seconds=60)
    with captured_events() as events:
        revoke_capability(token, on_commit=False)
        revoke_capability(token.id, on_commit=False)
        sent = [one for one in events._log.sent() if one.channel == revocations.RECORD_PREFIX + token.id]
    by_token, by_id = (one.retention.seconds for one in sent if one.retention)
    assert 0 < by_token <= 61
    assert by_id == revocations.RECORD_S
    with pytest.raises(errors.InvalidName):
        revoke_capability(str(token) + "x", on_commit=False)


@pytest.mark.parametrize("command", [("fanfare", "capability"), ("ssetoken",)])
def test_commands_issue_tokens_of_users_that_django_does_not_know(
    application: models.Application, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    call_command(*command, "private-a", "--user", "guest-7")
    found = capabilities.verify(capsys.readouterr().out.split()[0], (application.secret,), time.time())
    assert found.user_id == "guest-7"


def test_fanfare_command_issues_and_revokes(
    application: models.Application, capsys: pytest.CaptureFixture[str]
) -> None:
    call_command("fanfare", "capability", "private-a", "--rights", "subscribe,publish", "--seconds", "60")
    text, named = capsys.readouterr().out.split()[0], capsys.readouterr().out
    found = capabilities.verify(text, (application.secret,), time.time())
    assert found.rights == {"subscribe", "publish"}, named
    with captured_events() as events:
        call_command("fanfare", "revoke", found.token_id)
        assert revocations.COMMAND in [one.channel for one in events._log.sent()]
