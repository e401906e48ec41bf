"""Mutated texts for each parser of text from outside: it returns a value, or raises the error that it documents."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import jwt

from fanfare import conf
from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.protocol import capabilities, messages, recovery
from fanfare.protocol import refusals as protocol_refusals
from fanfare.runtime import addresses, text
from fanfare.server import proxies
from fanfare.setting_types import Refused
from fanfare.sse import cursors
from fanfare.sse import refusals as sse_refusals
from fanfare.webhooks import http_client
from tests.fuzz import frames

SECRET = "a-secret-of-at-least-32-characters"
NOW_S = 1_800_000_000.0
ROUND = 200  # inputs between two looks at the clock


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


POSITION = "aZ3kP0Qx:57"
SUBSCRIBE = (
    '{"event":"pusher:subscribe","data":{"channel":"kept-1","resume":{"epoch":"a","offset":5},"rewind":{"count":5}}}'
)

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
        _message, [SUBSCRIBE, '{"event":"client-a","channel":"b","data":"{}"}'], (protocol_refusals.PusherError,)
    ),
    "X-Forwarded-For": Target(proxies.Trusted(["127.0.0.1", "10.0.0.0/8"]).client, ["1.2.3.4, 10.0.0.1, [::1]:80"]),
    "address": Target(
        lambda given: (address := addresses.parse(given)) is None or addresses.is_public(address),
        ["10.0.0.1", "::ffff:10.0.0.1", "[2001:db8::1]:443", "fe80::1%eth0"],
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
APPLICATION = registry.Application("1", "key", SECRET)


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
