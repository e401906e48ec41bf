"""The URLs of Fanfare in a project: `path("", include("fanfare.urls"))`, after the project's own.

What fanfare.asgi answers before Django (the HTTP API, event streams, health) needs no entry here.
"""

from __future__ import annotations

from django.conf import settings
from django.urls import path

from fanfare.integration import views
from fanfare.server import landing

app_name = "fanfare"

# The paths that pusher-js uses by default.
urlpatterns = [
    path("pusher/auth", views.auth, name="auth"),
    path("pusher/user-auth", views.user_auth, name="user_auth"),
]

if settings.DEBUG:
    urlpatterns.append(path("", landing.landing, name="landing"))
