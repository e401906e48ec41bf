"""Every setting of Fanfare: its default, its type and bounds, its environment variable and what it means.

    from fanfare import conf

    conf.settings.BUFFER_BYTES

A value comes from the environment variable `FANFARE_BUFFER_BYTES` (or the file that `FANFARE_BUFFER_BYTES_FILE` names),
else from the entry `"BUFFER_BYTES"` of the dict `FANFARE` in the project's settings module, else it is the default. It
is read once; a change of `settings.FANFARE` in a test (`override_settings(FANFARE={...})`) makes it be read again.

To add a setting, add one entry to a group below and run `python docs/reference/settings.py`, which writes its row of
the reference and its lines of `.env.example`.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from fanfare import environment
from fanfare.setting_types import (
    Choice,
    Declarations,
    EngineName,
    Flag,
    Folder,
    Integer,
    Key,
    Keys,
    Mounts,
    Networks,
    Origins,
    Port,
    Refused,
    Seconds,
    Text,
    Type,
    Url,
    UrlPath,
)

T = TypeVar("T")

PREFIX = "FANFARE_"  # of environment variables
REDIS_SCHEMES = (
    "redis",
    "rediss",
    "redis+unix",
    *(f"redis{s}+{form}" for s in ("", "s") for form in ("sentinel", "cluster")),
)
DICT = "FANFARE"  # the name of the dict in the settings module

# Variables that other programs read, or that are read before the settings.
FOREIGN = frozenset({"FANFARE_APP_ID", "FANFARE_APP_KEY", "FANFARE_APP_SECRET", "FANFARE_ENV_FILE"})
# Kubernetes and Docker set these for a service that is called `fanfare`.
_LINKED = ("FANFARE_SERVICE_", "FANFARE_PORT_")


class Setting(Generic[T]):
    """One entry of `Settings`. Read from an instance of `Settings`, it is the value.

    `help`: what it means, in sentences for an operator. `unset`: what the default means, where its text does not say
    it. `example`: a value for `.env.example`, where the default is empty. `page`: the documentation's page about it.
    """

    name: str  # without the prefix

    def __init__(
        self, type_: Type[T], default: T, help_: str, *, unset: str = "", example: str = "", page: str = ""
    ) -> None:
        self.type = type_
        self.default = default
        self.help = help_
        self.unset = unset
        self.example = example
        self.page = page

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, instance: None, owner: type[Settings]) -> Setting[T]: ...
    @overload
    def __get__(self, instance: Settings, owner: type[Settings]) -> T: ...
    def __get__(self, instance: Settings | None, owner: type[Settings]) -> Setting[T] | T:
        if instance is None:
            return self
        # The instance's own attribute comes before this descriptor, so a value is read once.
        value = vars(instance)[self.name] = self.read(instance.declared)
        return value

    @property
    def variable(self) -> str:
        return PREFIX + self.name

    def read(self, declared: Mapping[str, Any]) -> T:
        """The value; `declared` is the dict of the settings module. Raises ImproperlyConfigured."""
        try:
            text = environment.given(self.variable)
            if text is not None:
                return self.finish(self.type.from_text(text))
        except Refused as refused:
            raise ImproperlyConfigured(f"{self.variable} {refused}.") from None
        try:
            return self.finish(self.type.from_value(declared[self.name]) if self.name in declared else self.default)
        except Refused as refused:
            raise ImproperlyConfigured(f'{DICT}["{self.name}"] {refused}.') from None

    def finish(self, value: T) -> T:
        return value


class FolderSetting(Setting[Path]):
    def finish(self, value: Path) -> Path:
        return base_folder() / value


class Places:
    """Addresses and folders."""

    DATA_DIR = FolderSetting(
        Folder(),
        Path("var"),
        "The folder for everything that this deployment writes: log, sockets, secret key and, unless DATABASE_URL is "
        "set, the database. Each data folder is a separate deployment. It must be on a local disk. A relative path "
        "starts at the project's BASE_DIR.",
        unset="`var` beside manage.py",
    )
    HOST = Setting(Text(), "127.0.0.1", "The address that `manage.py runserver` and `make run` listen on.")
    PORT = Setting(Port(), 8000, "The port that `manage.py runserver` and `make run` listen on.")
    URL_PREFIX = Setting(
        UrlPath(),
        "/",
        "The path below which Fanfare answers: `/realtime/` moves the API to `/realtime/apps/…` and the sockets to "
        "`/realtime/app/KEY`.",
        example="/realtime/",
    )
    PUBLIC_URL = Setting(
        Url(),
        "",
        "The URL at which browsers reach the sockets, if Fanfare runs in another process or on another host than the "
        "pages.",
        unset="the host of the page",
        example="https://realtime.example.com",
    )
    ASGI_MOUNTS = Setting(
        Mounts(),
        {},
        "Other ASGI applications in the same process, each under a prefix.",
        example="/shop=shop.main:app",
        page="how-to/fastapi.md",
    )


class Applications:
    """Applications."""

    APPS = Setting(
        Declarations(),
        "",
        "Applications that the environment declares, for containers. They appear in the admin and cannot be changed "
        "there.",
        example="1001:my-key:my-secret:My application",
        page="how-to/declare-applications.md",
    )
    DEFAULT_APP = Setting(
        Text(),
        "",
        "The id of the application that `publish()` and the auth endpoints use.",
        unset="the oldest enabled application",
        example="1001",
    )
    SECRET_GRACE_SECONDS = Setting(
        Integer(0, 2_592_000),
        86_400,
        "Seconds for which the old secret of an application stays valid after a rotation. 0 refuses it at once.",
    )
    SECRET_ENCRYPTION_KEYS = Setting(
        Keys(32),
        (),
        "Keys that encrypt the applications' secrets in the database. The first one encrypts, all of them decrypt. "
        "Create one with `openssl rand -base64 32`; after a change run `manage.py encryptsecrets`. It needs PyNaCl.",
        page="how-to/secure.md",
    )
    ENCRYPTION_MASTER_KEY = Setting(
        Key(32),
        b"",
        "The master key of encrypted channels; all servers that publish to them need the same one. Create it with "
        "`openssl rand -base64 32`.",
        page="how-to/encrypted-channels.md",
    )


class Access:
    """Access."""

    TRUSTED_PROXIES = Setting(
        Networks(),
        [],
        "Proxies whose X-Forwarded-For and X-Forwarded-Proto headers are used: addresses, networks, or `unix` for a "
        "proxy that connects over a Unix socket.",
        example="127.0.0.1,10.0.0.0/8",
        page="how-to/nginx-and-tls.md",
    )
    LOG_FORMAT = Setting(
        Choice(["text", "json"]),
        "text",
        "The format of the log lines of Fanfare, the project and the ASGI server: `text`, in the format of the "
        "project; `json`, one object per line.",
        page="how-to/debugging.md",
    )
    OTEL = Setting(
        Flag(),
        False,
        "OpenTelemetry spans of publishing, commits, deliveries and webhooks. Needs `django-fanfare[otel]`. If the "
        "project has no tracer provider, they are exported with OTLP, as the variables `OTEL_EXPORTER_OTLP_…` say.",
        page="how-to/monitoring.md",
    )
    METRICS_TOKEN = Setting(
        Text(secret=True),
        "",
        "The token with which Prometheus reads `/metrics` from another host, in the header `Authorization: Bearer "
        "TOKEN`. Requests that come from this machine and not through a proxy need no token.",
    )
    LOGIN_ATTEMPTS = Setting(
        Integer(1, 10_000),
        10,
        "Login attempts of one address in a minute, in each worker, with `fanfare.middleware.LoginThrottle` in "
        "MIDDLEWARE. Above it an attempt gets 429.",
        page="reference/limits.md",
    )
    CORS_ORIGINS = Setting(
        Origins(),
        [],
        "Origins of other hosts whose pages may call `/pusher/auth` and `/pusher/user-auth` with a visitor's session.",
        example="https://shop.example.com",
        page="how-to/sign-in-users.md",
    )


class Engine:
    """The engine."""

    ENGINE = Setting(
        EngineName(["postgres", "postgresql", *REDIS_SCHEMES]),
        "local",
        "What the workers share. `local` serves one machine with any number of workers and needs no other service. "
        "`postgres://user:password@host:5432/database` serves any number of machines; `?schema=NAME` names the "
        "schema (`fanfare`). `redis://user:password@host:6379/0` does so with Redis 7 or Valkey, and `rediss://` "
        "with TLS; `?prefix=NAME` sets the prefix of its keys. `redis+sentinel://host:26379,host:26379/SERVICE` asks "
        "Sentinel for the primary, and `redis+cluster://host:6379,host:6379` uses a cluster.",
        page="how-to/many-machines.md",
    )
    ENGINE_NEXT = Setting(
        EngineName(["postgres", "postgresql", *REDIS_SCHEMES]),
        "",
        "The value that `FANFARE_ENGINE` gets after `manage.py fanfare engine move`. When the move is done, workers "
        "and publishers that have this setting switch to the new store by themselves. The others refuse to publish "
        "until they are restarted.",
        example="postgres://fanfare@db.internal/realtime",
        page="how-to/move-the-log.md",
    )
    REDIS_PARTITIONS = Setting(
        Integer(1, 1_024),
        16,
        "Parts of the log in Redis, the same number on every machine. A failover of a cluster interrupts the "
        "channels of the parts that were on the lost primary, and no others. Choose about four for each primary. The "
        "number is fixed once the log has entries.",
        page="how-to/many-machines.md",
    )
    SYNC = Setting(
        Choice(["normal", "full"]),
        "normal",
        "What an event survives after its publisher got a 200: with `normal`, the end of any process; with `full`, "
        "also a loss of power, at about a third of the commits per second.",
    )
    LOG_SECONDS = Setting(
        Integer(1, 3_600),
        20,
        "Seconds for which the log keeps events of channels without history. A worker that was suspended for longer "
        "closes its connections, and its clients subscribe again.",
    )
    LOG_MAX_BYTES = Setting(
        Integer(16_777_216, 1_099_511_627_776),
        2_147_483_648,
        "The maximum size of the log of the `local` engine in bytes. Above four fifths of it, entries are trimmed "
        "before their time; above all of it, publishers get a 503. On a small or nearly full disk the limit is "
        "lower: 16 MiB of the disk, or an eighth of a small one, stay free.",
    )
    APPEND_TIMEOUT = Setting(
        Seconds(0.1, 60.0),
        3.0,
        "Seconds that a publisher waits for the log before it gets a 503, plus at most 1.5 if a commit has begun. "
        "Pusher's SDKs give up after 5 seconds and report only a timeout.",
    )


class Connections:
    """Connections."""

    MAX_FRAME_BYTES = Setting(
        Integer(1_024, 16_777_216),
        131_072,
        "Bytes of the largest WebSocket message that a client may send. A larger one closes the connection with 1009.",
    )
    BUFFER_BYTES = Setting(
        Integer(65_536, 268_435_456),
        1_048_576,
        "Bytes that may wait for one slow client. Above it the client is disconnected with 4100.",
    )
    MAX_REQUEST_LINE_BYTES = Setting(
        Integer(1_024, 1_048_576),
        32_768,
        "Bytes of the first line of an HTTP request: its path and its query. Above it the request gets 414.",
        page="reference/limits.md",
    )
    MAX_HEAD_BYTES = Setting(
        Integer(4_096, 1_048_576),
        65_536,
        "Bytes of the line and the headers of an HTTP request. Above it the request gets 431.",
        page="reference/limits.md",
    )
    MAX_HEADERS = Setting(
        Integer(16, 10_000),
        128,
        "Headers of an HTTP request. Above it the request gets 431.",
        page="reference/limits.md",
    )
    MAX_PAGE_BODY_BYTES = Setting(
        Integer(0, 1_099_511_627_776),
        0,
        "Bytes of the body of a request to a page of Django. Above it the request gets 413. Without a limit, Django "
        "writes a body of any size to the temporary folder before it looks at the URL. 0: no limit.",
        unset="no limit; 26214400 in this repository's project",
        page="reference/limits.md",
    )
    HEAD_TIMEOUT = Setting(
        Seconds(0.5, 600.0),
        20.0,
        "Seconds for the line and the headers of an HTTP request, from the connect or the first byte. After it the "
        "request gets 408, and a client that has sent nothing is disconnected.",
        page="reference/limits.md",
    )
    MAX_WAITING_CONNECTIONS = Setting(
        Integer(1, 1_000_000),
        1_000,
        "HTTP connections of one worker without a complete request, and again as many that are idle between two "
        "requests. Above it the oldest is closed. At most a quarter of MAX_CONNECTIONS.",
        page="reference/limits.md",
    )
    MAX_CONNECTIONS = Setting(
        Integer(0, 10_000_000),
        0,
        "Connections of one worker. Above it a waiting HTTP connection is closed, or else the new one gets 503; above "
        "98 % of it new WebSockets are closed with 4100. 0: the open-file limit, less 128.",
        unset="the open-file limit, less 128",
        page="reference/limits.md",
    )
    MAX_MEMORY_MB = Setting(
        Integer(0, 1_048_576),
        0,
        "Mebibytes of memory of one worker. Above it new WebSockets are closed with 4100. 0: no limit.",
        page="reference/limits.md",
    )
    ACCEPT_RATE = Setting(
        Integer(0, 100_000),
        500,
        "WebSockets that one worker opens in a second; in proportion fewer if there are fewer cores than workers, "
        "and down to a tenth while its event loop is late. Further ones wait for up to 8 s; those beyond that are "
        "closed with 4100. 0: no limit.",
        page="reference/limits.md",
    )
    MAX_SUBSCRIPTIONS = Setting(
        Integer(1, 100_000),
        1_000,
        "Subscriptions of one connection. A further subscribe is refused with 4100. Each costs about 1 kB of memory.",
    )
    SOCKETS_PER_ADDRESS = Setting(
        Integer(0, 1_000_000),
        0,
        "WebSockets that one client address may have open in each worker. Further ones are closed with 4100. 0: no "
        "limit. Set `FANFARE_TRUSTED_PROXIES` first: otherwise all clients behind a proxy have its address.",
        page="how-to/secure.md",
    )
    SUBSCRIBES_PER_SECOND = Setting(
        Integer(1, 100_000),
        100,
        "Subscribes of one connection per second, on average; `FANFARE_MAX_SUBSCRIPTIONS` of them may come at once. A "
        "further one is refused with 4301.",
        page="reference/limits.md",
    )
    HISTORY_PAGES_PER_SECOND = Setting(
        Integer(1, 10_000),
        20,
        "Pages of history that one connection reads per second, on average; five times as many may come at once. "
        "Further ones wait.",
        page="reference/limits.md",
    )
    PENDING_BYTES = Setting(
        Integer(16_384, 16_777_216),
        65_536,
        "Bytes of frames that may wait for an answer of the engine, per connection: those that come before the "
        "connection is established or depend on a sign-in. Above it the connection is closed with 4100.",
    )
    DISABLED_GRACE = Setting(
        Integer(0, 86_400),
        300,
        "Seconds for which the clients of a disabled application wait until it is enabled again. After that they are "
        "closed with 4003 and do not reconnect. 0: at once.",
        page="reference/codes.md",
    )
    ACTIVITY_TIMEOUT = Setting(Integer(5, 3_600), 120, "Seconds of silence after which a client sends a ping.")
    GRACEFUL_TIMEOUT = Setting(Integer(1, 300), 5, "Seconds that a stopping worker waits for its connections to close.")
    DRAIN_SECONDS = Setting(
        Seconds(0.0, 300.0),
        10.0,
        "Seconds over which the stopping workers of one machine close 5,000 connections if another process takes "
        "over. Fewer connections take less time; more take no longer. 0: all at once.",
        page="how-to/deploy.md",
    )
    DRAIN_DELAY = Setting(
        Seconds(0.0, 300.0),
        0.0,
        "Seconds after the signal to stop during which a worker still accepts connections while `/health/ready` is "
        "503, so that a load balancer takes it out first.",
        page="how-to/deploy.md",
    )
    RESUME_WINDOW = Setting(
        Integer(10, 86_400),
        120,
        "Seconds for which a client with a resume token may be away and still receive every missed event.",
        page="how-to/resume.md",
    )
    MAX_RESUME_TOKENS = Setting(
        Integer(100, 100_000_000),
        1_000_000,
        "Resume tokens within `FANFARE_RESUME_WINDOW`, in the whole deployment. Above it, clients with a new token "
        "are connected but not resumed.",
        page="how-to/resume.md",
    )
    RESUME_ACK_SECONDS = Setting(
        Seconds(0.1, 60.0),
        5.0,
        "Seconds after which a client with a resume token is asked again to acknowledge what it has received. Events "
        "since the last acknowledgement may arrive twice after a reconnect.",
    )
    SSE_HEARTBEAT = Setting(
        Seconds(0.1, 300.0),
        15.0,
        "Seconds of silence after which an SSE connection gets a comment, so that proxies keep it open.",
        page="how-to/sse.md",
    )
    SSE_LIFE = Setting(
        Seconds(1.0, 86_400.0),
        600.0,
        "Seconds, give or take a fifth, after which an SSE connection ends and its client reconnects.",
    )
    SSE_STREAMS_PER_ADDRESS = Setting(
        Integer(1, 1_000_000),
        1_000,
        "SSE connections that one client address may have open in each worker. Further ones are refused with 503.",
        page="how-to/sse.md",
    )


class Publishing:
    """Publishing."""

    OUTBOX = Setting(
        Flag(),
        False,
        "`publish()` in a transaction writes the event to an outbox table in the same transaction, so that it survives "
        "the end of the process.",
        page="how-to/outbox.md",
    )
    TRANSACTIONAL_PUBLISH = Setting(
        Flag(),
        False,
        "With `FANFARE_ENGINE=postgres://…` in the project's own database: `publish()` in a transaction writes the "
        "event with it, so that a commit saves both or neither.",
        page="how-to/outbox.md",
    )
    OUTBOX_KEEP_SECONDS = Setting(
        Integer(60, 31_536_000), 604_800, "Seconds for which an outbox event that cannot be sent stays in the admin."
    )
    REMOTE_URL = Setting(
        Url(),
        "",
        "The URL of another Fanfare deployment. `publish()` then sends events to it over HTTP, as the application that "
        "FANFARE_REMOTE_APP_ID, FANFARE_REMOTE_KEY and FANFARE_REMOTE_SECRET name.",
        unset="publish to this deployment",
        example="https://realtime.example.com",
    )
    REMOTE_APP_ID = Setting(Text(), "", "The application's id at FANFARE_REMOTE_URL.", example="1001")
    REMOTE_KEY = Setting(Text(), "", "The application's key at FANFARE_REMOTE_URL.", example="my-key")
    REMOTE_SECRET = Setting(
        Text(secret=True), "", "The application's secret at FANFARE_REMOTE_URL.", example="my-secret"
    )


class Streams:
    """Streams."""

    STREAM_WINDOW_MS = Setting(
        Integer(0, 10_000),
        40,
        "Milliseconds in which the appends of a stream are joined into one event. A channel rule can have its own.",
        page="how-to/stream-answers.md",
    )
    STREAM_LEASE = Setting(
        Integer(3, 3_600),
        15,
        "Seconds of a producer's silence after which its stream is `interrupted`. A running producer renews it.",
    )
    STREAM_KEEP = Setting(
        Integer(1, 3_600),
        60,
        "Seconds after its end for which new subscribers still get a stream, whether the channel keeps a history or "
        "not: a page that was offline gets the end of the answer.",
    )
    STREAM_MAX_LENGTH = Setting(
        Integer(1, 4_194_304),
        262_144,
        "The longest text of a stream, in UTF-16 code units. A late subscriber gets it in one event.",
    )
    STREAM_MAX_APPENDS = Setting(
        Integer(1, 10_000), 100, "Appends to one stream in a second over the HTTP API, in each worker."
    )
    STREAM_MAX_IN_CHANNEL = Setting(Integer(1, 10_000), 100, "Open streams of one channel.")
    STREAM_MAX_IN_APP = Setting(Integer(1, 1_000_000), 10_000, "Open streams of one application.")


class Members:
    """Members with a time to live."""

    MEMBER_MAX_WRITES = Setting(
        Integer(1, 10_000),
        10,
        "Joins, renewals, updates and departures of one member in a second over the HTTP API, in each worker.",
        page="how-to/presence.md",
    )


class Webhooks:
    """Webhooks."""

    WEBHOOKS_ALLOW_PRIVATE = Setting(
        Flag(),
        False,
        "Webhooks may go to addresses inside the network: localhost, 10.0.0.0/8 and the like.",
        page="how-to/webhooks.md",
    )
    WEBHOOKS_RETRY_SECONDS = Setting(
        Integer(300, 604_800), 3_600, "Seconds for which a delivery is retried before it is given up."
    )
    WEBHOOKS_TIMEOUT = Setting(
        Seconds(0.1, 60.0), 10.0, "Seconds that one request to a webhook may take, redirects included."
    )
    WEBHOOKS_KEEP_SECONDS = Setting(
        Integer(60, 31_536_000), 259_200, "Seconds for which a finished delivery stays in the admin."
    )
    WEBHOOKS_KEEP_ROWS = Setting(Integer(0, 10_000_000), 100_000, "Finished deliveries that stay in the admin.")
    WEBHOOKS_MAX_PENDING = Setting(
        Integer(100, 10_000_000),
        100_000,
        "Deliveries that may be pending for one webhook. New events for a webhook with more are dropped and counted.",
    )


class Settings(Places, Applications, Access, Engine, Connections, Publishing, Streams, Members, Webhooks):
    """The settings, typed. Read them from `conf.settings`."""

    @property
    def declared(self) -> Mapping[str, Any]:
        """The dict `FANFARE` of the settings module. Raises ImproperlyConfigured for a key that is no setting."""
        declared = getattr(django_settings, DICT, {})
        if not isinstance(declared, Mapping):
            raise ImproperlyConfigured(
                f'{DICT} in the settings is {declared!r}; it must be a dict such as {{"OUTBOX": True}}.'
            )
        for key in declared:
            if key not in _all:
                raise ImproperlyConfigured(
                    f"{DICT}[{key!r}] is not a setting of Fanfare. {_suggestion(key, _all)}".rstrip()
                )
        return declared

    def validate(self) -> None:
        """Read all settings. Raises ImproperlyConfigured for the first one that is wrong."""
        for name in _all:
            getattr(self, name)
        remote = ("REMOTE_URL", "REMOTE_APP_ID", "REMOTE_KEY", "REMOTE_SECRET")
        missing = [PREFIX + name for name in remote if not getattr(self, name)]
        if missing and len(missing) < len(remote):
            given = ", ".join(PREFIX + name for name in remote if PREFIX + name not in missing)
            raise ImproperlyConfigured(
                f"{', '.join(missing)} must be set together with {given}: to publish to a remote deployment, its URL "
                "and the id, the key and the secret of an application there are needed."
            )

    def reload(self) -> None:
        """Forget what was read: the environment or the settings have changed."""
        vars(self).clear()

    def __iter__(self) -> Iterator[Setting[Any]]:
        """The declarations, in the order in which they are declared."""
        return iter(_all.values())

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Settings cannot be assigned; in a test write override_settings({DICT}={{{name!r}: …}}).")


def base_folder() -> Path:
    """The folder at which relative paths start: the settings' BASE_DIR.

    Without BASE_DIR it is the folder that contains the package of the settings module, and without a settings module
    the current folder.
    """
    base = getattr(django_settings, "BASE_DIR", None)
    if base is not None:
        return Path(base)
    package, _, inner = os.environ.get("DJANGO_SETTINGS_MODULE", "").partition(".")
    file = getattr(sys.modules.get(package), "__file__", None)
    if file is None:
        return Path.cwd()
    return Path(file).resolve().parent.parent if inner else Path(file).resolve().parent


def unknown_variables(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The environment variables among `names` that look like settings and are not, each with a suggestion."""
    known = {setting.variable for setting in settings} | environment.names_read
    known |= {f"{name}_FILE" for name in known}
    for name in sorted(names):
        if name.startswith(PREFIX) and not name.startswith(_LINKED) and name not in known | FOREIGN:
            yield name, _suggestion(name, known)


def _suggestion(name: object, known: Iterable[str]) -> str:
    by_short_name = {full.removeprefix(PREFIX): full for full in known}
    near = difflib.get_close_matches(str(name).upper().removeprefix(PREFIX), by_short_name, n=1)
    return f"Did you mean {by_short_name[near[0]]}?" if near else ""


GROUPS: dict[str, list[Setting[Any]]] = {
    str(group.__doc__).rstrip("."): [entry for entry in vars(group).values() if isinstance(entry, Setting)]
    for group in Settings.__bases__
}
_all = {setting.name: setting for group in GROUPS.values() for setting in group}

settings = Settings()


def _reload(*, setting: str, **_: object) -> None:
    if setting in (DICT, "BASE_DIR"):
        settings.reload()


setting_changed.connect(_reload, dispatch_uid="fanfare.conf")
