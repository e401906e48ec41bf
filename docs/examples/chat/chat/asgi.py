from __future__ import annotations

import os

import fanfare.asgi

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "chat.settings")

application = fanfare.asgi.application()
