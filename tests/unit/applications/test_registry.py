from __future__ import annotations

import pytest

from fanfare.applications.registry import WEBHOOK_EVENTS, Application, Registry, Webhook


def test_application_is_found_by_id_and_by_key() -> None:
    applications = Registry()
    shop = Application("1", "key", "secret")
    applications.put(shop)
    assert applications.by_id("1") is applications.by_key("key") is shop
    assert applications.by_id("key") is None


def test_replaced_key_is_unknown() -> None:
    applications = Registry()
    applications.put(Application("1", "old", "secret"))
    applications.put(Application("1", "new", "secret"))
    assert applications.by_key("old") is None
    assert len(applications.all()) == 1


def test_two_applications_can_exchange_their_keys() -> None:
    applications = Registry()
    applications.put(Application("1", "a", "secret"))
    applications.put(Application("2", "b", "secret"))
    first, second = Application("1", "b", "secret"), Application("2", "a", "secret")
    applications.put(first)
    applications.put(second)
    assert applications.by_key("b") is first
    assert applications.by_key("a") is second
    applications.remove("1")
    applications.remove("2")
    assert applications.by_key("a") is applications.by_key("b") is None


def test_webhook_is_found_with_its_application_as_long_as_one_has_it() -> None:
    applications = Registry()
    one, other = Webhook(1, "https://a.example"), Webhook(2, "https://b.example")
    first = Application("1", "a", "secret", webhooks=(one, other))
    applications.put(first)
    assert applications.webhook(1) == (first, one)
    second = Application("2", "b", "secret", webhooks=(other,))
    applications.put(second)  # it took the webhook over
    applications.put(Application("1", "a", "secret", webhooks=()))
    assert applications.webhook(1) is None
    assert applications.webhook(2) == (second, other)
    applications.remove("2")
    assert applications.webhook(2) is None


def test_secret_is_not_in_the_repr() -> None:
    assert "hunter2" not in repr(Application("1", "key", "hunter2", previous_secret="hunter2"))


def test_webhook_headers_are_not_in_the_repr() -> None:
    assert "hunter2" not in repr(Webhook(1, "https://example.com/", headers=(("Authorization", "hunter2"),)))


@pytest.mark.parametrize(
    ("webhook", "wanted"),
    [
        (Webhook(1, "u"), True),
        (Webhook(1, "u", enabled=False), True),
        (Webhook(1, "u", event_types=frozenset({"cache_miss"})), True),
        (Webhook(1, "u", event_types=frozenset(WEBHOOK_EVENTS) - {"cache_miss"}), False),
        (Webhook(1, "u", channel_prefix="cache-"), True),
        (Webhook(1, "u", channel_prefix="private-"), False),
    ],
)
def test_webhook_wants_the_events_that_match_its_filters(webhook: Webhook, wanted: bool) -> None:
    assert webhook.wants("cache_miss", "cache-prices") is wanted
