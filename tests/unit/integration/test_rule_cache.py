"""`@channel(pattern, cache_seconds=N)`: whose answer is kept, for how long, and what ends it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from fanfare import channel, errors
from fanfare.applications import models
from fanfare.integration import rule_cache, rules, tokens, users

SOCKET = "1234.5678"


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Rule:
    """The rule of `private-room-{room:int}`, which counts its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, int]] = []
        self.answer = True

        @channel("private-room-{room:int}", cache_seconds=30)
        def may_join(user: Any, room: int) -> bool:
            self.calls.append((user.pk, room))
            return self.answer


@pytest.fixture(autouse=True)
def clock(registered: rules.RuleSet, application: models.Application, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rule_cache, "cache", rule_cache.RuleCache(clock=clock))
    return clock


@pytest.fixture
def rule(registered: rules.RuleSet) -> Rule:
    return Rule()


@pytest.fixture
def ann(db: None) -> Client:
    return signed_in(User.objects.create_user("ann", pk=42))


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def ask(client: Client, name: str = "private-room-7", **headers: Any) -> int:
    return client.post("/pusher/auth", {"socket_id": SOCKET, "channel_name": name}, **headers).status_code


def test_admitted_visitor_is_admitted_again_without_a_call_until_the_time_is_over(
    rule: Rule, ann: Client, clock: Clock
) -> None:
    assert [ask(ann), ask(ann)] == [200, 200]
    assert rule.calls == [(42, 7)]
    clock.now_s += 30
    assert ask(ann) == 200
    assert len(rule.calls) == 2


def test_each_socket_gets_its_own_signature(rule: Rule, ann: Client) -> None:
    answers = [
        json.loads(ann.post("/pusher/auth", {"socket_id": one, "channel_name": "private-room-7"}).content)["auth"]
        for one in ("1.1", "1.2")
    ]
    assert len(rule.calls) == 1
    assert answers[0] != answers[1]


def test_refusal_is_not_kept(rule: Rule, ann: Client) -> None:
    rule.answer = False
    assert [ask(ann), ask(ann)] == [403, 403]
    rule.answer = True
    assert ask(ann) == 200
    assert len(rule.calls) == 3


def test_answer_belongs_to_one_user_channel_session_host_and_token(rule: Rule, ann: Client, settings: Any) -> None:
    settings.ALLOWED_HOSTS = ["*"]
    assert ask(ann) == 200
    rule.answer = False
    assert ask(ann, "private-room-8") == 403
    assert ask(signed_in(User.objects.create_user("ben"))) == 403
    assert ask(signed_in(User.objects.get(pk=42))) == 403
    assert ask(ann, headers={"Host": "other.example"}) == 403
    assert ask(ann, headers={"Authorization": "Token x"}) == 403
    assert ask(Client()) == 403
    assert ask(ann) == 200


def test_answer_belongs_to_the_host_that_a_proxy_forwards(rule: Rule, ann: Client, settings: Any) -> None:
    settings.ALLOWED_HOSTS, settings.USE_X_FORWARDED_HOST = ["*"], True
    assert ask(ann, headers={"X-Forwarded-Host": "a.example"}) == 200
    rule.answer = False
    assert ask(ann, headers={"X-Forwarded-Host": "b.example"}) == 403
    assert ask(ann, headers={"X-Forwarded-Host": "a.example"}) == 200


def test_answer_for_a_visitor_without_account_and_session_is_not_kept(rule: Rule, db: None) -> None:
    assert [ask(Client()), ask(Client())] == [200, 200]
    assert len(rule.calls) == 2


def test_answer_of_a_worker_that_does_not_read_the_log_is_not_kept(rule: Rule, ann: Client) -> None:
    reads_log = False
    rule_cache.cache.follow(lambda: reads_log)
    assert [ask(ann), ask(ann)] == [200, 200]
    assert len(rule.calls) == 2
    reads_log = True
    assert [ask(ann), ask(ann)] == [200, 200]
    assert len(rule.calls) == 3


def test_change_of_the_limits_applies_to_a_kept_answer(
    rule: Rule, ann: Client, application: models.Application
) -> None:
    @channel("presence-room", cache_seconds=30)
    def may_join(user: Any) -> dict[str, str]:
        return {"name": "A" * 40}

    assert ask(ann, "presence-room") == 200
    application.max_member_bytes = 40
    application.save()
    assert ask(ann, "presence-room") == 403


def test_signed_in_user_without_a_primary_key_is_not_kept() -> None:
    class Guest:
        is_authenticated = True

    assert rule_cache.visitor_key(Guest(), object()) is None  # type: ignore[arg-type]


def test_answer_of_a_rule_that_ran_while_the_cache_was_cleared_is_not_kept(
    registered: rules.RuleSet, ann: Client
) -> None:
    calls = []

    @channel("private-a", cache_seconds=30)
    def may_join(user: Any) -> bool:
        calls.append(user.pk)
        if len(calls) == 1:
            rule_cache.cache.clear()  # a termination arrives after the rule has read the user's rights
        return True

    assert [ask(ann, "private-a") for _ in range(3)] == [200, 200, 200]
    assert len(calls) == 2


def test_answer_for_a_user_who_was_loaded_before_the_cache_was_cleared_is_not_kept(
    rule: Rule, ann: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = users.visitor

    def load(request: Any) -> Any:
        found = visitor(request)
        if not rule.calls:
            rule_cache.cache.clear()  # a termination arrives
        return found

    monkeypatch.setattr(users, "visitor", load)
    assert [ask(ann) for _ in range(3)] == [200, 200, 200]
    assert len(rule.calls) == 2


def test_oldest_answer_makes_room_for_the_newest() -> None:
    cache = rule_cache.RuleCache(most=2)
    for key in ("a", "b", "a", "c"):
        cache.keep(key, key, 60.0, cache.generation)
    assert [cache.find(key) for key in "abc"] == ["a", None, "c"]
    assert len(cache) == 2


@pytest.mark.parametrize("seconds", [0, -1, 3_601, True, "30", float("nan")])
def test_wrong_number_of_seconds_is_refused_at_import(registered: rules.RuleSet, seconds: Any) -> None:
    with pytest.raises(errors.InvalidRule, match="cache_seconds of"):

        @channel("private-a", cache_seconds=seconds)
        def may_join(user: Any) -> bool:
            return True


def test_rule_that_takes_the_request_is_refused_at_import(registered: rules.RuleSet) -> None:
    with pytest.raises(errors.InvalidRule, match="parameter 'request'"):

        @channel("private-a", cache_seconds=30)
        def may_join(user: Any, request: Any) -> bool:
            return True


def test_token_of_a_rule_with_a_cache_is_refused(
    registered: rules.RuleSet, ann: Client, caplog: pytest.LogCaptureFixture
) -> None:
    @channel("private-a", cache_seconds=30)
    def may_join(user: Any) -> tokens.Token:
        return tokens.capability(["private-a"], seconds=60)

    assert ask(ann, "private-a") == 403
    assert "has cache_seconds and returned a token" in caplog.text
