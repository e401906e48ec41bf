"""The auth doctor: why a signature is refused, in words.

It says what the server signs and compares the proof with the usual mistakes: another application's key or secret, the
previous secret, text that was encoded again after it was signed, a wrong clock. No secret and no valid signature is in
its answers.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from fanfare.api import authentication, requests
from fanfare.api import refusals as api_refusals
from fanfare.applications import registry
from fanfare.engine import interface
from fanfare.protocol import authorization, names, refusals, sign_in, signatures

SUBSCRIPTION, SIGN_IN, API = "subscription", "sign-in", "API request"
KINDS: Final = (SUBSCRIPTION, SIGN_IN, API)

_HEX: Final = re.compile(r"[0-9a-f]{64}")
SHOWN: Final = 500  # characters of what was signed


class Proof(NamedTuple):
    """What a client sends. `data`: channel_data or user_data."""

    kind: str
    socket_id: str
    channel: str
    auth: str
    data: str | None


class Diagnosis:
    """`verdict`: one sentence. `findings`: what was checked, in order, with `ok` True, False or None for a hint.
    `signed`: the text that the signature must be of."""

    def __init__(self) -> None:
        self.verdict = ""
        self.findings: list[dict[str, Any]] = []
        self.signed = ""

    def say(self, ok: bool | None, text: str) -> None:
        self.findings.append({"ok": ok, "text": text})

    def to_json(self) -> dict[str, Any]:
        ok = not any(finding["ok"] is False for finding in self.findings)
        return {"ok": ok, "verdict": self.verdict, "findings": self.findings, "signed": self.signed}


def examine(
    kind: str,
    fields: Mapping[str, str],
    application: registry.Application,
    others: Iterable[registry.Application] = (),
    *,
    now: float | None = None,
) -> Diagnosis:
    """`fields`: `socket_id`, `channel`, `auth`, `channel_data`, `user_data`; for an API request `method` and `url`.
    `others`: further applications that the person may see, whose keys and secrets may have been used by mistake."""
    now = time.time() if now is None else now
    found = Diagnosis()
    if not application.enabled:
        found.say(False, f"The application {application.id} is disabled: its clients and requests are refused.")
    if kind == API:
        _api(found, fields, application, others, now)
    else:
        data = fields.get("user_data" if kind == SIGN_IN else "channel_data") or None
        proof = Proof(kind, fields.get("socket_id", ""), fields.get("channel", ""), fields.get("auth", ""), data)
        _proof(found, proof, application, others, now)
    return found


# -- subscriptions and sign-ins ----------------------------------------------------------------------------------------


def _proof(
    found: Diagnosis,
    proof: Proof,
    application: registry.Application,
    others: Iterable[registry.Application],
    now: float,
) -> None:
    kind, socket_id, channel, _, data = proof
    if names.is_valid_socket_id(socket_id):
        found.say(True, f"{socket_id} has the form of a socket id.")
    else:
        found.say(
            False, f"{socket_id[:40]!r} is not a socket id; the client reads its own from connection_established."
        )
    if kind == SIGN_IN:
        found.signed = signatures.user_text(socket_id, data or "")[:SHOWN]
        if data is None:
            found.say(False, "A sign-in needs user_data, the JSON text that the backend signed.")
    else:
        if names.is_presence(channel) and data is None:
            found.say(None, "A presence channel usually has channel_data, the JSON text with the member's user_id.")
        found.signed = signatures.subscription_text(socket_id, channel, data)[:SHOWN]
    _signature(found, proof, application, others, now)
    _server(found, proof, application, now)


def _signature(
    found: Diagnosis,
    proof: Proof,
    application: registry.Application,
    others: Iterable[registry.Application],
    now: float,
) -> None:
    key, colon, signature = proof.auth.partition(":")
    if not colon:
        found.say(False, "The auth string has no colon: it is KEY:SIGNATURE.")
        return
    _key(found, key, application, others)
    if not _HEX.fullmatch(signature):
        form = (
            "it is in upper case" if _HEX.fullmatch(signature.lower()) else f"this one has {len(signature)} characters"
        )
        found.say(False, f"A signature is 64 lower-case hexadecimal digits; {form}.")
    found.say(*_explained(proof, signature, application, others, now))


def _explained(
    proof: Proof,
    signature: str,
    application: registry.Application,
    others: Iterable[registry.Application],
    now: float,
) -> tuple[bool, str]:
    """Whether the signature is right, and whose or what it is of otherwise."""
    kind, socket_id, channel, _, data = proof
    texts = _texts(kind, socket_id, channel, data)
    (_, right), *wrong = texts
    if signatures.matches(application.secret, right, signature):
        return True, "The signature is right, made with the current secret."
    if application.previous_secret and signatures.matches(application.previous_secret, right, signature):
        is_valid = len(application.secrets(now)) > 1
        rest = "which is still valid" if is_valid else "whose time is over"
        return is_valid, f"The signature was made with the previous secret, {rest}. Change the secret of the backend."
    for mistake, text in wrong:
        if any(signatures.matches(secret, text, signature) for secret in application.secrets(now)):
            is_accepted = kind == SUBSCRIPTION and text == f"{socket_id}:{channel}" and not names.is_presence(channel)
            return is_accepted, f"The secret is right, and the signature is of another text: {mistake}."
    for other in others:
        secrets = other.secrets(now) if other.id != application.id else ()
        if any(signatures.matches(secret, text, signature) for secret in secrets for _, text in texts):
            return False, f"The signature was made with the secret of another application, {other.name or other.id}."
    if signatures.matches(application.key, right, signature):
        return False, "The signature was made with the key in place of the secret."
    return False, (
        "The signature is not of this text with this application's secret. Either the secret of the backend is another "
        "one, or the backend signed another text: compare it with the one below, character by character."
    )


def _key(found: Diagnosis, key: str, application: registry.Application, others: Iterable[registry.Application]) -> None:
    if key == application.key:
        found.say(True, "The key is this application's.")
        return
    owner = next((other for other in others if other.key == key and other.id != application.id), None)
    if owner is not None:
        found.say(False, f"The key belongs to another application, {owner.name or owner.id}.")
    elif key == application.id:
        found.say(False, "The auth string begins with the application's id; it must begin with its key.")
    else:
        found.say(False, f"{key[:60]!r} is not the key of this application.")


def _texts(kind: str, socket_id: str, channel: str, data: str | None) -> list[tuple[str, str]]:
    """The text to sign, and after it those of usual mistakes."""
    if kind == SIGN_IN:
        right = signatures.user_text(socket_id, data or "")
        return [("", right), ("user_data alone was signed", data or ""), *_encodings(f"{socket_id}::user::", data)]
    found = [("", signatures.subscription_text(socket_id, channel, data))]
    found.append(("channel_data was left out", f"{socket_id}:{channel}"))
    found.append(("the channel was left out", socket_id))
    found.append(("the socket id was left out", channel))
    found.append(("the channel's name was escaped for a URL", f"{socket_id}:{quote(channel, safe='')}"))
    found.append(("the parts are in the wrong order", f"{channel}:{socket_id}"))
    return [*found, *_encodings(f"{socket_id}:{channel}:", data)]


def _encodings(before: str, data: str | None) -> list[tuple[str, str]]:
    """The same JSON in other forms: the backend signed one, and sent another."""
    if data is None:
        return []
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return []
    again = "the JSON was encoded again after it was signed"
    forms = [
        json.dumps(value, separators=(",", ":"), ensure_ascii=escaped, sort_keys=ordered)
        for escaped in (True, False)
        for ordered in (True, False)
    ]
    forms += [json.dumps(value, ensure_ascii=escaped) for escaped in (True, False)]
    forms.append(forms[1].replace("/", "\\/"))  # as PHP writes it
    return [(again, before + form) for form in forms if form != data]


def _server(found: Diagnosis, proof: Proof, application: registry.Application, now: float) -> None:
    """What the server itself answers."""
    kind, socket_id, channel, auth, data = proof
    try:
        if kind == SIGN_IN:
            sign_in.authenticate(application, socket_id, {"auth": auth, "user_data": data}, now)
        else:
            signed_in = interface.Member("…", "null") if names.is_presence(channel) and data is None else None
            given = {"auth": auth} if data is None else {"auth": auth, "channel_data": data}
            authorization.authorize(application, socket_id, channel, given, user=signed_in, now=now)
            if names.type_of(channel) is names.Type.PUBLIC:
                found.say(None, f"{channel} is a public channel: it needs no signature, and none is read.")
    except refusals.PusherError as error:
        found.say(False, f"The server answers: {error.message}")
        found.verdict = "The server refuses it."
    else:
        found.verdict = "The server accepts it, from the connection with this socket id."


# -- requests of the HTTP API ------------------------------------------------------------------------------------------


def _api(
    found: Diagnosis,
    fields: Mapping[str, str],
    application: registry.Application,
    others: Iterable[registry.Application],
    now: float,
) -> None:
    method = (fields.get("method") or "POST").upper()
    try:
        parts = urlsplit(fields.get("url", ""))
        query = requests.parse_query(parts.query.encode())
    except (ValueError, api_refusals.ApiError) as error:
        found.say(False, f"This is not a URL: {error}." if isinstance(error, ValueError) else str(error))
        found.verdict = "The server refuses it."
        return
    given = query.authentication()
    _key(found, given.get("auth_key", ""), application, others)
    _clock(found, given.get("auth_timestamp", ""), now)
    timestamp = given.get("auth_timestamp", "")
    at = float(timestamp) if timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 12 else now
    found.signed = "\n".join(
        [
            method,
            unquote(parts.path),
            "&".join(f"{name}={value}" for name, value in sorted(query.decoded) if name != "auth_signature"),
        ]
    )[:SHOWN]
    try:
        authentication.verify(application, method, (parts.path,), query, at)
    except api_refusals.ApiError as error:
        found.say(False, str(error))
        for other in others:
            swapped = dataclasses.replace(application, secret=other.secret, previous_secret="")
            if other.id != application.id and _verifies(swapped, method, parts.path, query, at):
                found.say(False, f"The secret is that of another application, {other.name or other.id}.")
        found.verdict = "The server refuses it."
    else:
        found.say(True, "The signature is right.")
        late = abs(at - now) > authentication.TIMESTAMP_SECONDS
        found.verdict = "The server refuses it now because of its time." if late else "The server accepts it."


def _verifies(application: registry.Application, method: str, path: str, query: requests.Query, at: float) -> bool:
    try:
        authentication.verify(application, method, (path,), query, at)
    except api_refusals.ApiError:
        return False
    return True


def _duration(seconds: float) -> str:
    if seconds < 7_200:
        return f"{seconds:,.0f} s"
    return f"{seconds / 3_600:,.0f} h" if seconds < 172_800 else f"{seconds / 86_400:,.0f} days"


def _clock(found: Diagnosis, timestamp: str, now: float) -> None:
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 15):
        found.say(False, "The auth_timestamp is not a number of seconds since 1970.")
        return
    if len(timestamp) == 13:
        found.say(False, "The auth_timestamp is in milliseconds; it must be in seconds.")
        return
    skew = int(timestamp) - now
    words = f"{_duration(abs(skew))} {'ahead of' if skew > 0 else 'behind'} the clock of this server"
    if abs(skew) > authentication.TIMESTAMP_SECONDS:
        found.say(
            False,
            f"The request's time is {words}; {authentication.TIMESTAMP_SECONDS} s are allowed. Either the backend's "
            "clock is wrong, or the request is old.",
        )
    else:
        found.say(True, f"The request's time is {words}.")
