"""The formats of an application's id, key (public) and secret, and their generation."""

from __future__ import annotations

import re
import secrets

# At most 15 digits and no leading zero: some SDKs parse the id as a number, and a double is exact up to 2**53.
ID = re.compile(r"\A[1-9][0-9]{0,14}\Z")
# The key is a path segment and comes before the colon of an auth string, so it has neither "/" nor ":".
KEY = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
# Printable ASCII without a space: safe in a header, a shell command and an environment variable.
SECRET = re.compile(r"\A[!-~]{1,128}\Z")

_ID_DIGITS = 9  # below 2**31, for SDKs with 32-bit integers; 900 million values, so ids cannot be enumerated
_TOKEN_BYTES = 10  # 20 hexadecimal characters, as Pusher's; 80 bits cannot be guessed


def generate_id() -> str:
    least = 10 ** (_ID_DIGITS - 1)
    return str(least + secrets.randbelow(9 * least))


def generate_key() -> str:
    return secrets.token_hex(_TOKEN_BYTES)


def generate_secret() -> str:
    return secrets.token_hex(_TOKEN_BYTES)
