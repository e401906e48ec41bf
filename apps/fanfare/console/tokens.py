"""The token of a console page: what its user may ask the workers, signed, for ten minutes.

The workers answer the pages without Django's session, so that the admin may be served by another process (WSGI), on
another host. The page renews its token in the admin, where the session and the permissions are checked again.
"""

from __future__ import annotations

import time
from typing import Final

from django.core import signing

from fanfare.console.permissions import Access

SECONDS: Final = 600
RENEW_S: Final = 240  # a page renews its token so often
SALT: Final = "fanfare.console"
MAX_BYTES: Final = 16_384


def issue(access: Access, *, now: float | None = None) -> str:
    """A token with the rights of `access`."""
    expires = (time.time() if now is None else now) + SECONDS
    rights = {name: None if ids is None else sorted(ids) for name, ids in access.rights.items()}
    value = {"id": access.user_id, "user": access.user, "rights": rights, "expires": expires}
    return signing.dumps(value, salt=SALT, compress=True)


def read(token: str) -> Access | None:
    """The access of a valid token; None for one that is forged, of another project or expired."""
    if len(token) > MAX_BYTES:
        return None
    try:
        value = signing.loads(token, salt=SALT)
    except signing.BadSignature:
        return None
    if value["expires"] <= time.time():
        return None
    rights = {name: None if ids is None else frozenset(ids) for name, ids in value["rights"].items()}
    return Access(value["id"], value["user"], rights, value["expires"])
