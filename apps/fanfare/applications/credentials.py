"""What an application is known by: its id, its key (public) and its secret."""

from __future__ import annotations

import re
import secrets

# At most 15 digits and no leading zero: some SDKs turn the id of a URL into a number, and a double is exact to 2**53.
ID = re.compile(r"\A[1-9][0-9]{0,14}\Z")
# The key is a path segment and stands before the colon of an auth string, so neither "/" nor ":" may be in it.
KEY = re.compile(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
# Anything that survives a header, a shell line and an environment variable: printable ASCII without a space.
SECRET = re.compile(r"\A[!-~]{1,128}\Z")

_ID_DIGITS = 9  # always below 2**31, for SDKs with small integers; 900 million, so an id cannot be counted up to
_TOKEN_BYTES = 10  # 20 hexadecimal characters, the look that people know; 80 bits, out of reach of guessing


def generate_id() -> str:
    least = 10 ** (_ID_DIGITS - 1)
    return str(least + secrets.randbelow(9 * least))


def generate_key() -> str:
    return secrets.token_hex(_TOKEN_BYTES)


def generate_secret() -> str:
    return secrets.token_hex(_TOKEN_BYTES)
