"""Mutated texts for each parser of text from outside: it returns a value, or raises the error that it documents."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import random
import re
import struct
import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httptools
import jwt
import orjson
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.management import CommandError

from fanfare import conf, errors
from fanfare.api import authentication, events, members, operations, parameters, queries, refusals, requests, streams
from fanfare.applications import declarations, origins, registry
from fanfare.applications import errors as application_errors
from fanfare.applications import rules as channel_rules
from fanfare.applications.models import webhook_endpoint
from fanfare.channel_layer import messages as layer_messages
from fanfare.console import doctor, filters, live, permissions, tokens
from fanfare.console import requests as console_requests
from fanfare.console.endpoints import event_creator
from fanfare.engine import errors as engine_errors
from fanfare.engine import interface
from fanfare.engine.postgres import database
from fanfare.engine.redis import address as redis_address
from fanfare.engine.redis import entries
from fanfare.hub import traces
from fanfare.integration import rules
from fanfare.integration import tokens as integration_tokens
from fanfare.management import rule_flags
from fanfare.protocol import (
    authorization,
    capabilities,
    handshake,
    messages,
    names,
    publications,
    recovery,
    sign_in,
    signatures,
)
from fanfare.protocol import refusals as protocol_refusals
from fanfare.runtime import addresses, log_lines, text
from fanfare.server import claims, mounts, proxies, urlconf
from fanfare.setting_types import Refused
from fanfare.sockets import direct_http, opening
from fanfare.sockets import frames as websocket_frames
from fanfare.sockets import handshake as websocket_handshake
from fanfare.sse import cursors
from fanfare.sse import refusals as sse_refusals
from fanfare.sse import requests as sse_requests
from fanfare.webhooks import http_client
from myproject import databases
from tests.fuzz import frames

SECRET = "a-secret-of-at-least-32-characters"
NOW_S = 1_800_000_000.0
ROUND = 200  # inputs between two looks at the clock
NESTED = "[" * 900 + "]" * 900  # orjson accepts it; Python's recursion limit is 1,000


class Target(NamedTuple):
    """`seeds`: valid inputs. `parse` gets a mutated one, and raises nothing but `refusals`."""

    parse: Callable[[str], object]
    seeds: Sequence[str]
    refusals: tuple[type[Exception], ...] = ()


def _token(claims: object) -> str:
    return jwt.encode(claims, SECRET, "HS256")  # type: ignore[arg-type]  # a mutated payload may be of any type


def _signed(payload: str) -> str:
    """A token with any payload and a valid signature."""
    return jwt.PyJWS().encode(payload.encode("utf-8", "replace"), SECRET, "HS256")


def _settings() -> dict[str, Target]:
    found = {}
    for setting in conf.settings:
        kind = type(setting.type).__name__
        seeds = [
            setting.example,
            str(setting.default),
            "1",
            "8080",
            "10.0.0.0/8, ::1",
            "https://a.example",
            "/rt",
            "[]",
        ]
        found.setdefault(f"setting {kind}", Target(setting.type.from_text, [*filter(None, seeds)], (Refused,)))
    return found


def _clean(given: str) -> None:
    cleaned = text.clean(given)
    cleaned.encode()  # no surrogates
    assert not any(unicodedata.category(one) == "Cc" for one in cleaned), f"{given!r} became {cleaned!r}"


def _message(given: str) -> None:
    message = messages.parse(given)
    if message.event == "pusher:subscribe":
        data = messages.data(message)
        recovery.position(data.get("resume"))
        recovery._rewind(data.get("rewind"))
    messages.channel(message)


class _Reference:
    """One request, as the HTTP parser of uvicorn reads it."""

    def __init__(self, data: bytes) -> None:
        self.target, self.body = b"", b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = 0
        self._parser = httptools.HttpRequestParser(self)
        with contextlib.suppress(httptools.HttpParserUpgrade):
            self._parser.feed_data(data)
        self.method: bytes = self._parser.get_method()

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.strip(b" \t")))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete += 1


def _http_head(given: str) -> None:
    """A request without the parser is the one that the parser would read."""
    data = _bytes(given)
    request = direct_http.parse(data, 1_000, 20)
    if request is not None:
        expected = _Reference(data)
        assert (expected.method, expected.complete) == (b"POST", 1)
        assert f"{request.path}?{request.query}".encode() == expected.target
        assert (list(request.headers), request.body) == (expected.headers, expected.body)


def _websocket_opening(given: str) -> None:
    """A WebSocket without the parser is opened by the request that the parser would read."""
    data = _bytes(given)
    request = opening.upgrade(data, line_bytes=500, head_bytes=1_000, headers=20)
    if request is not None:
        expected = _Reference(data)
        assert (expected.method, expected.complete) == (b"GET", 1)
        assert (request.target, request.headers) == (expected.target, expected.headers)
        request.path_with_query()
        protocols = [(b"sec-websocket-protocol", one) for one in request.tokens(b"sec-websocket-protocol")]
        lines = websocket_handshake.lines(protocols)
        websocket_handshake.switching(websocket_handshake.key(request), lines)


def _websocket_frames(given: str) -> None:
    """The reader gives the same messages for any sizes of the pieces."""
    data, half = _bytes(given), len(given) // 2
    assert _messages(data) == _messages(data[:half], data[half:])


def _messages(*pieces: bytes) -> list[object]:
    reader, found = websocket_frames.Reader(1_000), []
    try:
        for piece in pieces:
            reader.feed(piece)
            while (message := reader.take()) is not None:
                found.append(message)
                if message[0] == websocket_frames.CLOSE:
                    websocket_frames.read_close(message[1])
    except websocket_frames.ProtocolViolation as violation:
        found.append(violation.code)
    return found


def _bytes(given: str) -> bytes:
    """One byte for each character of Latin-1."""
    return given.encode("latin-1", "replace")


def _api_request(given: str) -> requests.Request:
    return requests.Request(APPLICATION, {}, {}, given.encode("utf-8", "surrogatepass"), None)


def _api_query(given: str) -> None:
    query = requests.parse_query(_bytes(given))
    assert len(query.sent) == len(query.decoded) == len(query.percent_decoded)


def _sse_query(given: str) -> None:
    scope = {"method": "GET", "headers": [(b"last-event-id", _bytes(given[:50]))], "query_string": _bytes(given)}
    sse_requests.asked(scope, sse_requests.head(scope), max_channel_name=200)


def _signature(given: str) -> None:
    """Of a request to the HTTP API, by both ways to verify it."""
    path, _, query = given.partition("?")
    authentication.verify_plain(APPLICATION, path, query, NOW_S)
    authentication.verify(APPLICATION, "POST", (path,), requests.parse_query(_bytes(query)), NOW_S)


def _path(given: str) -> None:
    """The path of a request, which decides which part of the server answers."""
    scope = {"path": given, "query_string": _bytes(given)}
    for method in ("GET", "POST"):
        claims.is_api(method, given), claims.is_sse(method, given)
        claims.is_health(method, given), claims.is_console(method, given)
    found = operations.find(given)
    urlconf.answers(given)
    urlconf.is_specific("^admin/", given)
    addresses.network(given)
    if found is not None and "token_id" in found[1]:
        parameters.token_id(found[1]["token_id"])
    assert given.endswith(sse_requests.key(scope))


def _history_pattern(given: str) -> None:
    """A valid pattern of a channel rule, and of the console, matches the names that a regular expression matches."""
    pattern, _, name = given[:60].partition("|")
    if channel_rules.pattern_fault(pattern) is None:
        found = channel_rules.Rules((channel_rules.Rule(pattern, 1, 1),)).of(name)
        simple = ".*".join(map(re.escape, re.sub(r"\*+", "*", pattern).split("*")))
        expected = re.fullmatch(simple, name, re.DOTALL) is not None
        assert (found is not None) == filters.matches(pattern, name) == expected


def _authorization_pattern(given: str) -> None:
    pattern, _, name = given.partition("|")
    rules.Pattern(pattern).match(name)


def _channel_name(given: str) -> None:
    names.check_publishable_channel(given, 164)
    assert given.isascii() and not set(given) & set("\n *:/?&")


def _webhook_url(given: str) -> None:
    """A literal address that is accepted is public, as the HTTP client reads it."""
    http_client._shown(given)
    webhook_endpoint.validate_url(given)
    _, host, _ = http_client._origin(given)
    address = addresses.parse(host)
    assert host and (address is None or addresses.is_public(address))
    _clean_lines(webhook_endpoint.masked(given))


def _webhook_filters(given: str) -> None:
    name, _, value = given.partition(":")
    webhook_endpoint.validate_channel_prefix(name)
    webhook_endpoint.validate_headers({name: value})
    assert not set(given) & set("\r\n")


def _console_request(given: str) -> None:
    """Its query, its body and the token of its page."""
    query, _, body = given.partition("|")
    access = permissions.Access("1", "ann", {}, NOW_S)
    request = console_requests.Request(None, access, live._query(_bytes(query)))
    request.number("limit", 1, most=100)
    tokens.read(query)
    event_creator._is_json(body)
    live._object(body.encode("utf-8", "surrogatepass"))


def _request_id(given: str) -> None:
    found = log_lines._request_id({"headers": [(log_lines.HEADER, _bytes(given))]})
    assert found.isascii() and found.isprintable() and " " not in found


def _redis_entries(given: str) -> None:
    """Any bytes behind an entry are read, or refused by one of the errors that damage has."""
    for entry in entries.read(entries.write(ENTRY) + _bytes(given)):
        if entry is not None:
            assert entries.sequence(entries.write(entry)) == entry.id


def _handshake(given: str) -> None:
    path, _, query = given.partition("?")
    handshake.accept(REGISTRY, path=path, query=_bytes(query), origin=given[-30:])


def _sign_in(given: str) -> None:
    signature = signatures.sign(SECRET, signatures.user_text("1.2", given))
    sign_in.authenticate(APPLICATION, "1.2", {"auth": f"key:{signature}", "user_data": given}, NOW_S)


def _diagnosis(given: str) -> None:
    """The doctor has an answer for any text, in JSON."""
    fields = dict(zip(("auth", "socket_id", "channel", "channel_data", "user_data"), given.split("|"), strict=False))
    for kind in doctor.KINDS:
        found = doctor.examine(kind, {**fields, "url": given}, APPLICATION, [APPLICATION], now=NOW_S)
        orjson.dumps(found.to_json())


def _plain_event(given: str, parse: Callable[[requests.Request], list[events.Event]], *, is_batch: bool) -> None:
    """What the short way reads of a body, the other way reads too."""
    request = _api_request(given)
    found = events.plain_publications(APPLICATION, request.body, is_batch=is_batch)
    if found is not None:
        assert found == events.publications_of(APPLICATION, parse(request))


def _parameters(given: str) -> None:
    """Those of the HTTP API's queries, streams and members, from JSON."""
    fields = _api_request(given).fields()
    queries._range(fields)
    parameters.info(fields.get("info"), parameters.COUNTS)
    parameters.flag("open", fields.get("open"))
    members.user_info(fields.get("user_info"), registry.Limits())
    streams._append(APPLICATION, "private-chat", "a", fields)


def _filter(given: str) -> None:
    fields = dict(zip(("channel", "event", "socket", "types", "app"), given.split("&"), strict=False))
    found = filters.parse(fields, None)
    assert filters.Filter.from_json(json.loads(json.dumps(found.to_json()))) == found


APPLICATION = registry.Application("1", "key", SECRET)
REGISTRY = registry.Registry()
REGISTRY.put(APPLICATION)
ENTRY = interface.Entry(7, interface.Kind.EVENT, "1", "a", 3, "7", "1.2", b'{"event":"a"}', 1_800_000_000_000)
POSITION = "aZ3kP0Qx:57"
SUBSCRIBE = (
    '{"event":"pusher:subscribe","data":{"channel":"kept-1","resume":{"epoch":"a","offset":5},"rewind":{"count":5}}}'
)

WEBSOCKET = (
    "Upgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Protocol: a, b\r\n"
)
QUERY = "auth_key=key&auth_timestamp=1800000000&auth_version=1.0"

TARGETS: dict[str, Target] = {
    "position": Target(interface.Position.parse, [POSITION], (ValueError,)),
    "cursor": Target(lambda given: cursors.parse(given, 2), [f"1.{POSITION}.-"], (sse_refusals.InvalidCursor,)),
    "token": Target(
        lambda given: capabilities.verify(given, (SECRET,), NOW_S),
        [_token({"channels": ["a"], "exp": NOW_S + 60, "sub": "1"})],
        (protocol_refusals.InvalidToken,),
    ),
    "claims of a signed token": Target(
        lambda given: capabilities.verify(_signed(given), (SECRET,), NOW_S),
        [
            json.dumps({"channels": ["a", "b-*"], "exp": NOW_S + 60, "iat": NOW_S, "sub": "1"}),
            json.dumps(
                {"channels": ["a"], "exp": NOW_S + 60, "rights": ["subscribe"], "nbf": 1, "jti": "a", "info": {}}
            ),
        ],
        (protocol_refusals.InvalidToken,),
    ),
    "frame": Target(
        _message,
        [
            SUBSCRIBE,
            '{"event":"client-a","channel":"b","data":"{}"}',
            *(SUBSCRIBE.replace(part, NESTED) for part in ('"kept-1"', '"a"', '{"count":5}', '"pusher:subscribe"')),
        ],
        (protocol_refusals.PusherError,),
    ),
    "X-Forwarded-For": Target(proxies.Trusted(["127.0.0.1", "10.0.0.0/8"]).client, ["1.2.3.4, 10.0.0.1, [::1]:80"]),
    "address": Target(
        lambda given: (address := addresses.parse(given)) is None or addresses.is_public(address),
        ["10.0.0.1", "::ffff:10.0.0.1", "[2001:db8::1]:443", "fe80::1%eth0"],
    ),
    "HTTP request": Target(
        _http_head,
        ["POST /apps/1/events?a=b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\n{}"],
    ),
    "WebSocket frames": Target(
        _websocket_frames,
        [
            "\x81\x82abcd\x1a\x1f\x88\x82abcd\x62\x8a",
            "\x01\x81abcd\x00\x80\x81abcd\x00\x89\x80abcd",
            "\x82\xfe\x00\x80abcd" + "x" * 128,
        ],
    ),
    "WebSocket opening": Target(
        _websocket_opening,
        [
            f"GET /app/key?protocol=7 HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\n{WEBSOCKET}\r\n",
        ],
        (websocket_handshake.HandshakeRefused, websocket_handshake.HeaderInvalid),
    ),
    "X-Request-ID": Target(_request_id, ["0f3a-4b", "a.b:c/d+e=f"]),
    "handshake": Target(
        _handshake,
        ["/app/key?protocol=7&client=js&version=8.6.0https://a.example", "/rt/app/key?rt=1&flash=false"],
        (protocol_refusals.ConnectionRefused, protocol_refusals.ApplicationSuspended),
    ),
    "origin": Target(
        lambda given: (origins.parse(given), origins.faults(given), origins.matches(["*.a.example:*"], given)),
        ["https://a.example:8080, *.b.example", "http://[2001:db8::1]:80", "https://b\u00fccher.example"],
    ),
    "channel_data": Target(
        lambda given: authorization.parse_member(given, registry.Limits()),
        ['{"user_id":"7","user_info":{"name":"Ann"}}', '{"user_id":12345678901234567890}'],
        (protocol_refusals.PusherError,),
    ),
    "user_data of a sign-in": Target(
        _sign_in,
        ['{"id":"7","user_info":{"name":"Ann"},"watchlist":["8",9]}', f'{{"id":"7","user_info":{NESTED}}}'],
        (protocol_refusals.PusherError,),
    ),
    "auth doctor": Target(
        _diagnosis,
        [
            f'key:{"a" * 64}|1.2|presence-a|{{"user_id":"7"}}|{{"id":"7"}}',
            "https://[2001:db8::1]/apps/1/events?auth_key=key&auth_timestamp=1800000000&auth_version=1.0&body_md5=a",
            f"key:a|1.2|presence-a|{NESTED}|{NESTED}",
        ],
    ),
    "signature of the HTTP API": Target(
        _signature,
        [
            f"/apps/1/events?{QUERY}&body_md5=a&auth_signature={'a' * 64}",
            f"/apps/1/%65vents?auth_signature={'A' * 64}&{QUERY}&info[0]=a&info[]=b+%2b",
        ],
        (refusals.ApiError,),
    ),
    "query of the HTTP API": Target(_api_query, ["auth_key=a&Info=b%2Bc+d&info[]=e&info[0]=f"], (refusals.ApiError,)),
    "event of the HTTP API": Target(
        lambda given: events.event_of(_api_request(given)),
        ['{"name":"a","channels":["b","private-c"],"data":"{}","socket_id":"1.2","info":"user_count"}'],
        (refusals.ApiError,),
    ),
    "batch of the HTTP API": Target(
        lambda given: events.events_of_batch(_api_request(given)),
        ['{"batch":[{"name":"a","channel":"b","data":"{}"},{"name":"c","channel":"d","data":{"e":1}}]}'],
        (refusals.ApiError,),
    ),
    "plain event of the HTTP API": Target(
        lambda given: _plain_event(given, events.event_of, is_batch=False),
        ['{"name":"a","channel":"b","data":"{}"}', '{"name":"a","channels":["b"],"data":"\u00fc"}'],
    ),
    "plain batch of the HTTP API": Target(
        lambda given: _plain_event(given, events.events_of_batch, is_batch=True),
        ['{"batch":[{"name":"a","channel":"b","data":"{}"},{"name":"c","channel":"private-d","data":"e"}]}'],
    ),
    "parameters of the HTTP API": Target(
        _parameters,
        [
            '{"limit":50,"after":"aZ3kP0Qx:57","direction":"forwards","open":1,"info":"user_count","user_info":{"a":1}}',
            '{"seq":4,"after":3,"text":" words","state":"done","at":0,"error":"a"}',
            f'{{"limit":{NESTED}}}',
            f'{{"before":{NESTED}}}',
        ],
        (refusals.ApiError,),
    ),
    "query of an SSE connection": Target(
        _sse_query,
        ["channels=a,b&token=c&last_event_id=1.-&rewind=5", "channel=a%2Cb&channel=c"],
        (sse_refusals.SseError,),
    ),
    "channel name": Target(
        _channel_name,
        ["presence-room_1=@,.;", "#server-to-user-7", "private-encrypted-cache-a"],
        (protocol_refusals.InvalidName, protocol_refusals.NameTooLong),
    ),
    "pattern of a channel rule": Target(_history_pattern, ["kept-*|kept-a", "#*a*b|#cab", "a**.b*|a.b", "*|a"]),
    "pattern of an authorization rule": Target(
        _authorization_pattern,
        ["private-order-{id:int}|private-order-7", "presence-{a}-{b:slug}|presence-a-b-c", "private-<int:id>*|a"],
        (errors.InvalidPattern,),
    ),
    "path of a request": Target(
        _path,
        ["/apps/1/channels/presence-a/users/7/update", "/apps/1/capabilities/a.b:c/revoke", "/sse/key", "/admin/"],
        (refusals.ApiError, sse_refusals.SseError),
    ),
    "idempotency key": Target(publications.check_idempotency_key, ["order-7"], (publications.NotPublishable,)),
    "channels of a capability": Target(
        integration_tokens.check_pattern, ["private-orders-*", "presence-a.b;c"], (errors.InvalidName,)
    ),
    "message of the channel layer": Target(
        lambda given: layer_messages.unpacked(_bytes(given)),
        [layer_messages.Message(layer_messages.Verb.SEND, "a", "b", 1.0, b"c").packed().decode("latin-1")],
        (ValueError,),
    ),
    "FANFARE_TRUSTED_PROXIES": Target(
        lambda given: proxies.Trusted(given.split(",")), ["10.0.0.0/8,::1,unix"], (ImproperlyConfigured,)
    ),
    "FANFARE_ASGI_MOUNTS": Target(
        lambda given: mounts.Mounts({given: print}), ["/shop", "/a.b/c~d/"], (ImproperlyConfigured,)
    ),
    "--history of a command": Target(
        lambda given: rule_flags.read({"history": [given], "rewind": [given], "replay": []}),
        ["kept-*=100,60", "a=b,c=1, 2"],
        (CommandError,),
    ),
    "URL of a webhook": Target(
        _webhook_url,
        [
            "https://hooks.example:8443/a?token=b&c",
            "http://[2606:4700::1111]/a",
            "http://93.184.216.34/",
            "http://127.1",
        ],
        (ValidationError,),
    ),
    "channel prefix and header of a webhook": Target(
        _webhook_filters, ["presence-:a value", "X-Key:b"], (ValidationError,)
    ),
    "request of the console": Target(
        _console_request,
        ["app=1&limit=20&a=%20|{}", f'limit=9{"&a=1" * 49}|{{"app":"1"}}'],
        (console_requests.Problem,),
    ),
    "entries in Redis": Target(
        _redis_entries,
        [entries.write(ENTRY).decode("latin-1"), "\x02" + entries.write(ENTRY).decode("latin-1")[1:], "\0" * 40],
        (ValueError, TypeError, struct.error),
    ),
    "filter of the console": Target(_filter, ["orders-*&created&1.2&publish", "a&b"], (filters.InvalidFilter,)),
    "position of a trace": Target(traces.parse, ["0:4711"], (ValueError,)),
    "FANFARE_APPS": Target(
        declarations.parse,
        [
            "1:key:secret:Shop, 2:key2:secret2",
            '[{"id":"1","key":"k","secret":"s","webhooks":["https://a.example"],"rules":[{"pattern":"a-*"}]}]',
        ],
        (application_errors.DeclarationError,),
    ),
    "URL of Redis": Target(
        redis_address.parse,
        ["redis://u:p@[::1]:6379/0?prefix=a", "redis+sentinel://a:1,b:2/m?db=1", "unix:///run/redis.sock"],
        (engine_errors.EngineMisconfigured,),
    ),
    "DATABASE_URL": Target(
        lambda given: databases.parse(given, default=Path("a"), base=Path("/")),
        ["postgres://u:p@[::1]:5432/d?sslmode=require&pool_max_size=10", "sqlite:///a.sqlite3?timeout=5"],
        (ImproperlyConfigured,),
    ),
    "URL of PostgreSQL": Target(
        database.parse,
        ["postgres://u:p@[::1]:5432/d?schema=fanfare&sslmode=require"],
        (engine_errors.EngineMisconfigured,),
    ),
    "text from outside": Target(_clean, ["a\nb\x1b[31m \u202e\ud800 Ünï"]),
    **_settings(),
}


def run(target: Target, seconds: float, chance: random.Random) -> int:
    """Feed the target for so long; answers how many inputs. Raises AssertionError with the input at fault."""
    loop = asyncio.new_event_loop()
    end, count = loop.time() + seconds, 0
    while count == 0 or loop.time() < end:
        for _ in range(ROUND):
            _feed(target, _mutated(chance.choice(target.seeds), chance))
        count += ROUND
    loop.close()
    return count


def _mutated(seed: str, chance: random.Random) -> str:
    if chance.random() < 0.02:
        return base64.b64encode(chance.randbytes(chance.randrange(60))).decode()
    for _ in range(chance.choice((1, 1, 2, 4))):
        seed = frames.changed(seed, chance)
    return seed


def _feed(target: Target, given: str) -> None:
    try:
        target.parse(given)
    except target.refusals:
        pass
    except Exception as error:
        raise AssertionError(f"{given!r} raises {error!r}") from error


# -- the answers of a webhook's receiver -------------------------------------------------------------------------------

RESPONSE = (
    "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:{port}/next?a=b\r\nContent-Length: 5\r\n"
    "Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\nhello"
)


async def webhook_answers(seconds: float, chance: random.Random) -> int:
    """Post to a receiver that sends mutated responses. Raises AssertionError if a call raises, or gives no outcome that
    can be stored."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            response = _mutated(RESPONSE.replace("{port}", str(port)), chance).encode("utf-8", "surrogatepass")
            if chance.random() < 0.3:
                begin = chance.randrange(len(response) + 1)
                response = response[:begin] + chance.randbytes(chance.randrange(6)) + response[begin:]
            writer.write(response)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    webhook = registry.Webhook(1, f"http://127.0.0.1:{port}/")
    loop = asyncio.get_running_loop()
    end, count = loop.time() + seconds, 0
    async with server, http_client.HttpClient(timeout_seconds=0.2, allow_private=True) as client:
        while count == 0 or loop.time() < end:
            calls: list[Awaitable[Any]] = [client.post(APPLICATION, webhook, ['{"name":"a"}']) for _ in range(16)]
            for outcome in await asyncio.gather(*calls):
                _clean_lines(outcome.error)
                _clean_lines(outcome.answer)
            count += len(calls)
    return count


def _clean_lines(stored: str) -> None:
    stored.encode()
    assert not any(unicodedata.category(one) == "Cc" for one in stored if one not in "\t\n"), f"it has {stored!r}"
