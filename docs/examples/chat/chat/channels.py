from __future__ import annotations

from typing import Any

from django.http import HttpRequest

from fanfare import channel


@channel("private-chat-{chat}")
def may_read(user: Any, chat: str, request: HttpRequest) -> bool:
    """Each visitor has a chat of their own, in the session."""
    return request.session.get("chat") == chat
