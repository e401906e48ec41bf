"""The validation of webhooks."""

from __future__ import annotations

import pytest
from django.core.exceptions import ValidationError
from pytest_django import Settings

from fanfare.applications import registry
from fanfare.applications.models import WebhookEndpoint, webhook_endpoint


def problem(field: str, value: object) -> str:
    """The error message of the field's validator; empty if the value is valid."""
    try:
        getattr(webhook_endpoint, f"validate_{field}")(value)
    except ValidationError as error:
        return error.messages[0]
    return ""


class TestUrls:
    @pytest.mark.parametrize(
        "url",
        [
            "https://example.com",
            "http://example.com:8080/hook?token=abc%20d",
            "https://xn--bcher-kva.example/",
            "https://hooks.example.com./a",
            "http://backend/hook",
            "http://my_service.internal:8000/",
            "https://93.184.216.34/",
            "https://[2606:2800:220:1:248:1893:25c8:1946]:8443/",
        ],
    )
    def test_public_addresses_and_host_names_are_valid(self, url: str, settings: Settings) -> None:
        settings.FANFARE = {"WEBHOOKS_ALLOW_PRIVATE": False}
        assert problem("url", url) == ""

    @pytest.mark.parametrize(
        ("url", "part"),
        [
            ("", "space or a character outside ASCII"),
            ("https://exa mple.com", "space or a character outside ASCII"),
            ("https://example.com/\r\nHost: x", "space or a character outside ASCII"),
            ("https://bücher.example", "space or a character outside ASCII"),
            ("example.com/hook", "must start with http"),
            ("ftp://example.com", "must start with http"),
            ("javascript:alert(1)", "must start with http"),
            ("https://", "no host"),
            ("https:///hook", "no host"),
            ("https://me:hunter2@example.com", "user name or password"),
            ("https://@example.com", "user name or password"),
            ("https://example.com/#part", "after #"),
            ("https://example.com:0/", "port 0"),
            ("https://example.com:65536/", "The URL is invalid"),
            ("https://[::1", "The URL is invalid"),
            ("https://-a.example", "not a valid host name"),
            ("https://a..example", "not a valid host name"),
            ("https://127.1/", "IPv4 address of four decimal numbers"),
            ("https://2130706433/", "IPv4 address of four decimal numbers"),
            ("https://0x7f.0.0.0x1/", "IPv4 address of four decimal numbers"),
            ("https://256.1.1.1/", "IPv4 address of four decimal numbers"),
        ],
    )
    def test_invalid_url_is_explained_in_one_sentence(self, url: str, part: str, settings: Settings) -> None:
        settings.FANFARE = {"WEBHOOKS_ALLOW_PRIVATE": True}
        fault = problem("url", url)
        assert part in fault
        assert "hunter2" not in fault

    @pytest.mark.parametrize(
        "url",
        [
            "http://127.0.0.1:8000/",
            "http://10.1.2.3/",
            "http://169.254.169.254/latest/meta-data/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://localhost:8000/hook",
            "http://app.localhost/",
        ],
    )
    def test_private_address_needs_the_setting(self, url: str, settings: Settings) -> None:
        endpoint = WebhookEndpoint(url=url)
        settings.FANFARE = {"WEBHOOKS_ALLOW_PRIVATE": False}
        assert "FANFARE_WEBHOOKS_ALLOW_PRIVATE=1" in endpoint.problems()["url"]
        settings.FANFARE = {"WEBHOOKS_ALLOW_PRIVATE": True}
        assert endpoint.problems() == {}

    def test_error_for_a_long_url_has_both_numbers(self) -> None:
        fault = WebhookEndpoint(url="https://example.com/" + "a" * 2_000).problems()["url"]
        assert "2000" in fault
        assert "2020" in fault


class TestEventTypes:
    @pytest.mark.parametrize("value", [[], ["cache_miss"], list(registry.WEBHOOK_EVENTS)])
    def test_each_event_type_is_valid(self, value: list[str]) -> None:
        assert problem("event_types", value) == ""

    @pytest.mark.parametrize("value", ["cache_miss", {}, None, [1], ["cache_hit"]])
    def test_other_values_are_refused(self, value: object) -> None:
        assert problem("event_types", value)

    def test_error_for_an_unknown_event_type_lists_the_event_types(self) -> None:
        fault = problem("event_types", ["cache_hit"])
        assert all(name in fault for name in ("'cache_hit'", *registry.WEBHOOK_EVENTS))


class TestChannelPrefixes:
    @pytest.mark.parametrize("prefix", ["", "private-", "#server-to-user-", "a_=@,.;"])
    def test_start_of_a_channel_name_is_a_valid_prefix(self, prefix: str) -> None:
        assert problem("channel_prefix", prefix) == ""

    @pytest.mark.parametrize("prefix", [" ", "private *", "ä", "a/b"])
    def test_prefix_of_no_channel_name_is_refused(self, prefix: str) -> None:
        assert problem("channel_prefix", prefix)


class TestHeaders:
    @pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer a b"}, {"x-a": "1", "x-b": "2\t3"}])
    def test_ordinary_headers_are_valid(self, headers: dict[str, str]) -> None:
        assert problem("headers", headers) == ""

    @pytest.mark.parametrize(
        ("headers", "part"),
        [
            ([], "must be an object"),
            ({"A": 1}, "must be an object"),
            ({"": "x"}, "not a valid header name"),
            ({"A B": "x"}, "not a valid header name"),
            ({"A:": "x"}, "not a valid header name"),
            ({"A\n": "x"}, "not a valid header name"),
            ({"host": "x"}, "is set by the server"),
            ({"Content-Length": "1"}, "is set by the server"),
            ({"content-type": "text/plain"}, "is set by the server"),
            ({"Transfer-Encoding": "chunked"}, "is set by the server"),
            ({"X-Pusher-Signature": "x"}, "is set by the server"),
            ({"A": ""}, "printable ASCII"),
            ({"A": " x"}, "printable ASCII"),
            ({"A": "x\r\nB: y"}, "printable ASCII"),
            ({"A": "x\n"}, "printable ASCII"),
            ({"A": "é"}, "printable ASCII"),
            ({"A": "1", "a": "2"}, "twice"),
            ({f"A{number}": "x" for number in range(21)}, "21 headers; at most 20"),
            ({"A": "x" * 4097}, "4097 characters; at most 4096"),
        ],
    )
    def test_header_that_would_break_the_request_is_refused(self, headers: object, part: str) -> None:
        assert part in problem("headers", headers)
