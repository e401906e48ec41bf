"""The frames of a hostile client: every message of the protocol, correctly signed and then mutated."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from tests.harness import deployments, signing, wire

KEPT = "kept-*"  # channels that keep a history
ROOMS = 12  # channels of each kind: so few that attackers share them
USERS = 8
UNTOUCHED = 0.2  # fraction of valid frames, so that connections reach states in which mutated ones matter

# One in FATAL frames ends its connection: an invalid WebSocket frame, or a disconnect without a close.
FATAL = 400

# Values on which parsers and checks fail. Some are not JSON.
ODD_VALUES = (
    "null", "true", "0", "-0", "-1", "1e309", "1e-400", "9007199254740993", "18446744073709551616", "NaN", "Infinity",
    '""', '" "', '"\\u0000"', '"\\ud800"', '"\\udfff\\ud800"', '"\u202e"', '"../../etc/passwd"', "[]", "{}", "[[[]]]",
    '{"a":1,"a":2}', '"' + "x" * 300 + '"', '"' + "日" * 300 + '"', "[" * 300 + "]" * 300,
    '{"a":' * 200 + "1" + "}" * 200,
    '"#server-to-user-1"', '"presence-"', '"private-encrypted-cache-"', '"pusher:subscribe"', '"0.0"', '"a:b:c"',
)  # fmt: skip
ODD_CHARACTERS = '{}[]",:\\\x00\x1f\x7f\u0085\u2028\ufeff\ud7ff\ufffd\U0001d5180-+eE.# \t\r\n'

Template = Callable[[], dict[str, Any]]


class Forge:
    """Makes the frames of one connection, determined by `chance` and the socket id alone."""

    def __init__(self, chance: random.Random, application: deployments.Application, socket_id: str) -> None:
        self._chance = chance
        self._application = application
        self._socket_id = socket_id
        self._templates: tuple[Template, ...] = (
            self._subscribe,
            self._subscribe,
            self._unsubscribe,
            self._client_event,
            self._client_event,
            self._sign_in,
            self._history,
            self._pong,
        )

    def text(self) -> str:
        """A frame as text, usually mutated."""
        chance = self._chance
        frame = chance.choice(self._templates)()
        if chance.random() < UNTOUCHED:
            return json.dumps(frame)
        if chance.random() < 0.5:
            self._change_value(frame)
        text = json.dumps(frame, ensure_ascii=chance.random() < 0.5)
        for _ in range(chance.choice((0, 1, 1, 2, 4))):
            text = self._change_text(text)
        return text

    def message(self) -> bytes:
        """A WebSocket frame after which the connection must still work."""
        if self._chance.random() < 0.01:
            return encode(self._chance.randbytes(self._chance.randrange(200)), wire.BINARY)
        return encode(self.text().encode("utf-8", "replace"))

    def last_message(self) -> bytes:
        """Bytes that usually end the connection."""
        chance = self._chance
        payload = self.text().encode("utf-8", "replace")
        broken: tuple[Callable[[], bytes], ...] = (
            lambda: encode(payload + chance.choice((b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf8"))),  # invalid UTF-8
            lambda: encode(payload, chance.choice((3, 4, 7, 11, 15))),  # reserved opcodes
            lambda: wire.encode(wire.WireFrame(wire.TEXT, payload, reserved=chance.randrange(1, 8))),
            lambda: wire.encode(wire.WireFrame(wire.TEXT, payload), masked=False),
            lambda: encode(payload, wire.CONTINUATION),
            lambda: wire.encode(wire.WireFrame(wire.TEXT, payload, fin=False)) + encode(payload),
            lambda: wire.encode(wire.WireFrame(wire.PING, payload[:100], fin=False)),
            lambda: encode(payload.ljust(126), wire.PING),
            lambda: encode(chance.randbytes(chance.randrange(4)), wire.CLOSE),
            lambda: encode(chance.randrange(0x10000).to_bytes(2, "big") + payload[:50], wire.CLOSE),
            lambda: encode(payload)[: chance.randrange(1, 20)],  # an incomplete frame
            lambda: chance.randbytes(chance.randrange(1, 300)),
            lambda: b"",
        )
        return chance.choice(broken)()

    # -- valid messages ----------------------------------------------------------------------------------------------

    def _channel(self) -> str:
        kinds = (
            "",
            "private-",
            "presence-",
            "private-encrypted-",
            "cache-",
            "private-cache-",
            "presence-cache-",
            "kept-",
        )
        return f"{self._chance.choice(kinds)}room-{self._chance.randrange(ROOMS)}"

    def _subscribe(self) -> dict[str, Any]:
        channel = self._channel()
        data: dict[str, Any] = {"channel": channel, "auth": ""}
        channel_data = None
        if channel.startswith("presence-") and self._chance.random() < 0.8:
            member = {"user_id": self._chance.randrange(USERS), "user_info": {"name": "n" * self._chance.randrange(20)}}
            channel_data = data["channel_data"] = json.dumps(member)
        if channel.startswith(("private-", "presence-")):
            data["auth"] = signing.subscription(self._application, self._socket_id, channel, channel_data)
        if channel.startswith("kept-"):
            position = {"epoch": "abc", "offset": self._chance.randrange(5), "socket_id": self._socket_id}
            data[self._chance.choice(("resume", "rewind", "none"))] = position
        return {"event": "pusher:subscribe", "data": data}

    def _unsubscribe(self) -> dict[str, Any]:
        return {"event": "pusher:unsubscribe", "data": {"channel": self._channel()}}

    def _client_event(self) -> dict[str, Any]:
        return {"event": "client-move", "channel": self._channel(), "data": {"x": self._chance.random()}}

    def _sign_in(self) -> dict[str, Any]:
        watchlist = [str(self._chance.randrange(USERS)) for _ in range(3)]
        user_data = json.dumps({"id": str(self._chance.randrange(USERS)), "watchlist": watchlist})
        signature = signing.hexadecimal(self._application.secret, f"{self._socket_id}::user::{user_data}")
        data = {"auth": f"{self._application.key}:{signature}", "user_data": user_data}
        return {"event": "pusher:signin", "data": data}

    def _history(self) -> dict[str, Any]:
        channel = f"kept-room-{self._chance.randrange(ROOMS)}"
        return {"event": "pusher:history", "data": {"channel": channel, "limit": self._chance.randrange(200)}}

    def _pong(self) -> dict[str, Any]:
        return {"event": "pusher:pong", "data": {}}

    # -- mutations ---------------------------------------------------------------------------------------------------

    def _change_value(self, frame: dict[str, Any]) -> None:
        """Replace, remove or add a value in the frame."""
        chance = self._chance
        place = frame
        if isinstance(frame.get("data"), dict) and chance.random() < 0.7:
            place = frame["data"]
        key = chance.choice(list(place) or ["data"])
        mutation = chance.randrange(4)
        if mutation == 0:
            place.pop(key, None)
        elif mutation == 1:
            place[chance.choice(("event", "channel", "data", "auth", "user_id", "resume", "rewind", key))] = frame[
                "event"
            ]
        elif mutation == 2 and isinstance(place.get(key), str):
            place[key] = self._change_text(place[key])
        else:
            place[key] = chance.choice((None, True, -1, 2**70, 1.5, "", [], {}, [[]], {"": ""}, "\u0000", "x" * 500))

    def _change_text(self, text: str) -> str:
        return changed(text, self._chance)


def changed(text: str, chance: random.Random) -> str:
    """The text with one random change."""
    begin = chance.randrange(len(text) + 1)
    end = min(len(text), begin + chance.randrange(8))
    mutation = chance.randrange(6)
    if mutation == 0:
        return text[:begin] + text[end:]
    if mutation == 1:
        return text[:begin] + chance.choice(ODD_CHARACTERS) + text[end:]
    if mutation == 2:
        return text[:begin] + chance.choice(ODD_VALUES) + text[end:]
    if mutation == 3:
        return text[:begin]
    if mutation == 4:
        return text[:end] + text[begin:]
    return text[:begin] + chr(chance.randrange(0xD800)) + text[begin:]


def encode(payload: bytes, opcode: int = wire.TEXT) -> bytes:
    """One complete frame, masked with zeros, so that the payload stays unchanged."""
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 65_536:
        head = bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0xFF)) + size.to_bytes(8, "big")
    return head + bytes(4) + payload
