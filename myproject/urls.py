"""The pages that Django answers. What else this server answers stands in asgi.py."""

from __future__ import annotations

from django.apps import apps
from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

from myproject import views

urlpatterns = [
    path("", views.landing, name="landing"),
    path("docs/", views.docs, name="docs"),
    path("api/docs", views.api_docs, name="api_docs"),
    path("api/docs/", views.api_docs),
    path("api/", RedirectView.as_view(pattern_name="api_docs")),
    path("favicon.ico", views.favicon),
    path("pusher/", include("fanfare.integration.urls")),
    path("admin/", admin.site.urls),
]

if apps.is_installed("demo"):
    urlpatterns.append(path("demo/", include("demo.urls")))
