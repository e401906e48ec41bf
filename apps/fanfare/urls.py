"""The URLs of Fanfare in a project: `path("", include("fanfare.urls"))`.

What fanfare.asgi answers before Django (the HTTP API, SSE connections, health) needs no entry here.
"""

from __future__ import annotations

from django.conf import settings
from django.urls import URLPattern, path

from fanfare.integration import views
from fanfare.server import landing

app_name = "fanfare"

# The paths that pusher-js uses by default.
urlpatterns = [
    path("pusher/auth", views.auth, name="auth"),
    path("pusher/user-auth", views.user_auth, name="user_auth"),
]

if settings.DEBUG:
    front_page = landing.FrontPage("", name="landing", is_endpoint=True)
    urlpatterns += [
        URLPattern(front_page, landing.landing, name="landing"),
        path("fanfare/", landing.landing, name="landing_page"),  # for a project with a front page of its own
    ]
