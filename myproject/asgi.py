"""The ASGI application: Django with Fanfare in it. apps/fanfare/asgi.py says what answers what."""

from __future__ import annotations

import os

import fanfare.asgi

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "myproject.settings")

application = fanfare.asgi.application()
