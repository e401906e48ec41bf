"""Included at `pusher/`: the paths that pusher-js has as its defaults."""

from __future__ import annotations

from django.urls import path

from fanfare.integration import views

app_name = "fanfare"

urlpatterns = [
    path("auth", views.auth, name="auth"),
    path("user-auth", views.user_auth, name="user_auth"),
]
