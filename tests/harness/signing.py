"""Client and backend signatures, written from the protocol's specification and without the server's code."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from tests.harness.deployments import Application


def hexadecimal(secret: str, text: str) -> str:
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def subscription(application: Application, socket_id: str, channel: str, channel_data: str | None = None) -> str:
    """The `auth` field of a subscribe."""
    text = f"{socket_id}:{channel}" if channel_data is None else f"{socket_id}:{channel}:{channel_data}"
    return f"{application.key}:{hexadecimal(application.secret, text)}"


def path(
    application: Application,
    method: str,
    route: str,
    body: bytes = b"",
    query: Mapping[str, str] | None = None,
    **overrides: str,
) -> str:
    """`route` with a signed query. `overrides` replace parameters before signing (auth_timestamp, body_md5, auth_key);
    `auth_signature` replaces the signature itself.
    """
    forged = overrides.pop("auth_signature", None)
    parameters = {
        **(query or {}),
        "auth_key": application.key,
        "auth_timestamp": str(int(time.time())),
        "auth_version": "1.0",
        "body_md5": hashlib.md5(body, usedforsecurity=False).hexdigest(),
        **overrides,
    }
    joined = "&".join(f"{name.lower()}={value}" for name, value in sorted(parameters.items()))
    signature = hexadecimal(application.secret, f"{method}\n{route}\n{joined}")
    return f"{route}?{urlencode({**parameters, 'auth_signature': forged or signature})}"


def capability_token(application: Application, claims: dict[str, Any]) -> str:
    """A JSON Web Token (RFC 7519, HS256) with these claims."""

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    signed = ".".join(part(json.dumps(one).encode()) for one in ({"alg": "HS256", "typ": "JWT"}, claims))
    return f"{signed}.{part(hmac.digest(application.secret.encode(), signed.encode(), 'sha256'))}"
