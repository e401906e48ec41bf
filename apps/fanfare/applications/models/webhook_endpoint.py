"""Webhook endpoints of an application: the model, and the validation of URL, filters and headers.

No error message contains the URL or a header's value: both may contain a token.
"""

from __future__ import annotations

import re
from typing import Any
from urllib import parse

from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db import models

from fanfare import conf
from fanfare.applications import limits, registry
from fanfare.applications.models import announced
from fanfare.applications.models.application import Application
from fanfare.runtime import addresses

MOST_URL = 2_000  # characters; servers and proxies accept this length by default
MOST_HEADERS = 20
MOST_HEADER_VALUE = 4_096  # characters: enough for a signed token

SCHEMES = ("http", "https")

# Headers of the request itself and of its body. X-Pusher-… headers carry the signature.
RESERVED_HEADERS = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
RESERVED_PREFIXES = ("proxy-", "x-pusher-")

_ASCII = re.compile(r"[!-~]+")
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")  # as the last label: the host is an IPv4 address
_PREFIX = re.compile(r"[-A-Za-z0-9_=@,.;#]+")  # the characters of channel names
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.1
_HEADER_VALUE = re.compile(r"[!-~](?:[\t -~]*[!-~])?")


def masked(url: str) -> str:
    """The URL with the values of its query replaced, because they may be secrets: `https://example.com/hook?token=…`."""
    rest, question, query = url.partition("?")
    if not question:
        return url
    pairs = (pair.partition("=") for pair in query.split("&"))
    # A part without `=` may be a secret.
    return rest + "?" + "&".join(f"{name}=…" if equals else "…" for name, equals, _ in pairs)


def validate_url(url: str) -> None:
    """Checks a literal address in the URL. The addresses of a host name are checked at each delivery."""
    if not _ASCII.fullmatch(url):
        raise ValidationError("The URL has a space or a character outside ASCII; write it percent-encoded.")
    try:
        parts = parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValidationError(f"The URL is invalid: {error}.") from None
    checks = (
        (parts.scheme not in SCHEMES, "The URL must start with http:// or https://."),
        (
            parts.username is not None or parts.password is not None,
            "The URL has a user name or password; send them as an Authorization header instead.",
        ),
        (bool(parts.fragment), "The URL has a part after #, which is not sent."),
        (not host, "The URL has no host."),
        (port == 0, "The URL has port 0."),
    )
    for is_wrong, message in checks:
        if is_wrong:
            raise ValidationError(message)
    _validate_host(host or "")


def _validate_host(host: str) -> None:
    address = addresses.parse(host)
    last_label = host.rstrip(".").rpartition(".")[2]
    if address is None:
        if not _HOST.fullmatch(host):
            raise ValidationError("The URL's host is not a valid host name.")
        if _NUMBER.fullmatch(last_label):
            # Many resolvers accept `127.1`, `2130706433` and `0x7f.1` as the loopback address.
            raise ValidationError("The URL's host is neither a name nor an IPv4 address of four decimal numbers.")
    is_private = last_label == "localhost" if address is None else not addresses.is_public(address)
    if is_private and not conf.settings.WEBHOOKS_ALLOW_PRIVATE:
        raise ValidationError(
            f"{host} is a private address; to allow private addresses, set FANFARE_WEBHOOKS_ALLOW_PRIVATE=1."
        )


def validate_event_types(value: Any) -> None:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise ValidationError("The event types must be a list of strings.")
    for entry in value:
        if entry not in registry.WEBHOOK_EVENTS:
            known = ", ".join(registry.WEBHOOK_EVENTS)
            raise ValidationError(f"There is no event type {entry!r}; the event types are {known}.")


def validate_channel_prefix(prefix: str) -> None:
    if prefix and not _PREFIX.fullmatch(prefix):
        raise ValidationError(
            "The prefix has a character that channel names do not have: use letters, digits and _-=@,.;#."
        )


def validate_headers(value: Any) -> None:
    if not isinstance(value, dict) or not all(isinstance(part, str) for pair in value.items() for part in pair):
        raise ValidationError("The headers must be an object whose values are strings.")
    if len(value) > MOST_HEADERS:
        raise ValidationError(f"There are {len(value)} headers; at most {MOST_HEADERS} are allowed.")
    seen: set[str] = set()
    for name, text in value.items():
        _validate_header(name, text)
        if name.lower() in seen:
            raise ValidationError(f"The header {name} appears twice.")
        seen.add(name.lower())


def _validate_header(name: str, text: str) -> None:
    if not _HEADER_NAME.fullmatch(name):
        raise ValidationError(f"{name!r} is not a valid header name.")
    if name.lower() in RESERVED_HEADERS or name.lower().startswith(RESERVED_PREFIXES):
        raise ValidationError(f"The header {name} is set by the server.")
    if len(text) > MOST_HEADER_VALUE:
        raise ValidationError(f"The header {name} has {len(text)} characters; at most {MOST_HEADER_VALUE} are allowed.")
    if not _HEADER_VALUE.fullmatch(text):
        raise ValidationError(
            f"The header {name} must have a value of printable ASCII characters without surrounding spaces."
        )


class WebhookEndpointQuerySet(announced.AnnouncedQuerySet["WebhookEndpoint"]):
    pass


class WebhookEndpoint(announced.Announced):
    """A URL that receives events of an application's channels, with filters."""

    APP_ID = "application__app_id"

    application = models.ForeignKey(Application, models.CASCADE, related_name="webhooks")
    url = models.CharField(
        "URL",
        max_length=MOST_URL,
        validators=[validate_url],
        help_text="An http or https URL. Every request is signed with the application's secret.",
    )
    enabled = models.BooleanField(
        default=True,
        help_text="A paused webhook sends nothing. Its events wait, up to FANFARE_WEBHOOKS_MAX_PENDING, and are sent "
        "when it is enabled again.",
    )
    event_types = models.JSONField(
        default=list, blank=True, validators=[validate_event_types], help_text="If none is chosen, all events are sent."
    )
    channel_prefix = models.CharField(
        max_length=limits.BOUNDS["max_channel_name"].most,
        blank=True,
        default="",
        validators=[validate_channel_prefix],
        help_text="Only events of channels whose names start with it, such as presence-. Empty: all channels.",
    )
    headers = models.JSONField(
        default=dict,
        blank=True,
        validators=[validate_headers],
        help_text="Headers of every request, one per line, such as Authorization: Bearer abc.",
    )
    batching = models.BooleanField(
        default=False, help_text="A request may hold several events. Otherwise, each request holds one."
    )
    created_at = models.DateTimeField("created", auto_now_add=True)
    updated_at = models.DateTimeField("updated", auto_now=True)

    objects = WebhookEndpointQuerySet.as_manager()

    class Meta:
        ordering = ("pk",)
        verbose_name = "webhook"

    def __str__(self) -> str:
        return self.masked_url

    @property
    @admin.display(description="URL")
    def masked_url(self) -> str:
        """The URL for lists, logs and users with the view permission only: values of its query may be secrets."""
        return masked(self.url)

    @property
    def announced_app_id(self) -> str:
        return self.application.app_id
