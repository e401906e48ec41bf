"""The address of the store: the URL, discovery through Sentinel or the cluster, and clients for blocking callers."""

from __future__ import annotations

import binascii
import functools
import re
import secrets
import ssl
import string
import urllib.parse
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import redis
import redis.backoff
import redis.cluster
import redis.exceptions
import redis.retry

from fanfare.engine import errors

DEFAULT_PREFIX: Final = "fanfare"
CONNECT_S: Final = 3.0
SLOTS: Final = 16_384
FORMS: Final = (
    "redis://user:password@host:6379/0, rediss:// with TLS, redis+unix:///path, "
    "redis+sentinel://host:26379,host:26379/SERVICE or redis+cluster://host:6379,host:6379"
)
_ALPHABET: Final = string.digits + string.ascii_letters
_SCHEME: Final = re.compile(r"redis(s)?(?:\+(sentinel|cluster|unix))?")
_OPTIONS: Final = frozenset({"prefix", "ca", "hostname", "cert", "key", "sentinel_user", "sentinel_password", "db"})


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed URL. It holds passwords: only `public` may be shown.

    `form`: `single`, `unix`, `sentinel` or `cluster`. `hosts`: of servers, or of sentinels. `service`: the name of the
    primary that the sentinels watch.
    """

    form: str
    hosts: tuple[tuple[str, int], ...]
    public: str
    prefix: str = DEFAULT_PREFIX
    path: str = ""
    service: str = ""
    db: int = 0
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    sentinel_user: str = field(default="", repr=False)
    sentinel_password: str = field(default="", repr=False)
    tls: bool = False
    check_hostname: bool = True
    ca: str = ""
    cert: str = ""
    key: str = ""

    def ssl_context(self) -> ssl.SSLContext | None:
        """Raises EngineMisconfigured if a file cannot be read."""
        if not self.tls:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca or None)
            if self.cert:
                context.load_cert_chain(self.cert, self.key or None)
        except (OSError, ssl.SSLError) as error:
            raise errors.EngineMisconfigured(
                f"FANFARE_ENGINE: the certificates (ca, cert, key) cannot be read: {error}"
            ) from error
        context.check_hostname = self.check_hostname
        return context

    def slots(self, extra: tuple[tuple[str, int], ...] = ()) -> list[tuple[int, int, tuple[str, int]]]:
        """The cluster's slots: first, last, and the address of their primary. Blocks. Raises EngineUnavailable.

        `extra`: further addresses to try, from an earlier reply.
        """
        last: Exception | None = None
        for host, port in dict.fromkeys((*extra, *self.hosts)):
            try:
                with redis.Redis(host=host, port=port, **self.options()) as client:
                    found = client.execute_command("CLUSTER", "SLOTS")  # the reply as the server sends it
            except (redis.exceptions.RedisError, OSError) as error:
                last = error
                continue
            pieces = [
                (first, end, (primary[0].decode() or host, int(primary[1])))
                for first, end, primary, *_replicas in found
            ]
            if sum(end - first + 1 for first, end, _ in pieces) == SLOTS:
                return pieces
        reason = f"No server of the cluster has all slots in its table: {describe(last)}"
        if type(last) is redis.exceptions.ResponseError:  # a server outside of a cluster, or a sentinel
            reason += "; FANFARE_ENGINE=redis+cluster://… names the servers of a cluster"
        raise errors.EngineUnavailable(reason)

    def blocking(self, timeout_s: float, primary: tuple[str, int] | None = None) -> Any:
        """A client for threads, with a pool. It does not retry by itself, because an append must not run twice.
        `primary`: with Sentinel, the server to use."""
        options = self.options(timeout_s)
        if self.form == "unix":
            del options["ssl"]
            return redis.Redis(unix_socket_path=self.path, **options)
        if self.form == "cluster":
            node: Any = redis.cluster.ClusterNode  # redis-py has no annotations here
            nodes = [node(*each) for each in self.hosts]
            del options["db"]
            return redis.cluster.RedisCluster(startup_nodes=nodes, **options)
        host, port = primary or self.hosts[0]
        return redis.Redis(host=host, port=port, **options)

    def options(self, timeout_s: float = CONNECT_S) -> dict[str, Any]:
        """The options of a client of redis-py."""
        options: dict[str, Any] = {
            "username": self.user or None,
            "password": self.password or None,
            "db": self.db,
            "socket_timeout": timeout_s,
            "socket_connect_timeout": CONNECT_S,
            "retry": redis.retry.Retry(redis.backoff.NoBackoff(), 0),
            "ssl": self.tls,
            "decode_responses": False,
        }
        if self.tls:
            options |= {
                "ssl_ca_certs": self.ca or None,
                "ssl_certfile": self.cert or None,
                "ssl_keyfile": self.key or None,
                "ssl_check_hostname": self.check_hostname,
            }
        return options


def parse(url: str) -> Address:
    """Read a URL of one of the `FORMS`. Options: `prefix` of the keys; `ca`, `cert`, `key` (files) and `hostname=0` (do
    not compare the certificate's name) for TLS; `sentinel_user` and `sentinel_password`.

    Raises EngineMisconfigured, without the password in its message.
    """
    known = None
    try:
        parts = urllib.parse.urlsplit(url)
        known = _SCHEME.fullmatch(parts.scheme)
        options = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        form = (known and known[2]) or "single"
        credentials, _, where = parts.netloc.rpartition("@")
        user, _, password = credentials.partition(":")
        default_port = 26379 if form == "sentinel" else 6379
        hosts = tuple(_host(each, default_port) for each in where.split(",")) if form != "unix" else ()
        tail = parts.path.strip("/")
        db = int(options.get("db", tail if form == "single" and tail else 0))
        is_fine = {
            "single": len(hosts) == 1,
            "unix": bool(tail),
            "sentinel": bool(tail),
            "cluster": not db and not tail,
        }[form]
    except ValueError:
        is_fine = False
    if known is None or not is_fine:
        raise errors.EngineMisconfigured(f"FANFARE_ENGINE is not a valid URL of Redis; expected {FORMS}.")
    if unknown := options.keys() - _OPTIONS:
        raise errors.EngineMisconfigured(
            f"FANFARE_ENGINE has the option {min(unknown)!r}; the engine has {', '.join(sorted(_OPTIONS))}."
        )
    prefix = options.get("prefix", DEFAULT_PREFIX)
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,50}", prefix):
        raise errors.EngineMisconfigured(
            f"FANFARE_ENGINE: prefix={prefix!r} is not a name of letters, digits, dots, hyphens and underscores."
        )
    name = urllib.parse.unquote(user)
    shown = f"{parts.scheme}://{name + '@' if name else ''}{where}{parts.path} (prefix {prefix})"
    return Address(
        form=form,
        hosts=hosts,
        public=shown,
        prefix=prefix,
        path=urllib.parse.unquote(parts.path) if form == "unix" else "",
        service=tail if form == "sentinel" else "",
        db=db,
        user=name,
        password=urllib.parse.unquote(password),
        sentinel_user=options.get("sentinel_user", ""),
        sentinel_password=options.get("sentinel_password", ""),
        tls=bool(known[1]),
        check_hostname=options.get("hostname", "1") != "0",
        ca=options.get("ca", ""),
        cert=options.get("cert", ""),
        key=options.get("key", ""),
    )


def _host(text: str, default_port: int) -> tuple[str, int]:
    parts = urllib.parse.urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError
    return parts.hostname, parts.port or default_port


@functools.cache
def key_prefix(prefix: str, partition: int, partitions: int) -> str:
    """The prefix of the keys of a partition. Its hash tag puts them into one slot of a cluster, and the slots of the
    partitions are spread evenly."""
    for attempt in range(1_000_000):
        tag = f"{prefix}.{partition}.{attempt}"
        if slot_of(tag) * partitions // SLOTS == partition:
            return f"{prefix}:{{{tag}}}:"
    raise AssertionError("no tag")


def partition_of(app: str, channel: str, partitions: int) -> int:
    return zlib.crc32(f"{app}:{channel}".encode()) % partitions


def slot_of(tag: str) -> int:
    return binascii.crc_hqx(tag.encode(), 0) % SLOTS


# RedisClusterException is no RedisError: no server of a cluster answers, or a slot has no primary.
UNREACHABLE: Final = (redis.exceptions.RedisError, redis.exceptions.RedisClusterException, OSError)


@contextmanager
def reported() -> Iterator[None]:
    """Turn errors of redis-py into EngineUnavailable."""
    try:
        yield
    except UNREACHABLE as error:
        raise errors.EngineUnavailable(f"Redis cannot be reached: {describe(error)}") from error


def describe(error: BaseException | None) -> str:
    """The first line of an error."""
    if isinstance(error, TimeoutError | redis.exceptions.TimeoutError):
        return "no answer in time"
    text = str(error or "").strip() or type(error).__name__
    return text.splitlines()[0]


def random_name(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))
